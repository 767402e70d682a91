"""Progress of a run on the console: live on a terminal, elsewhere a few plain lines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback

from agents.console import progress_bar
from agents.evaluation import HeldOut, respond
from agents.rollout import RLHFCallback
from agents.runs.display import TrainingDisplay
from agents.runs.folder import RunFolder
from tokenenv.stop_signals import check_signals

__all__ = [
    "ProgressCallback",
    "SamplesCallback",
    "evaluation_progress",
]


@contextlib.contextmanager
def evaluation_progress(
    console: Console, held_out: HeldOut
) -> Iterator[Callable[[int, int], None] | None]:
    """A bar over the responses of an evaluation; none where nothing is sampled."""
    if held_out.solution is not None:
        yield None
        return
    with progress_bar(console) as bar:
        task = bar.add_task("evaluating", total=None, note="")
        yield lambda done, total: bar.update(task, completed=done, total=total)


class ProgressCallback(BaseCallback):
    """Shows a training: on a terminal a `TrainingDisplay`, elsewhere a line per tenth of it.

    Args:
        console: where to.
        metrics: the callback whose metrics are shown.
        total: response tokens of the run.
    """

    def __init__(self, console: Console, metrics: RLHFCallback, total: int) -> None:
        super().__init__()
        self.console, self.metrics, self.total = console, metrics, total
        self._display: TrainingDisplay | None = None
        self._shown = 0

    def _on_training_start(self) -> None:
        model: Any = self.model
        self._shown = 10 * self.num_timesteps // self.total
        if getattr(model, "precision", None) == "auto":
            self.console.print(f"updates compute in {model.update_precision}: the faster one here")
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._display = TrainingDisplay(self.console, self.total)
            self._display.start()

    def _on_step(self) -> bool:
        check_signals()
        return True

    def _on_rollout_end(self) -> None:
        done, metrics = min(self.num_timesteps, self.total), self.metrics.metrics
        if self._display is not None:
            self._display.update(done, metrics)
            return
        names = (("score", "score"), ("gold", "gold_reward"), ("KL", "kl"), ("J", "objective"))
        note = "  ".join(f"{shown} {metrics[name]:.2f}" for shown, name in names if name in metrics)
        if 10 * done // self.total > self._shown:
            self._shown = 10 * done // self.total
            self.console.print(f"{done:>9,} of {self.total:,} tokens  {note}")

    def _on_training_end(self) -> None:
        self.close()

    def close(self) -> None:
        """Give the screen's last lines back; safe to call twice."""
        if self._display is not None:
            with contextlib.suppress(OSError):  # of a terminal that is gone
                self._display.stop()
            self._display = None


class SamplesCallback(BaseCallback):
    """Stores the policy's responses to a few held-out prompts as it learns.

    Args:
        run: its `samples.jsonl`.
        held_out: the prompts.
        every: rollouts between two entries.
        count: prompts.
    """

    def __init__(self, run: RunFolder, held_out: HeldOut, every: int, count: int = 4) -> None:
        super().__init__()
        self.run, self.held_out, self.every, self.count = run, held_out, every, count
        self._rollouts = 0

    def state_dict(self) -> dict[str, Any]:
        """How many rollouts there were; JSON."""
        return {"rollouts": self._rollouts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was called."""
        self._rollouts = state["rollouts"]

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self._rollouts % self.every == 0:
            self.run.append_samples(self.num_timesteps, self.respond(self.model.policy.actor))
        self._rollouts += 1

    def respond(self, actor: Any) -> list[Any]:
        """Responses of `actor` to the prompts, the same seed each time."""
        held_out = self.held_out
        indices = np.linspace(0, len(held_out.texts) - 1, self.count).round().astype(int)
        return respond(
            actor,
            held_out.scorer,
            [held_out.texts[i] for i in indices],
            [held_out.prompts[i] for i in indices],
            held_out.max_new_tokens,
            seed=0,
            origins=[held_out.origins[i] for i in indices],
        )
