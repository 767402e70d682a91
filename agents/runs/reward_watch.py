"""What a run does about its reward model: refreshing it, watching for hacking and shift."""

from __future__ import annotations

from collections.abc import Callable

from agents.config import TrainConfig
from agents.evaluation import HeldOut
from agents.reward_quality.hacking.monitor import HackingMonitor
from agents.reward_quality.hacking.rules import Alarm
from agents.reward_quality.refresh import (
    RefreshCallback,
    RefreshSettings,
    RewardRefresher,
    annotator,
)
from agents.reward_quality.refresh.annotators import Annotator
from agents.reward_quality.shift import ShiftMonitor
from agents.rollout import RLHFCallback
from agents.runs.folder import RunFolder
from agents.runs.reward_doubts import rules_about
from agents.vec_env import TokenVecEnv
from tokenenv.data import PreferencePair, read_pairs

__all__ = ["Labels", "hacking_monitor", "labels_of_refresh", "refresh_callback", "shift_monitor"]

Labels = tuple[Annotator, list[PreferencePair]]
"""Who labels fresh pairs, and the pairs from before."""


def labels_of_refresh(
    config: TrainConfig, env: TokenVecEnv, held_out: HeldOut, say: Callable[[str], None]
) -> Labels | None:
    """Who labels fresh pairs, and the pairs from before; None where nothing is refreshed.

    Raises:
        ValueError: the labels or the old pairs that the settings name can't be used.
    """
    if not config.refresh_every:
        return None
    label = annotator(
        config.refresh_labels,
        held_out.scorer,
        env.inner.settings.device,
        config.refresh_label_noise,
        config.seed,
        say,
    )
    return label, [] if config.refresh_old_pairs is None else read_pairs(config.refresh_old_pairs)


def refresh_callback(
    config: TrainConfig,
    env: TokenVecEnv,
    held_out: HeldOut,
    labels: Labels | None,
    run: RunFolder,
    say: Callable[[str], None],
    on_refreshed: Callable[[], None],
) -> RefreshCallback | None:
    """The rounds in which the reward model learns on; None where there are no labels."""
    if labels is None:
        return None
    label, old = labels
    how = RefreshSettings(
        config.refresh_pairs, config.refresh_epochs, config.refresh_learning_rate, config.seed
    )
    refresher = RewardRefresher(env.inner.settings, held_out.scorer, label, run.refresh, how, old)
    return RefreshCallback(refresher, config.refresh_every, say, on_refreshed=on_refreshed)


def hacking_monitor(
    config: TrainConfig,
    env: TokenVecEnv,
    metrics: RLHFCallback,
    warn: Callable[[str], None],
    record: Callable[[Alarm], None],
) -> HackingMonitor | None:
    """What looks for reward hacking; None where nothing does.

    Raises:
        ValueError: it is to multiply a β of 0.
    """
    if config.on_hacking_alarm == "ignore":
        return None
    if config.on_hacking_alarm == "raise-kl" and env.inner.kl_coef == 0:
        raise ValueError(
            "on_hacking_alarm='raise-kl' multiplies β, and the task's kl_coef is 0: give a "
            "positive kl_coef, or another on_hacking_alarm."
        )
    return HackingMonitor(
        metrics,
        config.on_hacking_alarm,
        config.hacking_kl_factor,
        config.hacking_kl_raises,
        rules=rules_about(config),
        say=warn,
        record=record,
    )


def shift_monitor(config: TrainConfig, held_out: HeldOut) -> ShiftMonitor | None:
    """What tests for a shift of the responses; None where nothing does."""
    if not config.shift_every:
        return None
    pairs = None if config.shift_pairs is None else read_pairs(config.shift_pairs)
    return ShiftMonitor(held_out, pairs, config.seed)
