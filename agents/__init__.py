"""PPO on language models in the token MDP, on Stable-Baselines3.

from agents import LMActorCriticPolicy, TokenPPO, make_vec_env
env = make_vec_env("TokenRLHF-v0", n_envs=64, scoring="deferred")
TokenPPO(LMActorCriticPolicy, env).learn(100_000)
"""

from agents.buffer import EpisodeRolloutBuffer
from agents.callbacks import RLHFCallback
from agents.policy import LMActorCriticPolicy
from agents.ppo import TokenPPO
from agents.vec_env import TokenVecEnv, make_vec_env

__all__ = [
    "EpisodeRolloutBuffer",
    "LMActorCriticPolicy",
    "RLHFCallback",
    "TokenPPO",
    "TokenVecEnv",
    "make_vec_env",
]
