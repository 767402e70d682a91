"""CleanRL's dqn.py, shortened: one file, on `SyncVectorEnv` as its users write it."""

import gymnasium as gym
import numpy as np
import torch
from judging import judge
from stable_baselines3.common.buffers import ReplayBuffer
from torch import nn

ENV, TASK = "tokenenv:TokenRLHF-Features-TopK-v0", {"task": "exact", "k": 3}
NUM_ENVS, STEPS, LEARNING_STARTS, BATCH, TARGET_EVERY = 8, 2_500, 125, 128, 60
GAMMA, START_E, END_E, EXPLORATION_FRACTION, LEARNING_RATE = 1.0, 1.0, 0.05, 0.5, 1e-3


def make_env():
    return gym.wrappers.RecordEpisodeStatistics(gym.make(ENV, **TASK))


def q_network():
    width, actions = envs.single_observation_space.shape[0], int(envs.single_action_space.n)
    return nn.Sequential(
        nn.Linear(width, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, actions)
    )


torch.manual_seed(0)
rng = np.random.default_rng(0)
envs = gym.vector.SyncVectorEnv(
    [make_env] * NUM_ENVS, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP
)
q, target = q_network(), q_network()
target.load_state_dict(q.state_dict())
optimizer = torch.optim.Adam(q.parameters(), lr=LEARNING_RATE)
spaces = envs.single_observation_space, envs.single_action_space
buffer = ReplayBuffer(100_000, *spaces, "cpu", n_envs=NUM_ENVS, handle_timeout_termination=False)

obs, _ = envs.reset(seed=0)
for step in range(STEPS):
    epsilon = max(END_E, START_E + (END_E - START_E) * step / (EXPLORATION_FRACTION * STEPS))
    greedy = q(torch.as_tensor(obs)).argmax(dim=1).numpy()
    explores = rng.random(NUM_ENVS) < epsilon
    actions = np.where(explores, rng.integers(spaces[1].n, size=NUM_ENVS), greedy)
    next_obs, rewards, terminations, truncations, infos = envs.step(actions)
    buffer.add(obs, next_obs, actions, rewards, terminations, [{}] * NUM_ENVS)  # never truncated
    obs = next_obs
    for _ in range(NUM_ENVS if step > LEARNING_STARTS else 0):
        data = buffer.sample(BATCH)
        with torch.no_grad():
            best = target(data.next_observations).max(dim=1).values
            td_target = data.rewards.flatten() + GAMMA * best * (1 - data.dones.flatten())
        loss = nn.functional.mse_loss(
            td_target, q(data.observations).gather(1, data.actions).squeeze()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if step % TARGET_EVERY == 0:
        target.load_state_dict(q.state_dict())

judge(lambda o: int(q(torch.as_tensor(o)).argmax()), gym.make(ENV, split="eval", **TASK))
