"""CleanRL's ppo.py, shortened: one file, on `gym.make_vec` as it comes (NEXT_STEP autoreset)."""

import gymnasium as gym
import torch
from judging import judge
from torch import nn
from torch.distributions import Categorical

ENV, TASK = "tokenenv:TokenRLHF-Features-TopK-v0", {"task": "exact", "k": 3}
NUM_ENVS, NUM_STEPS, ITERATIONS, EPOCHS, MINIBATCH = 32, 32, 40, 10, 256
GAMMA, GAE_LAMBDA, CLIP, ENT_COEF, VF_COEF, LEARNING_RATE = 1.0, 0.95, 0.2, 0.3, 0.5, 2e-3

torch.manual_seed(0)
envs = gym.wrappers.vector.RecordEpisodeStatistics(gym.make_vec(ENV, num_envs=NUM_ENVS, **TASK))
width, actions_n = envs.single_observation_space.shape[0], int(envs.single_action_space.n)
actor, critic = (
    nn.Sequential(nn.Linear(width, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, n))
    for n in (actions_n, 1)
)
parameters = [*actor.parameters(), *critic.parameters()]
optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, eps=1e-5)

obs = torch.zeros(NUM_STEPS, NUM_ENVS, width)
actions = torch.zeros(NUM_STEPS, NUM_ENVS, dtype=torch.int64)
logprobs, rewards, dones, values = (torch.zeros(NUM_STEPS, NUM_ENVS) for _ in range(4))
next_obs, next_done = torch.as_tensor(envs.reset(seed=0)[0]), torch.zeros(NUM_ENVS)

for _ in range(ITERATIONS):
    for step in range(NUM_STEPS):
        obs[step], dones[step] = next_obs, next_done
        with torch.no_grad():
            probs = Categorical(logits=actor(next_obs))
            actions[step], values[step] = probs.sample(), critic(next_obs).flatten()
            logprobs[step] = probs.log_prob(actions[step])
        next_obs, reward, terminations, truncations, _ = envs.step(actions[step].numpy())
        rewards[step], next_obs = torch.as_tensor(reward), torch.as_tensor(next_obs)
        next_done = torch.as_tensor(terminations | truncations).float()
    with torch.no_grad():
        advantages, last, next_value = torch.zeros_like(rewards), 0.0, critic(next_obs).flatten()
        for t in reversed(range(NUM_STEPS)):
            alive = 1.0 - (next_done if t == NUM_STEPS - 1 else dones[t + 1])
            delta = rewards[t] + GAMMA * next_value * alive - values[t]
            advantages[t] = last = delta + GAMMA * GAE_LAMBDA * alive * last
            next_value = values[t]
    returns = (advantages + values).flatten()
    b_obs, b_actions = obs.flatten(0, 1), actions.flatten()
    b_logprobs, b_advantages = logprobs.flatten(), advantages.flatten()
    for batch in (i for _ in range(EPOCHS) for i in torch.randperm(len(b_obs)).split(MINIBATCH)):
        probs = Categorical(logits=actor(b_obs[batch]))
        ratio = (probs.log_prob(b_actions[batch]) - b_logprobs[batch]).exp()
        a = (b_advantages[batch] - b_advantages[batch].mean()) / (b_advantages[batch].std() + 1e-8)
        policy_loss = torch.max(-a * ratio, -a * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
        value_loss = 0.5 * (critic(b_obs[batch]).flatten() - returns[batch]).square().mean()
        loss = policy_loss - ENT_COEF * probs.entropy().mean() + VF_COEF * value_loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()

judge(lambda o: int(actor(torch.as_tensor(o)).argmax()), gym.make(ENV, split="eval", **TASK))
