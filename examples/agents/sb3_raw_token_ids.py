"""What an MLP gets from raw token ids, which it reads as quantities: it learns to say nothing."""

import gymnasium as gym
from judging import judge
from stable_baselines3 import PPO

from agents import make_vec_env

ENV = "tokenenv:TokenRLHF-v0"

env = make_vec_env(ENV, n_envs=32, seed=0)
model = PPO("MlpPolicy", env, n_steps=32, batch_size=512, gamma=1.0, seed=0, device="cpu")
model.learn(16_384)

judge(
    lambda observation: model.predict(observation, deterministic=True)[0],
    gym.make(ENV, split="eval"),
)
