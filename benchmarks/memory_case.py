"""One case of `bench_memory.py`, in a process of its own: `memory_case.py MODELS CASE`.

A process remembers the most memory that it ever held. So it is asked three times: when the models
and the environment are made, after the rollout, and after the update. What a stage adds below an
earlier maximum is not seen. Prints JSON.
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
from tokenenv.models import quiet_loading

__all__ = ["Case", "measured", "rollout"]


@dataclass(frozen=True, slots=True)
class Case:
    """A rollout of `sequences` responses of `response` tokens, and an update on it.

    Attributes:
        sequences: N.
        response: T.
        micro_batch_tokens: of `TokenPPO`.
        prompt: P.
    """

    sequences: int
    response: int
    micro_batch_tokens: int | None = None
    prompt: int = 16

    @property
    def tokens(self) -> int:
        """Response tokens of the update."""
        return self.sequences * self.response


def prepared(
    models: Path, case: Case, kind: type[PPO] = TokenPPO, scoring: str = "deferred", **options: Any
) -> PPO:
    """A model of one epoch and one minibatch, and its environment."""
    ours = {"micro_batch_tokens": case.micro_batch_tokens} if kind is TokenPPO else {}
    return kind(
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


def rollout(
    models: Path, case: Case, kind: type[PPO] = TokenPPO, scoring: str = "deferred", **options: Any
) -> PPO:
    """A model of one epoch and one minibatch, ready to `train()` on its first rollout."""
    return _with_rollout(prepared(models, case, kind, scoring, **options))


def _with_rollout(made: PPO) -> PPO:
    model, callback = start(made)
    collect(model, callback)
    return model


def _peak() -> int:
    """The most memory that this process ever held, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measured(models: Path, case: Case) -> dict[str, int]:
    """Run the case; what it took, in bytes."""
    with quiet_loading():
        made = prepared(models, case)
    found = {"models": _peak()}
    model = _with_rollout(made)
    found["rollout"] = _peak()
    buffer: Any = model.rollout_buffer
    found["buffer"] = buffer.nbytes
    model.train()
    found["update"] = _peak()
    return found


def main() -> None:
    """Run the case of the command line and print what it took."""
    found = measured(Path(sys.argv[1]), Case(**json.loads(sys.argv[2])))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
