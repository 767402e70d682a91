"""Whole PPO updates to be timed: `TokenPPO`, stock PPO with SB3's own buffer, and a peer."""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from random_models import environment
from reporting import seconds_of
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stopwatch import Stopwatch

from agents import LMActorCriticPolicy, RLHFCallback, TokenPPO
from agents.ppo import Update

__all__ = [
    "PRECISIONS",
    "Workload",
    "add_peer_arguments",
    "breakdown",
    "collect",
    "parse_with_peer",
    "peer_update",
    "start",
    "stock_epoch",
    "stock_update",
    "token_ppo",
]

PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"precision": "bfloat16"},
    "auto": {"precision": "auto"},
}
"""Precision → arguments of `TokenPPO`; a new one is one line here and one in `_PEER_FLAGS`."""

_PEER_FLAGS = {"float32": [], "bfloat16": ["--bf16"], "auto": ["--bf16"]}

STOCK_MINIBATCH = 64


@dataclass(frozen=True, slots=True)
class Workload:
    """One update: `batch` prompts, a response to each, `epochs` passes over all of them.

    Attributes:
        models: holds lm/ and rm/.
        batch: environments, and sequences of the one minibatch.
        prompt: tokens.
        response: tokens.
        epochs: passes.
        value_head: `"shared"` or `"separate"`.
        micro_batch_tokens: of `TokenPPO`, and of the sum of parts.
        precision: one of `PRECISIONS`.
        device: a torch device.
        critic_epochs: epochs in which a separate critic learns; None: in all.
    """

    models: Path
    batch: int = 64
    prompt: int = 16
    response: int = 48
    epochs: int = 4
    value_head: str = "shared"
    micro_batch_tokens: int | None = None
    precision: str = "float32"
    device: str = "cpu"
    critic_epochs: int | None = None

    @property
    def tokens(self) -> int:
        """Response tokens of an update."""
        return self.batch * self.response


def _model(kind: type[PPO], work: Workload, scoring: str, **arguments: Any) -> PPO:
    env = environment(
        work.models, work.batch, work.prompt, work.response, scoring=scoring, device=work.device
    )
    return kind(
        LMActorCriticPolicy,
        env,
        learning_rate=1e-5,
        n_steps=work.response,
        policy_kwargs={"actor": str(work.models / "lm"), "value_head": work.value_head},
        seed=0,
        device=work.device,
        **arguments,
    )


def token_ppo(work: Workload) -> TokenPPO:
    """Ours: `learn(updates * work.tokens)` makes whole updates."""
    made = _model(
        TokenPPO,
        work,
        "deferred",
        batch_size=work.tokens,
        n_epochs=work.epochs,
        critic_epochs=work.critic_epochs,
        micro_batch_tokens=work.micro_batch_tokens,
        **PRECISIONS[work.precision],
    )
    assert isinstance(made, TokenPPO)
    return made


def start(model: PPO) -> tuple[PPO, Any]:
    """What `learn` does before its first rollout; without the logger's table."""
    _, callback = model._setup_learn(10**9, RLHFCallback())
    callback.on_training_start({}, {})
    return model, callback


def collect(model: PPO, callback: Any) -> None:
    """One rollout into the buffer, scored."""
    assert model.env is not None
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)


# Stock PPO ---------------------------------------------------------------------------------------


class FirstMinibatch(RolloutBuffer):
    """SB3's own buffer, whose epochs end after one minibatch."""

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """The first minibatch of a random order."""
        yield from itertools.islice(super().get(batch_size), 1)


def stock_update(work: Workload) -> Callable[[], float]:
    """A function: seconds of an update of stock PPO, most of them extrapolated.

    It samples a whole rollout, with stepwise scoring: SB3's buffer can't wait for its rewards. Then
    it trains on `STOCK_MINIBATCH` tokens of it, and that time is multiplied, since the thousands of
    tokens of all epochs cost the same each: a forward and backward of a whole sequence.
    """
    size = min(STOCK_MINIBATCH, work.tokens)
    model, callback = start(
        _model(
            PPO,
            work,
            "step",
            batch_size=size,
            n_epochs=1,
            gamma=1.0,
            rollout_buffer_class=FirstMinibatch,
        )
    )

    epoch = stock_epoch(model, size, work.tokens)
    return lambda: seconds_of(lambda: collect(model, callback)) + work.epochs * epoch()


def stock_epoch(model: PPO, size: int, tokens: int) -> Callable[[], float]:
    """A function: seconds of an epoch of one minibatch of `tokens`, extrapolated from `size`.

    Adam's step costs the same for a minibatch of any size: it is taken out and counted once.
    """
    watch = Stopwatch(str(model.device))
    watch.watch(model.policy.optimizer, "step", "Adam")
    watch.watch(model, "train", "the rest")

    def seconds() -> float:
        watch.seconds.clear()
        model.train()
        return watch.seconds["the rest"] * tokens / size + watch.seconds["Adam"]

    return seconds


# A peer ------------------------------------------------------------------------------------------


def add_peer_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--peer` and `--peer-script` to `parser`."""
    parser.add_argument("--peer", type=Path, help="the Python of a peer's environment")
    parser.add_argument("--peer-script", type=Path, help="the script that times the peer")


def parse_with_peer(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line; it ends with a sentence where only one of the peer's options is given."""
    arguments = parser.parse_args()
    if (arguments.peer is None) != (arguments.peer_script is None):
        parser.error("--peer and --peer-script go together")
    return arguments


def peer_update(work: Workload, python: Path, script: Path, updates: int) -> Callable[[], float]:
    """A function: seconds per update of `script`, run by `python` in a process of its own.

    Args:
        work: the script is told its models, sizes, epochs and precision.
        python: an interpreter that has what the script imports.
        script: takes `MODELS --batch --prompt --response --epochs --updates --minibatches`, and
            `--bf16` where the precision is any but float32; the last line that it prints is JSON
            with the `tokens_per_second` of all updates.
        updates: that it makes.
    """
    sizes = {"batch": work.batch, "prompt": work.prompt, "response": work.response}
    counts = {**sizes, "epochs": work.epochs, "updates": updates, "minibatches": 1}
    flags = [word for name, value in counts.items() for word in (f"--{name}", str(value))]
    command = [str(python), str(script), str(work.models), *flags, *_PEER_FLAGS[work.precision]]

    def seconds() -> float:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        return work.tokens / json.loads(done.stdout.strip().splitlines()[-1])["tokens_per_second"]

    return seconds


# Where our time goes -----------------------------------------------------------------------------


def breakdown(work: Workload, updates: int) -> dict[str, float]:
    """Stage → seconds, over `updates` updates after one that warms up."""
    model, callback = start(token_ppo(work))
    buffer: Any = model.rollout_buffer
    policy: Any = model.policy
    watch, accumulate_gradients = Stopwatch(work.device), Update.accumulate_gradients
    for owner, method, name in (
        (policy, "forward", "sampling: forward and draw"),
        (model.env, "step", "sampling: env.step"),
        (policy, "predict_values", "sampling: values after the last step"),
        (model, "collect_rollouts", "sampling: SB3's loop, callback, buffer"),
        (buffer.binding.scorer, "ref_log_probs", "scoring: reference"),
        (buffer.binding.scorer, "score", "scoring: reward model"),
        (buffer, "compute_returns_and_advantage", "advantages and packing"),
        (buffer, "minibatch", "advantages and packing"),
        (policy, "evaluate_actions", "optimisation: forward"),
        (Update, "accumulate_gradients", "optimisation: losses and backward"),
        (policy.optimizer, "step", "optimisation: Adam"),
        (model, "train", "optimisation: clipping, whitening, logs"),
    ):
        watch.watch(owner, method, name)
    try:
        for update in range(updates + 1):
            if update == 1:
                watch.seconds.clear()
            collect(model, callback)
            model.train()
    finally:
        Update.accumulate_gradients = accumulate_gradients  # type: ignore[method-assign]
    return dict(watch.seconds)
