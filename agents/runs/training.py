"""One run: environment, agent, training, evaluation, and the folder it leaves behind."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text
from stable_baselines3.common.callbacks import BaseCallback

from agents.atomic_files import write_json
from agents.checkpoints import Checkpoint
from agents.config import TrainConfig
from agents.console import literal
from agents.evaluation import EvaluationCallback, HeldOut, ResponseReport
from agents.ppo import LastGoodPolicy
from agents.reward_quality.refresh import OwnRewardModels
from agents.reward_quality.shift import ShiftCallback
from agents.rollout import RLHFCallback
from agents.runs.agent import build_agent, choose_threads
from agents.runs.curves import draw_curves, read_metrics
from agents.runs.folder import RunFolder
from agents.runs.keeping import RunKeeper
from agents.runs.log import run_logger
from agents.runs.progress import ProgressCallback, SamplesCallback
from agents.runs.ranks import CheckRanks, OneDecision, environment_of, join_run, of_rank
from agents.runs.results import final_evaluation, summarize
from agents.runs.resumed_settings import resumed
from agents.runs.resuming import RunRecord, checkpoint_of, cut_back
from agents.runs.reward_doubts import doubts_about
from agents.runs.reward_watch import (
    hacking_monitor,
    labels_of_refresh,
    refresh_callback,
    shift_monitor,
)
from agents.runs.saving import CheckpointCallback
from agents.runs.skipped import SkippedUpdates
from agents.runs.tables import print_of_the_task
from agents.runs.tokens import TokensCallback
from agents.runs.tracker import TrackerWriter, start_tracker
from agents.scaling import ALONE, Ranks
from tokenenv.models import copy_sharing_frozen
from tokenenv.stop_signals import StopSignal, stop_signals

__all__ = ["Interrupted", "TrainingRun", "summarize"]


class Interrupted(Exception):
    """A run was stopped by Ctrl-C, SIGTERM or SIGHUP; the message says what was kept and where.

    Attributes:
        exit_status: that a shell expects: 130, 143 or 129.
    """

    def __init__(self, message: str, stop: KeyboardInterrupt) -> None:
        super().__init__(message)
        self.exit_status = stop.exit_status if isinstance(stop, StopSignal) else 130


class TrainingRun:
    """A run from its configuration to its summary.

    Args:
        config: what to do; with `resume`, the settings of the run that is gone on with
            (`agents.runs.resumed_settings.settings_of_run`), and what may be changed of them.
        console: where progress is shown.
        ranks: that train together; this is the first of them (`FollowingRun` are the others).

    Raises:
        ValueError: the configuration can't be used, on this rank or another; nothing has been
            written then.
    """

    def __init__(self, config: TrainConfig, console: Console, ranks: Ranks = ALONE) -> None:
        self.config, self.console, self.ranks = config, console, ranks
        ranks.agree(self._build)
        join_run(self.config, ranks, self.env, self.model)
        ranks.agree(self._open)
        checkpoint = self.checkpoint
        ranks.of_first(None if checkpoint is None else str(checkpoint.folder))
        ranks.agree(lambda: None)  # the others go on from it, too

    def _build(self) -> None:
        """Everything that reads the settings and the files they name, and writes nothing."""
        if self.config.resume is not None:
            self.config = resumed(self.config)
        config = self.config
        own = of_rank(config, self.ranks)
        self._own_models = OwnRewardModels(own.environment()) if config.refresh_every else None
        self.environment = (
            own.environment() if self._own_models is None else self._own_models.environment
        )
        self.env = environment_of(own, self.ranks, self.environment)
        self.held_out = HeldOut.from_env_kwargs(self.environment, config.eval_prompts)
        self.shift = shift_monitor(config, self.held_out)
        self.model = build_agent(own, self.env)
        choose_threads(config, self.model)
        # The reference, unless training starts from another model: then a copy of that.
        self.starting_actor = self.held_out.scorer.reference.language_model.model
        if config.actor is not None:
            twin = copy_sharing_frozen(self.model.policy.actor)
            self.starting_actor = twin.requires_grad_(False)
        self.tokenizer = self.held_out.scorer.reference.language_model.tokenizer
        self.metrics = RLHFCallback()
        self.hacking = hacking_monitor(
            config, self.env, self.metrics, self._warn, lambda alarm: self.run.append_alarm(alarm)
        )
        self._labels = labels_of_refresh(config, self.env, self.held_out, self._say)

    def _open(self) -> None:
        """The folder, and what writes into it."""
        config = self.config
        self.tracker = _started_tracker(config)
        try:
            self.run, self.checkpoint = self._opened()
        except BaseException:
            if self.tracker is not None:
                self.tracker.finish()
            raise
        assert self.run.output is not None
        self.refresh = refresh_callback(
            config, self.env, self.held_out, self._labels, self.run, self._say, self._refreshed
        )
        self.evaluation = self._evaluation()
        self.samples = SamplesCallback(self.run, self.held_out, max(1, config.eval_every))
        self.tokens = TokensCallback(
            self.run, self.held_out, config.explain_every, config.explain_prompts, config.seed
        )
        self.record = RunRecord(self.run)
        self.checkpoints = CheckpointCallback(
            self.run.checkpoints,
            config.checkpoint_every,
            self.run.output.keep,
            config.keep_checkpoints,
            {"run": self.record},
        )
        self.checkpoints.init_callback(self.model)
        self.last_good = LastGoodPolicy()
        self.keeper = RunKeeper(
            config,
            self.run,
            self.model,
            self.held_out,
            self.checkpoints,
            self.last_good,
            self.record,
        )
        self.last_skipped: Exception | None = None
        self._keep_batch = SkippedUpdates(self.run.skipped, self._warn)
        self.before: list[ResponseReport] = []
        self.after: list[ResponseReport] = []

    def _opened(self) -> tuple[RunFolder, Checkpoint | None]:
        """The locked folder, and what the run goes on from, which the model has taken over."""
        if self.config.resume is None:
            return RunFolder.create(self.config), None
        run = RunFolder.reopen(self.config.resume)
        try:
            checkpoint = checkpoint_of(run, self.config, self._warn)
            self.model.go_on_from(checkpoint)
        except BaseException:
            assert run.output is not None
            run.output.close()
            raise
        return run, checkpoint

    def train(self) -> dict[str, Any]:
        """Train, save, evaluate; returns the summary.

        Raises:
            Interrupted: by Ctrl-C, SIGTERM or SIGHUP; what there is by then is kept, and the
                message says where.
        """
        assert self.run.output is not None
        with (
            self._own_models or contextlib.nullcontext(),
            stop_signals(),
            contextlib.closing(self.run.output),
            _finishing(self.tracker),
        ):
            self.record.begin()
            try:
                self._begin()
                self.console.print(Text.assemble("training in ", literal(self.run.root, "bold")))
                print_of_the_task(self.console, self.config, self.env.inner.settings)
                for doubt in doubts_about(self.config.reward_model):
                    self._warn(doubt)
                self._learn()
            except KeyboardInterrupt as stop:
                why = self.ranks.why_stopped()
                self.ranks.fail(stop)
                message = self.keeper.keep("interrupted", stop)
                raise Interrupted(
                    (f"{why} S" if why else "s")
                    + f"topped after {self.model.num_timesteps:,} tokens. {message}",
                    stop,
                ) from None
            except BaseException as error:  # a full disk, a reward function: nothing more is lost
                self.ranks.fail(error)
                message = self.keeper.keep("failed", error)
                with contextlib.suppress(OSError):
                    self.console.print(literal(message))
                raise
            try:
                return self._finish(self.record.seconds)
            except KeyboardInterrupt as stop:
                raise Interrupted(self.keeper.keep_the_trained(stop), stop) from None
            except Exception as error:
                message = self.keeper.keep_the_trained(error)
                with contextlib.suppress(OSError):
                    self.console.print(literal(message))
                raise

    def _begin(self) -> None:
        """Write the first files, or let those of the run that is gone on with be as of then."""
        self.run.begin(self.config)
        if self.checkpoint is not None:
            cut_back(self.run, self.checkpoint)
            self.record.load_state_dict(self.checkpoint.parts["run"])
            self.model.other_parts = frozenset({"run"})
            self.console.print(
                f"going on after {self.checkpoint.tokens:,} of {self.config.total_tokens:,} tokens"
            )

    def _learn(self) -> None:
        """Train and save the models."""
        progress, callbacks = self._callbacks()
        self.model.on_skipped = self._skipped
        try:
            after = None if self.checkpoint is None else self.checkpoint.tokens
            with (
                run_logger(self.run, self.model, self.tracker, after),
                self.ranks.talking(),
            ):
                self.before = self.samples.respond(self.starting_actor)
                self.model.learn(
                    self.config.total_tokens - (after or 0),
                    callback=callbacks,
                    reset_num_timesteps=after is None,
                )
                self.last_good.refuse_non_finite()
                if self.last_skipped is not None and not self.model.num_updates:
                    raise self.last_skipped  # nothing was learned at all
                self.ranks.barrier()
        finally:
            self.model.on_skipped = None
            progress.close()
            self.tokens.close()
        self.keeper.save()

    def _callbacks(self) -> tuple[ProgressCallback, list[BaseCallback]]:
        config = self.config
        progress = ProgressCallback(self.console, self.metrics, config.total_tokens)
        callbacks: list[BaseCallback] = [
            *([] if self.refresh is None else [self.refresh]),
            self.metrics,
            *([] if self.hacking is None else [self.hacking]),
            *(self.samples, self.last_good, self.tokens, progress),
        ]
        if self.shift is not None:
            callbacks.append(ShiftCallback(self.shift, config.shift_every))
        if self.evaluation is not None:
            callbacks.append(self.evaluation)
        if self.ranks.count > 1:
            callbacks.append(OneDecision(self.ranks, self.metrics, self._is_stopped))
            callbacks.append(CheckRanks(self.ranks, config.check_ranks_every))
        callbacks.append(self.checkpoints)  # at the end, when the others have written theirs
        return progress, callbacks

    def _is_stopped(self) -> bool:
        """Whether a monitor ends the training."""
        return self.hacking is not None and self.hacking.stopped_by is not None

    def _evaluation(self) -> EvaluationCallback | None:
        if not self.config.eval_every:
            return None
        return EvaluationCallback(
            self.held_out,
            self.config.eval_every,
            self.run.checkpoints / "best",
            seed=self.config.seed,
            tokenizer=self.tokenizer,
        )

    def _refreshed(self) -> None:
        """Keep up with a reward model that has learned."""
        if self.held_out.solution is not None:  # the optimum has moved
            self.held_out = HeldOut.from_env_kwargs(self.environment, self.config.eval_prompts)
            self.samples.held_out = self.tokens.held_out = self.held_out
            self.keeper.held_out = self.held_out
        if self.evaluation is not None:
            self.evaluation.begin_anew(self.held_out)

    def _skipped(self, update: Any, error: Exception) -> None:
        """An update is left out."""
        self.last_skipped = error
        self._keep_batch(update, error)

    def _warn(self, text: str) -> None:
        self.console.print(Text.assemble(("warning: ", "yellow"), literal(text)))

    def _say(self, text: str) -> None:
        self.console.print(literal(text))

    def _finish(self, seconds: float) -> dict[str, Any]:
        self.after = self.samples.respond(self.model.policy.actor)
        self.run.append_samples(self.model.num_timesteps, self.after)
        return self._summarize(seconds)

    def _summarize(self, seconds: float) -> dict[str, Any]:
        summary = final_evaluation(
            self.config,
            self.held_out,
            self.model.policy.actor,
            None if self.config.actor is None else self.starting_actor,
            self.metrics.num_episodes,
            self.console,
        )
        tokens = self.model.num_timesteps
        summary.update(
            finished=True, tokens=tokens, tokens_per_second=tokens / seconds, wall_seconds=seconds
        )
        summary["precision"] = self.model.update_precision
        if self.model.num_skipped_updates:
            summary["skipped_updates"] = self.model.num_skipped_updates
        if self.env.inner.kl_coef != summary["kl_coef"]:  # a controller moved it
            summary["kl_coef_final"] = self.env.inner.kl_coef
        summary.update(self._of_the_monitor())
        if self.evaluation is not None and math.isfinite(self.evaluation.best_objective):
            summary["best_checkpoint"] = {
                "folder": "checkpoints/best",
                "objective": self.evaluation.best_objective,
                "tokens": self.evaluation.best_tokens,
            }
        write_json(self.run.summary, summary)
        if self.tracker is not None:
            self.tracker.log_summary(summary, tokens)
        draw_curves(read_metrics(self.run.metrics), summary, self.run.curves)
        return summary

    def _of_the_monitor(self) -> dict[str, Any]:
        """What the monitor of reward hacking found, for the summary; nothing where it is off."""
        if self.hacking is None:
            return {}
        found: dict[str, Any] = {
            "hacking_alarms": [
                {"rule": alarm.rule, "tokens": alarm.tokens} for alarm in self.hacking.alarms
            ]
        }
        stopped_by = self.hacking.stopped_by
        if stopped_by is not None and self.model.num_timesteps < self.config.total_tokens:
            found["ended_early"] = f"an alarm of reward hacking: {stopped_by.text}"
        return found


def _started_tracker(config: TrainConfig) -> TrackerWriter | None:
    if config.tracker is None:
        return None
    name = config.name if config.out is None else config.out.name
    if config.out is not None and re.fullmatch(r"seed-\d+", name):  # one of several
        name = f"{config.out.parent.name or config.name}-{name}"
    return start_tracker(config.tracker, config.tracker_project, name, config.as_json())


@contextlib.contextmanager
def _finishing(tracker: TrackerWriter | None) -> Iterator[None]:
    try:
        yield
    finally:
        if tracker is not None:
            tracker.finish()
