"""sb3-contrib's QR-DQN: quantiles of the return instead of its mean."""

import gymnasium as gym
from gymnasium.wrappers import FlattenObservation, FrameStackObservation
from judging import judge
from sb3_contrib import QRDQN
from stable_baselines3.common.vec_env import VecFrameStack

from agents import make_vec_env

ENV, TASK = "tokenenv:TokenRLHF-Features-TopK-v0", {"task": "exact", "k": 3}
STACK = 4  # why: sb3_dqn.py

env = VecFrameStack(make_vec_env(ENV, n_envs=8, seed=0, **TASK), STACK)
model = QRDQN(
    "MlpPolicy",
    env,
    learning_rate=1e-3,
    batch_size=128,
    gamma=1.0,
    train_freq=8,
    gradient_steps=8,
    target_update_interval=500,
    exploration_fraction=0.5,
    policy_kwargs={"n_quantiles": 25},
    seed=0,
    device="cpu",
)
model.learn(20_000)

held_out = gym.make(ENV, split="eval", **TASK)
judge(
    lambda observation: model.predict(observation, deterministic=True)[0],
    FlattenObservation(FrameStackObservation(held_out, STACK, padding_type="zero")),
)
