"""RLHF as a Gymnasium environment: one step is one token.

Importing this package registers the environment ids and loads neither torch nor transformers:

    import gymnasium as gym
    import tokenenv
    env = gym.make("TokenRLHF-v0")

`gym.make("tokenenv:TokenRLHF-v0")` imports it for you.
"""

from gymnasium.envs.registration import register

__all__ = ["ENV_IDS"]

ENV_IDS = ("TokenRLHF-v0",)

for _env_id in ENV_IDS:
    register(
        id=_env_id,
        entry_point="tokenenv.env:TokenEnv",
        vector_entry_point="tokenenv.vector_env:TokenVectorEnv",
        order_enforce=True,
    )
