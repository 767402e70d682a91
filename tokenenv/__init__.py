"""RLHF as a Gymnasium environment: one step is one token.

Importing this package registers the environment ids and loads neither torch nor transformers:

    import gymnasium as gym
    import tokenenv
    env = gym.make("TokenRLHF-v0")

`gym.make("tokenenv:TokenRLHF-v0")` imports it for you.
"""

from gymnasium.envs.registration import register

__all__ = ["ENV_IDS"]

_TASK_KWARGS: dict[str, dict[str, str]] = {
    "TokenRLHF-v0": {},
    "TokenRLHF-Exact-v0": {"task": "exact"},
}

ENV_IDS = tuple(_TASK_KWARGS)

for _env_id, _kwargs in _TASK_KWARGS.items():
    register(
        id=_env_id,
        entry_point="tokenenv.env:TokenEnv",
        vector_entry_point="tokenenv.vector_env:TokenVectorEnv",
        order_enforce=True,
        kwargs=_kwargs,
    )
