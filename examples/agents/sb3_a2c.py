"""Stable-Baselines3's A2C with an MLP: `sb3_a2c.py`, or `sb3_a2c.py TokenRLHF-Features-v0`."""

import sys

import gymnasium as gym
from judging import judge
from stable_baselines3 import A2C

from agents import make_vec_env

env_id = sys.argv[1] if len(sys.argv) > 1 else "TokenRLHF-Features-TopK-v0"
ENV, TASK = f"tokenenv:{env_id}", {"task": "exact"} | ({"k": 3} if "TopK" in env_id else {})

env = make_vec_env(ENV, n_envs=64, seed=0, **TASK)
model = A2C(
    "MlpPolicy",
    env,
    n_steps=8,  # a response has up to six tokens
    learning_rate=2e-3,
    gamma=1.0,
    ent_coef=0.5,
    seed=0,
    device="cpu",
)
model.learn(100_000)

judge(
    lambda observation: model.predict(observation, deterministic=True)[0],
    gym.make(ENV, split="eval", **TASK),
)
