"""sb3-contrib's MaskablePPO: only tokens of the reference's top-p set at each state."""

import gymnasium as gym
from judging import judge
from sb3_contrib import MaskablePPO

from agents import make_vec_env
from tokenenv.wrappers import ActionMask, vector

ENV, TASK = "tokenenv:TokenRLHF-Features-TopK-v0", {"task": "exact"}
MASK = {"top_p": 0.8}  # leaves 3.7 of the six tokens on average, the optimum among them

env = make_vec_env(
    ENV, n_envs=16, seed=0, wrapper_class=vector.ActionMask, wrapper_kwargs=MASK, **TASK
)
model = MaskablePPO(
    "MlpPolicy",
    env,
    n_steps=64,
    batch_size=512,
    learning_rate=2e-3,
    gamma=1.0,
    ent_coef=0.3,
    seed=0,
    device="cpu",
)
model.learn(30_000)

held_out = ActionMask(gym.make(ENV, split="eval", **TASK), **MASK)
judge(
    lambda observation: model.predict(
        observation, action_masks=held_out.action_masks(), deterministic=True
    )[0],
    held_out,
)
