"""Checks of `RLHFCallback`: parts that do not fit each other, and wrappers that change rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.wrappers import RecordEpisodeStatistics
from gymnasium.wrappers.vector import RecordEpisodeStatistics as RecordStatisticsOfRows
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import unwrap_wrapper
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor, VecNormalize

from agents.policy import LMActorCriticPolicy
from agents.rollout.buffer import EpisodeRolloutBuffer
from agents.settings import KLPenalty, check_trainable_dtype
from tokenenv.models import load_tokenizer
from tokenenv.settings import ResolvedSettings

__all__ = [
    "check_buffer_and_policy",
    "check_plain_environment",
    "check_policy",
    "env_settings",
    "find_env_settings",
    "refuse_changed_rewards",
    "refuse_fused_attention",
    "refuse_negative_schedules",
    "refuse_normalizers",
    "refuse_other_widths",
    "refuse_recorders",
    "refuse_time_limits",
]


def env_settings(env: VecEnv) -> ResolvedSettings:
    """The settings of the token MDP behind an SB3 environment, through any wrapper.

    Raises:
        ValueError: there is no token MDP behind it.
    """
    settings = find_env_settings(env)
    if settings is None:
        raise ValueError(
            "RLHFCallback found no token MDP behind the environment: make it with "
            "agents.make_vec_env, or from gym.make('tokenenv:TokenRLHF-v0')."
        )
    return settings


def find_env_settings(env: VecEnv | None) -> ResolvedSettings | None:
    """The settings of the token MDP behind an SB3 environment; None where there is none."""
    try:
        settings = None if env is None else env.get_attr("settings")[0]
    except AttributeError:
        return None
    return settings if isinstance(settings, ResolvedSettings) else None


def check_plain_environment(agent: Mapping[str, Any]) -> None:
    """Raise ValueError where an agent on another environment has settings for tokens only.

    Args:
        agent: name → value of `TokenPPO`'s attributes.
    """
    if issubclass(agent["rollout_buffer_class"], EpisodeRolloutBuffer):
        raise ValueError(
            "EpisodeRolloutBuffer packs the token sequences of a token MDP, and this environment "
            "is none: pass rollout_buffer_class=RolloutBuffer (stable_baselines3.common.buffers)."
        )
    defaults = {"kl_estimator": "k1", "use_kl_loss": False, "kl_controller": "fixed"}
    for name, default in defaults.items():
        if agent[name] != default:
            raise ValueError(
                f"{name}={agent[name]!r} is about the KL to a reference, and this environment has "
                f"none: leave it at {default!r}."
            )


def refuse_normalizers(env: VecEnv) -> None:
    """Raise ValueError where a normaliser changes token ids or rewards; features it may scale."""
    layer: Any = env
    while isinstance(layer, VecEnvWrapper):
        if isinstance(layer, VecNormalize):
            reads_ids = np.issubdtype(layer.venv.observation_space.dtype, np.integer)
            if layer.norm_reward or (layer.norm_obs and reads_ids):
                ids = "scaled token ids are no ids, and " if reads_ids else ""
                instead = "Take it off" if reads_ids else "Give it norm_reward=False"
                raise ValueError(
                    f"VecNormalize stands in front of the policy: {ids}a scaled reward is no "
                    f"longer score and KL. {instead}; the score is normalised already."
                )
        layer = layer.venv


def refuse_recorders(env: VecEnv) -> None:
    """Raise ValueError where a wrapper would record the returns of a deferred environment."""
    layer: Any = env
    recorder = None
    while isinstance(layer, VecEnvWrapper):
        if isinstance(layer, VecMonitor) and layer.results_writer is not None:
            recorder = "VecMonitor"
        layer = layer.venv
    for monitor in _monitors(layer):
        if monitor.results_writer is not None:
            recorder = "Monitor"
    statistics: Any = (RecordEpisodeStatistics, RecordStatisticsOfRows)
    if any(any(layer.env_is_wrapped(kind)) for kind in statistics):
        recorder = "RecordEpisodeStatistics"
    if recorder is not None:
        raise ValueError(
            f"{recorder} would record returns of 0: with scoring='deferred' rewards are known at "
            "the end of a rollout, long after it saw the episode. RLHFCallback logs the true ones: "
            "take it off (a monitor without a file may stay), or use scoring='step'."
        )


def _monitors(env: VecEnv) -> list[Monitor]:
    """SB3's monitors around the environments of this process."""
    wrapped = [unwrap_wrapper(one, Monitor) for one in getattr(env, "envs", [])]
    return [monitor for monitor in wrapped if isinstance(monitor, Monitor)]


def refuse_other_widths(env: VecEnv, settings: ResolvedSettings) -> None:
    """Raise ValueError where a wrapper or an id changed the shape of the observations."""
    width = settings.max_prompt_tokens + settings.max_new_tokens
    if env.observation_space.shape != (width,):
        raise ValueError(
            f"observations have shape {env.observation_space.shape}, those of token ids are "
            f"({width},), and EpisodeRolloutBuffer and LMActorCriticPolicy read token ids: a "
            "wrapper (frame stacking? HiddenStateObservation?) or an id with 'Features' in its "
            "name changed them. Make 'TokenRLHF-v0' or 'TokenRLHF-Exact-v0' without it, or train "
            "an MlpPolicy with SB3's buffer."
        )


def check_policy(policy: LMActorCriticPolicy, settings: ResolvedSettings) -> None:
    """Raise ValueError where policy and reference differ in temperature or tokenizer.

    Also where the weights that would be trained are too coarse for it.
    """
    check_trainable_dtype(policy.dtype_name, is_adapted=policy.lora is not None)
    if policy.temperature != settings.temperature:
        raise ValueError(
            f"the policy samples at temperature {policy.temperature}, the environment's reference "
            f"scores at {settings.temperature}: the KL would be biased. Give both the same."
        )
    if policy.actor_source != settings.reference:
        try:
            actor_vocabulary = load_tokenizer(policy.actor_source, "actor").get_vocab()
        except ValueError:  # a loaded model whose first checkpoint is gone
            return
        if actor_vocabulary != load_tokenizer(settings.reference, "reference").get_vocab():
            raise ValueError(
                f"the actor {policy.actor_source!r} and the reference {settings.reference!r} have "
                "different tokenizers, so that the same token ids would mean different texts. "
                "Train an actor with the reference's tokenizer."
            )


def check_buffer_and_policy(penalty: KLPenalty, model: Any) -> None:
    """Raise ValueError where buffer or policy lack what penalty or algorithm need."""
    buffer, policy = getattr(model, "rollout_buffer", None), model.policy
    refuse_fused_attention(model)
    needs_buffer = penalty.as_loss or penalty.pays_full
    if needs_buffer and not isinstance(buffer, EpisodeRolloutBuffer):
        what = "use_kl_loss=True" if penalty.as_loss else "kl_estimator='full'"
        needs = "log π_ref of the tokens" if penalty.keeps_ref_log_probs else "whole sequences"
        raise ValueError(
            f"{what} needs {needs} at the end of the rollout, which {type(buffer).__name__} does "
            "not keep: pass rollout_buffer_class=EpisodeRolloutBuffer to the algorithm, or pay "
            "'k1', 'k2' or 'k3' in the reward."
        )
    if penalty.estimator == "full" and not isinstance(policy, LMActorCriticPolicy):
        raise ValueError(
            "kl_estimator='full' compares the whole distributions of two language models, and "
            f"{type(policy).__name__} has none: use LMActorCriticPolicy, or 'k1', 'k2' or 'k3'."
        )
    if isinstance(buffer, EpisodeRolloutBuffer) and not isinstance(policy, LMActorCriticPolicy):
        raise ValueError(
            f"EpisodeRolloutBuffer yields packed sequences of tokens, and {type(policy).__name__} "
            "reads single time steps: pass rollout_buffer_class=RolloutBuffer "
            "(stable_baselines3.common.buffers), or train LMActorCriticPolicy."
        )


def refuse_fused_attention(model: Any) -> None:
    """Raise ValueError where an algorithm differentiates twice (TRPO) and the attention can't."""
    if not (
        hasattr(model, "hessian_vector_product") and isinstance(model.policy, LMActorCriticPolicy)
    ):
        return
    if model.policy.lora is not None:
        raise ValueError(
            f"{type(model).__name__} differentiates all weights of the policy, and with lora most "
            "are frozen: leave lora out of policy_kwargs, or train with TokenPPO, PPO or A2C."
        )
    attention = model.policy.actor.config._attn_implementation
    if attention != "eager":
        raise ValueError(
            f"{type(model).__name__} differentiates the KL twice, and {attention!r} attention has "
            "only a first derivative: pass policy_kwargs={'attention': 'eager', …}."
        )


def refuse_negative_schedules(model: Any) -> None:
    """Raise ValueError where a schedule would be below 0 in the last update of a training.

    SB3 collects whole rollouts. The last may go beyond `total_timesteps`, and schedules are called
    with a progress below 0 then: a linear one gives a negative learning rate, which undoes updates.

    Args:
        model: an SB3 on-policy algorithm whose training begins.
    """
    progress_of = type(model)._update_current_progress_remaining
    if progress_of is not BaseAlgorithm._update_current_progress_remaining:
        return  # TokenPPO's ends at 0
    total, begin = model._total_timesteps, model.num_timesteps
    per_rollout = model.n_steps * model.n_envs
    end = begin - (begin - total) // per_rollout * per_rollout
    if begin >= total or end <= total:
        return
    progress = 1.0 - end / total
    for name, attribute in _SCHEDULES.items():
        schedule = getattr(model, attribute, None)
        value = float(schedule(progress)) if callable(schedule) else 0.0
        if value < 0.0:
            raise ValueError(
                f"{name} would be {value:.3g} in the last update: SB3 collects whole rollouts, of "
                f"n_steps·n_envs={per_rollout} steps, so training ends {end - total} steps beyond "
                f"the {total} asked for, and it asks schedules for a progress of {progress:.3g} "
                f"there. Ask learn() for a multiple of {per_rollout} steps, let the schedule end "
                "at 0 (max(0.0, …)), or use TokenPPO, which asks for no progress below 0."
            )


_SCHEDULES = {
    "learning_rate": "lr_schedule",
    "clip_range": "clip_range",
    "clip_range_vf": "clip_range_vf",
}
"""Arguments of SB3's on-policy algorithms → attributes with the schedules made of them."""


# At a step ----------------------------------------------------------------------------------------


def refuse_time_limits(
    infos: Sequence[dict[str, Any]], dones: np.ndarray, settings: ResolvedSettings
) -> None:
    """Raise ValueError where a `TimeLimit` ended an episode."""
    for env in np.flatnonzero(dones).tolist():
        if infos[env].get("TimeLimit.truncated", False):
            raise ValueError(
                "a TimeLimit cut an episode before its limit of max_new_tokens="
                f"{settings.max_new_tokens}: it has no score, and SB3 would put the "
                "critic's value in its place. Lower max_new_tokens instead of "
                "max_episode_steps."
            )


def refuse_changed_rewards(paid: np.ndarray, expected: np.ndarray) -> None:
    """Raise ValueError where the rewards that arrived are not those of the infos.

    Args:
        paid: (N,) as they arrived.
        expected: (N,) from the infos.
    """
    if not np.allclose(paid, expected, rtol=1e-3, atol=1e-3):
        env = int(np.abs(paid - expected).argmax())
        raise ValueError(
            f"a wrapper changed the reward: the environment paid {expected[env]:.4g}, "
            f"{paid[env]:.4g} arrived. A scaled reward is no longer score and KL: take reward "
            "wrappers and normalisers off; the score is normalised already."
        )
