"""sb3-contrib's RecurrentPPO: an LSTM reads the features, its memory begins with each response."""

import gymnasium as gym
from judging import judge
from sb3_contrib import RecurrentPPO

from agents import make_vec_env

ENV, TASK = "tokenenv:TokenRLHF-Features-TopK-v0", {"task": "exact", "k": 3}

env = make_vec_env(ENV, n_envs=32, seed=0, **TASK)
model = RecurrentPPO(
    "MlpLstmPolicy",
    env,
    n_steps=32,
    batch_size=512,
    learning_rate=2e-3,
    gamma=1.0,
    ent_coef=0.3,
    policy_kwargs={"lstm_hidden_size": 64},
    seed=0,
    device="cpu",
)
model.learn(40_000)

memory = None


def forget() -> None:
    global memory
    memory = None


def act(observation):
    global memory
    action, memory = model.predict(observation, memory, deterministic=True)
    return action


judge(act, gym.make(ENV, split="eval", **TASK), on_reset=forget)
