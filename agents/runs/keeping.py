"""What a run saves of its models at its end, and at an end that comes before that."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable
from typing import Any

from agents.atomic_files import whole_folder, write_json
from agents.config import TrainConfig
from agents.evaluation import HeldOut
from agents.ppo import LastGoodPolicy, TokenPPO
from agents.rollout import NonFiniteRollout
from agents.runs.folder import RunFolder
from agents.runs.resuming import RunRecord
from agents.runs.saving import CheckpointCallback
from tokenenv.models import NonFiniteNumbers
from tokenenv.rewards import learned_rewards
from tokenenv.stop_signals import hold_signals

__all__ = ["RunKeeper"]


class RunKeeper:
    """Saves the models of a run, and as much as possible of one that does not finish.

    Args:
        config: of the run.
        run: its folder, which it has locked.
        model: its agent.
        held_out: whose tokenizer is saved beside the policy, and whose reward models are saved.
        checkpoints: save the archives.
        last_good: the weights of before an update whose numbers were not finite.
        record: how long the run took.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: RunFolder,
        model: TokenPPO,
        held_out: HeldOut,
        checkpoints: CheckpointCallback,
        last_good: LastGoodPolicy,
        record: RunRecord,
    ) -> None:
        self.config, self.run, self.model, self.held_out = config, run, model, held_out
        self.checkpoints, self.last_good, self.record = checkpoints, last_good, record
        self._saved: list[str] = []

    def save(self) -> None:
        """Save everything that was trained.

        Raises:
            OSError: a file can't be written.
        """
        with hold_signals():
            for part, save in self._saves(f"tokens-{self.model.num_timesteps}").items():
                save()
                self._saved.append(part)

    def keep(self, name: str, reason: BaseException) -> str:
        """Save as much of an unfinished run as possible; returns a message about it.

        Args:
            name: of the archive in `checkpoints/`.
            reason: that it ends.
        """
        output = self.run.output
        assert output is not None
        with hold_signals():
            restored = self._restore_after(reason)
            if output.is_replacing and not self.model._n_updates:
                output.put_back()
                return (
                    f"Nothing was learned yet: the run that was in {self.run.root} is back there."
                )
            saves = self._saves(name)
            if restored:  # the optimiser's state is of other weights: no archive of the two
                del saves[f"checkpoints/{name}.zip"]
            saves["summary.json"] = lambda: self._summarize_unfinished(reason)
            lost = self._save_each(saves)
        return self._message(restored, lost)

    def keep_the_trained(self, reason: BaseException) -> str:
        """Note that the evaluation is missing; everything else has been saved."""
        with hold_signals(), contextlib.suppress(OSError):
            self._summarize_unfinished(reason)
        return (
            f"training is done, the evaluation was stopped. Kept in {self.run.root}: policy/, "
            "checkpoints/, metrics.jsonl, samples.jsonl and tokens/. Measure it with: tokenrlhf "
            f"evaluate {self.run.root}"
        )

    def _saves(self, name: str) -> dict[str, Callable[[], Any]]:
        """Part → function that saves it, the most valuable first: the disk may be full."""
        saves: dict[str, Callable[[], Any]] = {
            "policy/": self._save_policy,
            f"checkpoints/{name}.zip": lambda: self.checkpoints.save(name),
        }
        if learned_rewards(self.held_out.scorer.reward):
            saves["reward_model/"] = self._save_reward_models
        return saves

    def _save_each(self, saves: dict[str, Callable[[], Any]]) -> list[str]:
        """Save the parts that are not saved yet; what could not be, with the reasons."""
        lost = []
        for part, save in saves.items():
            if part in self._saved:  # as it is now, just before
                continue
            try:
                save()
                self._saved.append(part)
            except OSError as error:
                lost.append(f"{part} ({error.strerror})")
        return lost

    def _message(self, restored: str, lost: list[str]) -> str:
        root = self.run.root
        logs = [path.name for path in (self.run.metrics, self.run.samples) if path.is_file()]
        logs += ["tokens/"] if self.run.tokens.is_dir() else []
        message = f"Kept in {root}: {', '.join([*self._saved, *logs])}.{restored}"
        if any(part.startswith("checkpoints/") for part in self._saved):
            message += (
                " TokenPPO.load reads the archive, and unpickles it: only those that you trust."
            )
        if self.checkpoints.saved is not None:
            message += (
                f" To go on after {self.checkpoints.saved:,} tokens: tokenrlhf train --resume "
                f"{shlex.quote(str(root))}" + " --trust-code" * bool(self.config.names_of_code())
            )
        return message + (f" Not kept: {', '.join(lost)}." if lost else "")

    def _restore_after(self, reason: BaseException) -> str:
        """Where numbers were not finite, put the last good weights back; what to say of it."""
        is_of_rewards = isinstance(reason, NonFiniteRollout) and reason.is_of_rewards
        if not isinstance(reason, NonFiniteNumbers) or is_of_rewards:
            return ""
        if not self.last_good.restore():
            return ""
        tokens = self.last_good.tokens or 0
        numbered = {
            int(found[1]): path.name
            for path in self.run.checkpoints.glob("tokens-*.zip")
            if (found := re.fullmatch(r"tokens-(\d+)\.zip", path.name))
        }
        archives = [name for number, name in sorted(numbered.items()) if number <= tokens]
        return (
            " The policy is that of before the update in which numbers were lost: "
            + (f"trained on {tokens:,} tokens." if tokens else "the untrained one.")
            + (f" Archives of before that: {', '.join(archives)}." if archives else "")
        )

    def _summarize_unfinished(self, reason: BaseException) -> None:
        """`summary.json` of a run that was not evaluated."""
        message = " ".join(str(reason).split())
        write_json(
            self.run.summary,
            {
                "finished": False,
                "ended_by": type(reason).__name__ + (f": {message}" if message else ""),
                "name": self.config.name,
                "task": self.config.task,
                "seed": self.config.seed,
                "tokens": self.model.num_timesteps,
                "wall_seconds": self.record.seconds,
                "precision": self.model.update_precision,
            },
        )

    def _save_policy(self) -> None:
        policy: Any = self.model.policy
        tokenizer = self.held_out.scorer.reference.language_model.tokenizer
        with whole_folder(self.run.policy) as folder:
            policy.save_pretrained(folder, tokenizer)

    def _save_reward_models(self) -> None:
        """Save the reward model; of several rewards, each model in a folder with its name."""
        with whole_folder(self.run.reward_model) as folder:
            for name, learned in learned_rewards(self.held_out.scorer.reward).items():
                learned.reward_model.save_pretrained(folder / name)
