"""Stable-Baselines3's PPO with an MLP on the small text environment."""

import gymnasium as gym
from judging import judge
from stable_baselines3 import PPO

from agents import make_vec_env

ENV, TASK = "tokenenv:TokenRLHF-Features-TopK-v0", {"task": "exact", "k": 3}

env = make_vec_env(ENV, n_envs=64, seed=0, **TASK)
model = PPO(
    "MlpPolicy",
    env,
    n_steps=16,
    batch_size=512,
    learning_rate=2e-3,
    gamma=1.0,
    ent_coef=0.3,
    seed=0,
    device="cpu",
)
model.learn(40_000)

judge(
    lambda observation: model.predict(observation, deterministic=True)[0],
    gym.make(ENV, split="eval", **TASK),
)
