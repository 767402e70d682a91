"""CleanRL's dqn.py, shortened: one file, on `SyncVectorEnv` as its users write it."""

import gymnasium as gym
import numpy as np
import torch
from judging import judge
from stable_baselines3.common.buffers import ReplayBuffer
from torch import nn

ENV, TASK = "tokenenv:TokenRLHF-Features-TopK-v0", {"task": "exact", "k": 3}
NUM_ENVS, STEPS, LEARNING_STARTS, BATCH, UPDATES, TARGET_EVERY = 8, 2_500, 125, 128, 2, 60
STACK = 4  # why: sb3_dqn.py
GAMMA, START_E, END_E, EXPLORATION_FRACTION, LEARNING_RATE = 1.0, 1.0, 0.05, 0.5, 1e-3


def make_env(split="train"):
    env = gym.wrappers.RecordEpisodeStatistics(gym.make(ENV, split=split, **TASK))
    env = gym.wrappers.FrameStackObservation(env, STACK, padding_type="zero")
    return gym.wrappers.FlattenObservation(env)


def q_network():
    width, actions = envs.single_observation_space.shape[0], int(envs.single_action_space.n)
    return nn.Sequential(
        nn.Linear(width, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, actions)
    )


torch.manual_seed(0)
rng = np.random.default_rng(0)
same_step = gym.vector.AutoresetMode.SAME_STEP
envs = gym.vector.SyncVectorEnv([make_env] * NUM_ENVS, autoreset_mode=same_step)
q, target = q_network(), q_network()
target.load_state_dict(q.state_dict())
optimizer = torch.optim.Adam(q.parameters(), lr=LEARNING_RATE)
spaces = envs.single_observation_space, envs.single_action_space
buffer = ReplayBuffer(100_000, *spaces, "cpu", n_envs=NUM_ENVS, handle_timeout_termination=False)
obs, _ = envs.reset(seed=0)
for step in range(STEPS):
    epsilon = max(END_E, START_E + (END_E - START_E) * step / (EXPLORATION_FRACTION * STEPS))
    greedy = q(torch.as_tensor(obs)).argmax(dim=1).numpy()
    sampled = rng.integers(spaces[1].n, size=NUM_ENVS)
    actions = np.where(rng.random(NUM_ENVS) < epsilon, sampled, greedy)
    next_obs, rewards, terminations, truncations, infos = envs.step(actions)
    buffer.add(obs, next_obs, actions, rewards, terminations, [{}] * NUM_ENVS)  # never truncated
    obs = next_obs
    for _ in range(UPDATES if step > LEARNING_STARTS else 0):
        data = buffer.sample(BATCH)
        with torch.no_grad():
            best = target(data.next_observations).max(dim=1).values
            td_target = data.rewards.flatten() + GAMMA * best * (1 - data.dones.flatten())
        old_value = q(data.observations).gather(1, data.actions).squeeze()
        loss = nn.functional.mse_loss(td_target, old_value)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if step % TARGET_EVERY == 0:
        target.load_state_dict(q.state_dict())

judge(lambda o: int(q(torch.as_tensor(o)).argmax()), make_env("eval"))
