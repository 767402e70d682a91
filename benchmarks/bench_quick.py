"""Is anything slower than it was? Ratios of now beside the recorded ones: `make bench-quick`.

Under 90 s on two cores. Every ratio is that of two things measured in turns within this run, by
their medians, so that a slow machine slows both; higher is better. One that falls more than 25 %
short of `benchmarks/recorded.json` is measured a second time, since a shared machine is noisy, and
the better of the two counts; if that falls short too, the exit status is 1 and a sentence says what
to do. `--record` writes the file anew, every ratio the median of three measurements: do it on a
quiet machine.

The models are random, of the shape `gpt2-4m`, in float32, on the CPU with two threads at the most.
What is compared, and how far it can be carried from one CPU to another:

- a whole update over the sum of its parts, scoring by the reference over a plain forward (both with
  activations fused on either side), and a packed update over SB3's own buffer: the same matrix
  products on both sides, so that the ratio says how many of them there are and what stands between;
  close on any CPU.
- sampling over `generate`: the same products as well, but the time between them is Python's, more
  of it on `generate`'s side; a CPU fast at one and slow at the other moves the ratio somewhat.
- steps of the environment over CartPole's: no model, NumPy on one side and the interpreter on the
  other; the Python version moves it more than the CPU.

Left out is bfloat16 over float32: with AMX it halves the update and more, without it is a loss, so
that a figure recorded on one CPU says nothing about another (`bench_ppo.py` measures it). Left out
are the peers, too: they need an environment of their own.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import regressions
import torch
from bench_env import cases as env_cases
from bench_rollout import ByGenerate, InEnvironment, end_tokens
from memory_case import Case, rollout
from ppo_parts import SumOfParts
from ppo_updates import FirstMinibatch, Workload, stock_epoch, token_ppo
from random_models import GPT2_4M, ModelShape, environment, write_models
from reporting import (
    arguments_parser,
    medians,
    processor,
    report,
    seconds_of,
    take_turns,
    with_versions,
)
from stable_baselines3 import PPO

from tokenenv.models import quiet_loading
from tokenenv.rewards import Episode

RECORDED = Path(__file__).parent / "recorded.json"
TABLE = "ratios now over the recorded ones; below 0.75 is a failure"

Times = Callable[[], float]
"""Seconds of something."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured: the real thing, or `--quick`, which shows no more than that it runs."""

    shape: ModelShape = GPT2_4M
    batch: int = 64
    prompt: int = 16
    response: int = 32
    update_batch: int = 32
    epochs: int = 2
    packed_sequences: int = 16
    envs: int = 256
    env_steps: int = 96
    repetitions: int = 5


QUICK = Sizes(ModelShape(256, 64, 2), 4, 16, 8, 4, 1, 4, 8, 16, 1)


# Functions that give two measurements: of what ours is compared with, and of ours ---------------


def update(folder: Path, sizes: Sizes) -> tuple[Times, Times]:
    """A whole update: the sum of its parts, and ours."""
    work = Workload(folder, sizes.update_batch, sizes.prompt, sizes.response, sizes.epochs)
    model = token_ppo(work)
    return SumOfParts(work, is_fused=True), lambda: seconds_of(lambda: model.learn(work.tokens))


def sampling(folder: Path, sizes: Sizes, varies: bool) -> tuple[Times, Times]:
    """A useful token: `generate`, and the policy in the environment."""
    ends = end_tokens(sizes.shape.vocabulary, sizes.response) if varies else ()
    shape = (folder, sizes.batch, sizes.prompt, sizes.response, ends)
    return ByGenerate(*shape, device="cpu"), InEnvironment(*shape, device="cpu")


def packed(folder: Path, sizes: Sizes) -> tuple[Times, Times]:
    """One epoch over the same tokens: SB3's own buffer, extrapolated from 16 tokens, and ours."""
    case, tokens = Case(sizes.packed_sequences, sizes.response, prompt=sizes.prompt), 16
    ours = rollout(folder, case)
    stock = {"batch_size": tokens, "rollout_buffer_class": FirstMinibatch}
    theirs = rollout(folder, case, PPO, "step", **stock)
    return stock_epoch(theirs, tokens, case.tokens), lambda: seconds_of(ours.train)


def scoring(folder: Path, sizes: Sizes) -> tuple[Times, Times]:
    """Log-probabilities of all responses: a plain forward, and the scorer's reference."""
    work = Workload(folder, sizes.batch, sizes.prompt, sizes.response)
    parts = SumOfParts(work, is_fused=True)
    responses = torch.randint(sizes.shape.vocabulary, (sizes.batch, sizes.response))
    tokens = torch.cat([parts.prompts, responses], dim=1)
    env = environment(folder, 1, sizes.prompt, sizes.response, scoring="deferred", device="cpu")
    episodes = [
        Episode(p.numpy(), r.numpy(), False) for p, r in zip(parts.prompts, responses, strict=True)
    ]
    scorer = env.env.scorer
    return (
        lambda: seconds_of(lambda: parts.reference_log_probs(tokens)),
        lambda: seconds_of(lambda: scorer.ref_log_probs(episodes)),
    )


def env_steps(folder: Path, sizes: Sizes) -> tuple[Times, Times]:
    """Steps without models: CartPole's in a SyncVectorEnv, and ours."""
    made = env_cases(sizes.envs, sizes.env_steps)
    return made["CartPole-v1, SyncVectorEnv"], made["TokenVectorEnv"]


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as fast ours is.

    Attributes:
        make: (folder with models, sizes) → the two measurements, theirs and ours.
        look_at: the command that shows where the time goes.
    """

    make: Callable[[Path, Sizes], tuple[Times, Times]]
    look_at: str


_PPO, _ROLLOUT = "python benchmarks/bench_ppo.py", "python benchmarks/bench_rollout.py"
_ENV, _MEMORY = "python benchmarks/bench_env.py", "python benchmarks/bench_memory.py"

RATIOS: dict[str, Ratio] = {
    "whole update over the sum of its parts": Ratio(update, _PPO),
    "sampling over generate, all lengths T": Ratio(
        functools.partial(sampling, varies=False), _ROLLOUT
    ),
    "sampling over generate, lengths vary": Ratio(
        functools.partial(sampling, varies=True), _ROLLOUT
    ),
    "packed update over SB3's own buffer": Ratio(packed, _MEMORY),
    "reference scoring over a plain forward": Ratio(scoring, _PPO),
    "env steps over CartPole's in SyncVectorEnv": Ratio(env_steps, _ENV),
}
"""Name, as in the recorded file → what is measured; a new one is a line here, and `--record`."""


def measurement(ratio: Ratio, folder: Path, sizes: Sizes) -> Callable[[], float]:
    """A function that measures it; what it needs is made, and warmed up, at its first call."""

    @functools.cache
    def made() -> dict[str, Times]:
        theirs, ours = ratio.make(folder, sizes)
        cases = {"theirs": theirs, "ours": ours}
        take_turns(cases, 1)
        return cases

    def measure() -> float:
        found = medians(take_turns(made(), sizes.repetitions))
        return found["theirs"] / found["ours"]

    return measure


def main(arguments: argparse.Namespace) -> None:
    """Measure, and compare or record; exits with 1 where a ratio has fallen short."""
    torch.manual_seed(0)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    sizes = QUICK if arguments.quick else Sizes(repetitions=arguments.repetitions)
    models = "gpt2-4m" if sizes.shape == GPT2_4M else "tiny"
    setting = {"models": models, "repetitions": sizes.repetitions}
    recorded: dict[str, float] = {}
    if not arguments.record:
        try:
            records = regressions.load(arguments.recorded)
        except ValueError as error:
            sys.exit(str(error))
        recorded = regressions.ratios_for(records, processor())
    with tempfile.TemporaryDirectory() as name, quiet_loading():
        folder = write_models(Path(name), sizes.shape)
        measures = {what: measurement(ratio, folder, sizes) for what, ratio in RATIOS.items()}
        if arguments.record:
            ratios = {w: statistics.median(m() for _ in range(3)) for w, m in measures.items()}
            regressions.write(arguments.recorded, ratios, with_versions(setting), processor())
            recorded = regressions.load(arguments.recorded)[processor()]
            measures = {what: functools.partial(ratios.__getitem__, what) for what in ratios}
        compared = regressions.compare(recorded, measures)
    report(regressions.rows(compared, TABLE), setting, arguments.json)
    failures = regressions.failures(compared, {w: ratio.look_at for w, ratio in RATIOS.items()})
    if failures:
        sys.exit("\n".join(failures))


def _arguments() -> argparse.Namespace:
    parser = arguments_parser(__doc__, repetitions=5)
    parser.add_argument("--record", action="store_true", help="write the ratios anew")
    parser.add_argument("--recorded", type=Path, default=RECORDED, help="the file of the ratios")
    return parser.parse_args()


if __name__ == "__main__":
    main(_arguments())
