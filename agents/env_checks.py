"""What `RLHFCallback` refuses before anything is trained: environments that do not fit an agent."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from agents.policy import LMActorCriticPolicy
from tokenenv.language_model import load_tokenizer
from tokenenv.settings import EnvSettings

__all__ = [
    "check_policy",
    "env_settings",
    "find_env_settings",
    "refuse_normalizers",
    "refuse_other_widths",
]


def env_settings(env: VecEnv) -> EnvSettings:
    """The settings of the token MDP behind an SB3 environment, through any wrapper.

    Raises:
        ValueError: there is no token MDP behind it.
    """
    found = find_env_settings(env)
    if found is None:
        raise ValueError(
            "RLHFCallback found no token MDP behind the environment: make it with "
            "agents.make_vec_env, or from gym.make('tokenenv:TokenRLHF-v0')."
        )
    return found


def find_env_settings(env: VecEnv | None) -> EnvSettings | None:
    """The settings of the token MDP behind an SB3 environment; None where there is none."""
    try:
        found = None if env is None else env.get_attr("settings")[0]
    except AttributeError:
        return None
    return found if isinstance(found, EnvSettings) else None


def refuse_normalizers(env: VecEnv) -> None:
    """Raise ValueError where a normaliser stands in front of the policy."""
    layer: Any = env
    while isinstance(layer, VecEnvWrapper):
        if isinstance(layer, VecNormalize) and (layer.norm_obs or layer.norm_reward):
            raise ValueError(
                "VecNormalize stands in front of the policy: scaled token ids are no ids, and a "
                "scaled reward is no longer score and KL. Take it off; the score is normalised "
                "already."
            )
        layer = layer.venv


def refuse_other_widths(env: VecEnv, settings: EnvSettings) -> None:
    """Raise ValueError where a wrapper changed the shape of the observations."""
    assert settings.max_prompt_tokens is not None and settings.max_new_tokens is not None
    width = settings.max_prompt_tokens + settings.max_new_tokens
    if env.observation_space.shape != (width,):
        raise ValueError(
            f"observations have shape {env.observation_space.shape}, the environment's are "
            f"({width},): a wrapper (frame stacking?) changed them. Take it off: the state is "
            "whole in every observation."
        )


def check_policy(policy: LMActorCriticPolicy, settings: EnvSettings) -> None:
    """Raise ValueError where policy and reference differ in temperature or tokenizer."""
    if policy.temperature != settings.temperature:
        raise ValueError(
            f"the policy samples at temperature {policy.temperature}, the environment's reference "
            f"scores at {settings.temperature}: the KL would be biased. Give both the same."
        )
    if policy.actor_source != settings.reference:
        assert settings.reference is not None
        try:
            own = load_tokenizer(policy.actor_source, "actor").get_vocab()
        except ValueError:  # a loaded model whose first checkpoint is gone
            return
        if own != load_tokenizer(settings.reference, "reference").get_vocab():
            raise ValueError(
                f"the actor {policy.actor_source!r} and the reference {settings.reference!r} have "
                "different tokenizers, so that the same token ids would mean different texts. "
                "Train an actor with the reference's tokenizer."
            )
