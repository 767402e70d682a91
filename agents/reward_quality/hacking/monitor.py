"""`HackingMonitor`: watches a training for reward hacking, and acts on it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from agents.reward_quality.hacking.rules import RULES, Alarm, Rule, Snapshot, Watch
from agents.reward_quality.hacking.tracking import Spread, TextTracker
from agents.reward_quality.text_features import WordLists
from agents.rollout import RLHFCallback

__all__ = ["ON_ALARM", "HackingMonitor"]

logger = logging.getLogger(__name__)

ON_ALARM = ("warn", "stop", "raise-kl")
"""What a monitor may do."""

LOOKS_BEFORE_ACTING = 2
"""Looks in a row in which a rule holds before the monitor acts: a policy that jumps and comes back
at once is an alarm, and no reason to stop."""

ROLLOUTS_BETWEEN_RAISES = 4
"""Rollouts that a larger β has to work before it is raised again."""

_COUNTERS = ("raised", "is_alarmed", "_rollouts", "_raised_at", "_steps", "_in_a_row")
"""Attributes of a monitor that are numbers and change."""


class HackingMonitor(BaseCallback):
    """Looks for reward hacking after every rollout, without the gold reward.

    It tracks features of the texts that finish (`rlhf/features/NAME`, the mean over the rollout)
    and how improbable the reference finds them (`rlhf/ref_surprisal`, −log π_ref of a response),
    compares these, score, KL and entropy with those at the start of the training by `rules`, and
    logs `rlhf/hacking_alarm`: 1 in a rollout in which a rule holds, 0 in others, nothing while the
    start is still being measured. A rule that holds for the first time raises an alarm: it is said
    and recorded, once for each rule. What is known of a rule without a look is recorded before the
    first rollout, and not said: who gave the rule has it from somewhere. Where rules hold in two
    looks that follow one another, the monitor acts:

    - `"warn"`: it does not.
    - `"stop"`: the training ends after the update on this rollout.
    - `"raise-kl"`: the environment's β is multiplied by `kl_factor`, and again after every
      `ROLLOUTS_BETWEEN_RAISES` rollouts in which a rule still holds, `kl_raises` times at the most.

    Put it behind the `RLHFCallback` in the list of callbacks. Warning alone, it changes no number
    of the training. Every call of `learn` begins anew for it, the start is where that call started;
    but not one that goes on from a checkpoint's folder.

    Args:
        rlhf: the callback that completes the reward of this training.
        on_alarm: one of `ON_ALARM`.
        kl_factor: above 1.
        kl_raises: 1 or more.
        word_lists: whose words the features count; None: those of the package.
        rules: to look by.
        say: called with the sentence of an alarm; None: logged as a warning.
        record: called with an alarm, to be kept.

    Attributes:
        alarms: those that were raised.
        stopped_by: the alarm that ended the training; None where none did.
        raised: how often β was multiplied.
        is_alarmed: whether a rule holds in the last rollout.

    Raises:
        ValueError: an argument is out of its range. At the start of training: the `RLHFCallback`
            comes later in the list, or β is 0 and is to be raised.
    """

    def __init__(
        self,
        rlhf: RLHFCallback,
        on_alarm: str = "warn",
        kl_factor: float = 2.0,
        kl_raises: int = 3,
        word_lists: WordLists | None = None,
        rules: Sequence[Rule] = RULES,
        say: Callable[[str], None] | None = None,
        record: Callable[[Alarm], None] | None = None,
    ) -> None:
        super().__init__()
        if on_alarm not in ON_ALARM:
            allowed = ", ".join(map(repr, ON_ALARM))
            raise ValueError(
                f"on_alarm={on_alarm!r} must be one of {allowed}; to look for nothing, leave the "
                "monitor out."
            )
        if not 1 < kl_factor < float("inf"):
            raise ValueError(f"kl_factor={kl_factor!r} must be a finite number above 1.")
        if isinstance(kl_raises, bool) or not isinstance(kl_raises, int) or kl_raises < 1:
            raise ValueError(f"kl_raises={kl_raises!r} must be a whole number of 1 or more.")
        self.rlhf, self.on_alarm, self.rules = rlhf, on_alarm, tuple(rules)
        self.kl_factor, self.kl_raises = kl_factor, kl_raises
        self.alarms: list[Alarm] = []
        self.stopped_by: Alarm | None = None
        self.raised = 0
        self.is_alarmed = False
        self._say = say or logger.warning
        self._record = record or (lambda alarm: None)
        self._texts = TextTracker(word_lists)
        self._rollouts = self._raised_at = self._steps = self._in_a_row = 0

    def _on_training_start(self) -> None:
        if not hasattr(self.rlhf, "settings") or self.rlhf.model is not self.model:
            raise ValueError(
                "HackingMonitor reads what RLHFCallback has measured: put the RLHFCallback that it "
                "was given before it in the list of callbacks."
            )
        settings = self.rlhf.settings
        if self.on_alarm == "raise-kl" and self._kl_coef() == 0:
            raise ValueError(
                "on_alarm='raise-kl' multiplies β, and kl_coef is 0: give the environment a "
                "positive kl_coef, or take another on_alarm."
            )
        # Rewards of a weighted sum are meant to differ.
        self._is_ensemble = settings.reward_combine != "sum"
        self._watch = Watch(self.rules, settings.max_new_tokens)
        self.stopped_by, self.is_alarmed, self._steps, self._in_a_row = None, False, 0, 0
        self._texts.end_rollout()  # of a training that was interrupted inside of a rollout

    def state_dict(self) -> dict[str, Any]:
        """Start, latest rollouts, alarms and what was done about them; JSON."""
        return {
            "watch": self._watch.state_dict(),
            "alarms": [asdict(alarm) for alarm in self.alarms],
            "stopped_by": None if self.stopped_by is None else asdict(self.stopped_by),
            **{name: getattr(self, name) for name in _COUNTERS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was called; after the start of training."""
        self._watch.load_state_dict(state["watch"])
        self.alarms = [Alarm(**alarm) for alarm in state["alarms"]]
        self.stopped_by = None if state["stopped_by"] is None else Alarm(**state["stopped_by"])
        for name in _COUNTERS:
            setattr(self, name, state[name])

    def _kl_coef(self) -> float:
        return float(self.training_env.get_attr("kl_coef")[0])

    def _on_step(self) -> bool:
        infos: list[dict[str, Any]] = self.locals["infos"]
        for row in np.flatnonzero(self.locals["dones"]).tolist():
            self._texts.add(infos[row]["response"], infos[row]["response_length"])
        return self.stopped_by is None

    def _on_rollout_start(self) -> None:
        raised = {alarm.rule for alarm in self.alarms}
        for rule in self.rules:
            if rule.known is not None and rule.name not in raised:
                self._keep(Alarm(rule.name, 0, rule.known))

    def _on_rollout_end(self) -> None:
        self._rollouts += 1
        self._steps += getattr(self.model, "n_steps", 1)
        features = self._texts.end_rollout()
        for name, spread in features.items():
            self.logger.record(f"rlhf/features/{name}", spread.mean)
        records, metrics = self.rlhf.records, self.rlhf.metrics
        if not records:
            return
        surprisal = Spread.of([-record.ref_log_prob for record in records])
        self.logger.record("rlhf/ref_surprisal", surprisal.mean)
        snapshot = Snapshot(
            tokens=self.num_timesteps,
            steps=self._steps,
            score=Spread.of([record.score for record in records]),
            top_score=max(record.score for record in records),
            kl=Spread.of([record.kl for record in records]),
            surprisal=surprisal,
            entropy=metrics["entropy"],
            features=features,
            disagreement=metrics.get("rm_disagreement") if self._is_ensemble else None,
        )
        self._steps = 0
        answers = self._watch.look(snapshot)
        if answers is None:
            return
        self.is_alarmed = bool(answers)
        self.logger.record("rlhf/hacking_alarm", float(self.is_alarmed))
        known = {alarm.rule for alarm in self.alarms}
        for alarm in answers:
            if alarm.rule not in known:
                self._raise(alarm)
        self._in_a_row = self._in_a_row + 1 if answers else 0
        if self._in_a_row >= LOOKS_BEFORE_ACTING:
            self._act(answers[0])

    def _raise(self, alarm: Alarm) -> None:
        self._say(f"after {alarm.tokens:,} tokens the run looks like reward hacking: {alarm.text}")
        self._keep(alarm)

    def _keep(self, alarm: Alarm) -> None:
        self.alarms.append(alarm)
        self._record(alarm)

    def _act(self, alarm: Alarm) -> None:
        if self.on_alarm == "stop" and self.stopped_by is None:
            self.stopped_by = alarm
        if self.on_alarm != "raise-kl" or self.raised == self.kl_raises:
            return
        if self.raised and self._rollouts - self._raised_at < ROLLOUTS_BETWEEN_RAISES:
            return
        before, after = self._kl_coef(), self.rlhf.multiply_kl_coef(self.kl_factor)
        self.raised, self._raised_at = self.raised + 1, self._rollouts
        self._say(
            f"β goes from {before:.3g} to {after:.3g} ({self.raised} of {self.kl_raises} times)."
        )
