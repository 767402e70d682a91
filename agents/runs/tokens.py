"""`tokens/STEP.jsonl`: the token tables of a run, written as it learns."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

from agents.credit import (
    TokenTable,
    Truth,
    UpdateSettings,
    has_truth,
    rollout_table,
    token_table,
    write_tokens,
)
from agents.evaluation import HeldOut
from agents.runs.folder import RunFolder
from tokenenv.data import prompt_of_state, prompt_state
from tokenenv.models import sample_responses
from tokenenv.rewards import Episode, episodes_of

__all__ = ["TokensCallback"]

logger = logging.getLogger(__name__)

MAX_TOKENS = 16_384
"""Response tokens in one file, at most: some megabytes of text."""

SMALLEST_GROUP = 2
"""Responses to each prompt, so that they can be compared with each other."""


class TokensCallback(BaseCallback):
    """Writes token tables before the first update, after every few, and after the last one.

    A file holds fresh responses to a few held-out prompts; the responses of the untrained policy to
    the same prompts, scored again; and a sample of the rollout that the update used. Held-out
    responses are whitened with the mean and deviation of that rollout.

    Args:
        run: its `tokens/`.
        held_out: where the prompts come from.
        every: updates between two files; 0 for none.
        prompts: held-out prompts.
        seed: of the sampling, the same each time.
    """

    def __init__(
        self, run: RunFolder, held_out: HeldOut, every: int, prompts: int, seed: int = 0
    ) -> None:
        super().__init__()
        self.run, self.held_out, self.every, self.seed = run, held_out, every, seed
        self.prompts = prompts
        self._fixed: list[Episode] = []
        self._waiting: Any = None
        self._has_failed = False

    def _on_step(self) -> bool:
        return True

    def _on_training_start(self) -> None:
        if not self.every:
            return
        model: Any = self.model
        model.on_updated = self.after_update
        if model.pending is not None:  # it goes on from a checkpoint, with the responses of then
            return
        with self._harmless():
            self._fixed = self._sample()
            self._write(UpdateSettings.of_model(model), None)

    def state_dict(self) -> dict[str, Any]:
        """The responses of the untrained policy, as arrays; whether tables are still written."""
        return {
            "has_failed": self._has_failed,
            "fixed": [
                {
                    "prompt": episode.prompt,
                    "response": episode.response,
                    "stopped": episode.stopped,
                    "origin": prompt_state(episode.origin),
                }
                for episode in self._fixed
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was called."""
        self._fixed = [
            Episode(**{**episode, "origin": prompt_of_state(episode["origin"])})
            for episode in state["fixed"]
        ]
        self._has_failed = state["has_failed"]
        if self._has_failed:
            self.close()

    def _on_rollout_start(self) -> None:
        self._waiting = None  # its rollout is gone

    def after_update(self, update: Any) -> None:
        """Write a file where it is time; `TokenPPO.on_updated`."""
        self._waiting = update
        if update.model.num_updates % self.every == 0:
            self._export(update)

    def _on_training_end(self) -> None:
        if self._waiting is not None:
            self._export(self._waiting)
        self.close()

    def close(self) -> None:
        """Leave the model alone again; safe to call twice."""
        if getattr(self, "model", None) is not None:
            self.model.on_updated = None  # type: ignore[attr-defined]
        self._waiting = None

    def _export(self, update: Any) -> None:
        self._waiting = None
        with self._harmless():
            self._write_of_update(update)

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """A fault in a table is logged and ends the tables, never the training.

        The reward and gold functions are asked for held-out responses here. Whatever they draw from
        the global generators of Python, NumPy and torch, training draws what it would have drawn.
        """
        states = random.getstate(), np.random.get_state()
        device = self.model.device
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                yield
        except Exception as error:
            logger.warning(
                "no more token tables in this run, which goes on without them (%s: %s)",
                type(error).__name__,
                " ".join(str(error).split()),
            )
            self._has_failed = True
            self.close()
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])

    def _write_of_update(self, update: Any) -> None:
        share = MAX_TOKENS // (3 * self.held_out.max_new_tokens) or 1
        used = rollout_table(update, self.held_out.scorer, min(len(self._fixed), share))
        self._write(UpdateSettings.of_update(update), used)

    def _write(self, settings: UpdateSettings, used: TokenTable | None) -> None:
        model: Any = self.model
        solution = self.held_out.solution
        truth = None
        if solution is not None and settings.kl_coef is not None and has_truth(settings):
            truth = Truth.of(model.policy, solution, settings.kl_coef)
        fresh = self._table(self._sample(), settings, "fresh", truth)
        fixed = self._table(self._fixed, settings, "fixed", truth)
        responses = [*fresh.responses, *fixed.responses, *([] if used is None else used.responses)]
        header = {
            **fresh.header,
            "step": int(model.num_timesteps),
            "update": int(model.num_updates),
            "task": self.held_out.settings.task,
        }
        write_tokens(self.run.tokens / f"{model.num_timesteps}.jsonl", header, responses)

    def _table(
        self, episodes: list[Episode], settings: UpdateSettings, kind: str, truth: Truth | None
    ) -> TokenTable:
        policy: Any = self.model.policy
        return token_table(policy, self.held_out.scorer, episodes, settings, kind=kind, truth=truth)

    def _sample(self) -> list[Episode]:
        """Responses of the policy, as many to each prompt as it compares, prompts fixed."""
        held_out = self.held_out
        policy: Any = self.model.policy
        buffer: Any = self.model.rollout_buffer  # type: ignore[attr-defined]
        group = max(SMALLEST_GROUP, buffer.group_size)
        most = max(1, MAX_TOKENS // (3 * held_out.max_new_tokens * group))
        count = min(self.prompts, len(held_out.prompts), most)
        chosen = np.linspace(0, len(held_out.prompts) - 1, count).round().astype(int)
        prompts = [held_out.prompts[i] for i in chosen for _ in range(group)]
        origins = [held_out.origins[i] for i in chosen for _ in range(group)]
        reference = held_out.scorer.reference
        sampled = sample_responses(
            policy.actor,
            reference.language_model.eos_token_ids,
            prompts,
            held_out.max_new_tokens,
            temperature=reference.temperature,
            seed=self.seed,
        )
        return episodes_of(prompts, sampled, origins)
