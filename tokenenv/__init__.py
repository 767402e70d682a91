"""RLHF as a Gymnasium environment: one step is one token.

Importing this package registers the environment ids and loads neither torch nor transformers:

    import gymnasium as gym
    import tokenenv
    env = gym.make("TokenRLHF-v0")

`gym.make("tokenenv:TokenRLHF-v0")` imports it for you.
"""

from gymnasium.envs.registration import register

__all__ = ["ENV_IDS"]

_ENVS: dict[str, tuple[str, str, dict[str, str]]] = {
    "TokenRLHF-v0": ("tokenenv.env:TokenEnv", "tokenenv.vector_env:TokenVectorEnv", {}),
    "TokenRLHF-Exact-v0": (
        "tokenenv.env:TokenEnv",
        "tokenenv.vector_env:TokenVectorEnv",
        {"task": "exact"},
    ),
    "TokenRLHF-Features-v0": (
        "tokenenv.feature_envs:TokenFeaturesEnv",
        "tokenenv.feature_envs:TokenFeaturesVectorEnv",
        {},
    ),
    "TokenRLHF-Features-TopK-v0": (
        "tokenenv.feature_envs:TokenFeaturesTopKEnv",
        "tokenenv.feature_envs:TokenFeaturesTopKVectorEnv",
        {},
    ),
}

ENV_IDS = tuple(_ENVS)

for _env_id, (_entry_point, _vector_entry_point, _kwargs) in _ENVS.items():
    register(
        id=_env_id,
        entry_point=_entry_point,
        vector_entry_point=_vector_entry_point,
        order_enforce=True,
        kwargs=_kwargs,
    )
