"""sb3-contrib's MaskablePPO: only tokens of the reference's top-p set at each state."""

import gymnasium as gym
from judging import judge
from sb3_contrib import MaskablePPO
from stable_baselines3.common.env_util import make_vec_env

from tokenenv.wrappers import ActionMask

ENV, TASK = "tokenenv:TokenRLHF-Features-TopK-v0", {"task": "exact"}

MASK = {"top_p": 0.95}

env = make_vec_env(ENV, 8, 0, env_kwargs=TASK, wrapper_class=ActionMask, wrapper_kwargs=MASK)
model = MaskablePPO(
    "MlpPolicy",
    env,
    n_steps=128,
    batch_size=512,
    learning_rate=2e-3,
    gamma=1.0,
    ent_coef=0.3,
    seed=0,
    device="cpu",
)
model.learn(20_000)

held_out = ActionMask(gym.make(ENV, split="eval", **TASK), **MASK)
judge(
    lambda observation: model.predict(
        observation, action_masks=held_out.action_masks(), deterministic=True
    )[0],
    held_out,
)
