"""Stable-Baselines3's DQN with an MLP on the small text environment."""

import gymnasium as gym
from judging import judge
from stable_baselines3 import DQN

from agents import make_vec_env

ENV, TASK = "tokenenv:TokenRLHF-Features-TopK-v0", {"task": "exact", "k": 3}

env = make_vec_env(ENV, n_envs=8, seed=0, **TASK)
model = DQN(
    "MlpPolicy",
    env,
    learning_rate=1e-3,
    gamma=1.0,
    train_freq=8,
    gradient_steps=8,
    target_update_interval=500,
    exploration_fraction=0.5,
    seed=0,
    device="cpu",
)
model.learn(20_000)

judge(
    lambda observation: model.predict(observation, deterministic=True)[0],
    gym.make(ENV, split="eval", **TASK),
)
