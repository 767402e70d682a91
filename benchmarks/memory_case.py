"""One case of `bench_memory.py`, in a process of its own: `memory_case.py MODELS CASE`.

A process remembers the most memory that it ever held, so what an update adds is the difference of
two processes: one that makes models and a rollout, and one that makes the update as well. Prints
JSON.
"""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppo_updates import collect, start
from random_models import environment
from stable_baselines3 import PPO

from agents import LMActorCriticPolicy, TokenPPO
from tokenenv.language_model import quiet_loading

__all__ = ["Case", "rollout"]


@dataclass(frozen=True, slots=True)
class Case:
    """A rollout of `sequences` responses of `response` tokens, and an update on it or none.

    Attributes:
        sequences: N.
        response: T.
        micro_batch_tokens: of `TokenPPO`.
        updates: whether there is an update.
        prompt: P.
    """

    sequences: int
    response: int
    micro_batch_tokens: int | None = None
    updates: bool = False
    prompt: int = 16

    @property
    def tokens(self) -> int:
        """Response tokens of the update."""
        return self.sequences * self.response


def rollout(
    models: Path, case: Case, kind: type[PPO] = TokenPPO, scoring: str = "deferred", **options: Any
) -> PPO:
    """A model of one epoch and one minibatch, ready to `train()` on its first rollout."""
    ours = {"micro_batch_tokens": case.micro_batch_tokens} if kind is TokenPPO else {}
    made = kind(
        LMActorCriticPolicy,
        environment(
            models,
            case.sequences,
            case.prompt,
            case.response,
            num_prompts=64,
            scoring=scoring,
            device="cpu",
        ),
        n_steps=case.response,
        n_epochs=1,
        gamma=1.0,
        policy_kwargs={"actor": str(models / "lm")},
        seed=0,
        device="cpu",
        **{"batch_size": case.tokens, **ours, **options},
    )
    model, callback = start(made)
    collect(model, callback)
    return model


def main() -> None:
    """Run the case and print what it took, in bytes."""
    case = Case(**json.loads(sys.argv[2]))
    with quiet_loading():
        model = rollout(Path(sys.argv[1]), case)
    if case.updates:
        model.train()
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    buffer: Any = model.rollout_buffer
    sys.stdout.write(json.dumps({"peak": peak, "buffer": buffer.nbytes}) + "\n")


if __name__ == "__main__":
    main()
