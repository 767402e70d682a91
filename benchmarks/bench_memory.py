"""Memory of the buffer and of an update, and the time per token, as responses grow.

- Buffer: bytes per response token, ours and SB3's own, which keeps an observation per token.
- Update: the most memory that a process held which made models, a rollout and one epoch of one
  minibatch, over what it had held before the update (`memory_case.py`): as T grows, as the
  vocabulary grows, with micro-batches and without. What an update adds below the rollout's own
  maximum is not seen; gradients and Adam's state count. The trunk is that of `gpt2-4m`.
- The limit: 64 sequences of 512 tokens with a vocabulary of 50k, in micro-batches, are to stay
  below 4 GB: the models, the rollout and the update, stage by stage, the whole process included.
- Time per token of one epoch, at a constant number of tokens per update, over ours at the smallest
  T: ours; the same by plain transformers and torch, as in the sum of parts (`ppo_parts.py`); and
  that for SB3's own buffer, extrapolated from a minibatch of 16 tokens.

Attention costs more per token the longer the sequence is. Beside the times stands what the growth
would be were nothing but that to grow, by counting multiplications: in a GPT-2 of width d and L
layers, a token costs 12·d²·L in the layers' matrices and d·V in the output layer; attention, which
scores n keys and mixes n values for the token at position n, costs 2·d·n·L, and thus d·(S+1)·L on
average over a sequence of S = P+T−1 tokens. (The backward pass doubles all of it alike.) With a for
attention's share of the sum at the smallest T, the growth is 1 + a·((S+1)/(S₀+1) − 1), a straight
line in T. It counts a multiplication in attention like one in a matrix, although a CPU is slower at
the first: plain transformers shows how much. That the prompt's tokens, which cost as much as the
response's, are shared by more tokens as T grows, works the other way and is left out.

Ratios: buffer, SB3's bytes over ours; update, peak over the peak before it; limit, peak over 4 GB;
time, over ours at the smallest T.

`--quick` shows that it runs: tiny shapes, and buffer and update in this process.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from memory_case import Case, measured, rollout
from ppo_parts import SumOfParts
from ppo_updates import FirstMinibatch, Workload, stock_epoch
from random_models import GPT2_4M, ModelShape, write_models
from reporting import Row, arguments_parser, medians, report, seconds_of, take_turns
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer

from tokenenv.models import quiet_loading

BUFFER = "rollout buffer: SB3's bytes per token over ours"
PEAK = "peak memory with an update over peak memory before it"
LIMIT = "the limit: peak memory over 4 GB, stage by stage"
TIME = "time per token of one epoch over ours at the smallest T"
OURS, STOCK = "TokenPPO, packed buffer", "stock PPO, SB3's own buffer"
PLAIN, ATTENTION = "plain transformers", "attention's own share, counted"
LIMIT_BYTES = 4e9
MIB = 2**20


LIMIT_CASE = Case(64, 512, micro_batch_tokens=2048)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured: the whole thing, or `--quick`."""

    responses: Sequence[int] = (64, 256, 1024)
    vocabularies: Sequence[int] = (2048, 12_800, 50_304)
    sequences: int = 16
    micro_batch_tokens: int = 512
    timed_responses: Sequence[int] = (64, 128, 256, 512, 1024)
    timed_tokens: int = 4096
    limit: Case = LIMIT_CASE
    limit_vocabulary: int = 50_304


QUICK = Sizes((8,), (512,), 4, 64, (8, 16), 64, Case(4, 16, micro_batch_tokens=32), 1024)


def models_of(folder: Path, vocabulary: int) -> Path:
    """The models of that vocabulary, written when they are first asked for."""
    path = folder / str(vocabulary)
    if not path.exists():
        write_models(path, dataclasses.replace(GPT2_4M, vocabulary=vocabulary))
    return path


def measure(models: Path, case: Case) -> dict[str, int]:
    """What a fresh process found: see `memory_case.py`.

    A child starts with its parent's maximum on some systems, so that this process must be small:
    all cases are measured before it computes anything itself.
    """
    script = Path(__file__).parent / "memory_case.py"
    words = [sys.executable, str(script), str(models), json.dumps(dataclasses.asdict(case))]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{case} failed ({done.returncode}):\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


# Buffer and peak ---------------------------------------------------------------------------------


def stock_bytes_per_token(width: int, vocabulary: int) -> float:
    """Of SB3's own buffer, for observations of P+T = `width` columns."""
    space = spaces.Box(-1, vocabulary - 1, (width,), np.int64)
    buffer = RolloutBuffer(8, space, spaces.Discrete(vocabulary), "cpu")
    arrays = [value for value in vars(buffer).values() if isinstance(value, np.ndarray)]
    return sum(array.nbytes for array in arrays) / 8


def memory_rows(folder: Path, sizes: Sizes) -> list[Row]:
    """Buffer and peak as T grows at the smallest vocabulary, then the other way round."""
    smallest, shortest = sizes.vocabularies[0], sizes.responses[0]
    shapes = [(t, smallest) for t in sizes.responses]
    shapes += [(shortest, v) for v in sizes.vocabularies[1:]]
    buffers: list[Row] = []
    peaks: list[Row] = []
    for response, vocabulary in shapes:
        models, case = models_of(folder, vocabulary), Case(sizes.sequences, response)
        for micro in (None, sizes.micro_batch_tokens):
            case = dataclasses.replace(case, micro_batch_tokens=micro)
            found = measured(models, case) if sizes is QUICK else measure(models, case)
            peaks.append(
                {
                    "table": PEAK,
                    "what": f"T = {response}, {case.sequences} sequences",
                    "vocabulary": vocabulary,
                    "micro_batch_tokens": micro or "–",
                    "ratio": found["update"] / found["rollout"],
                    "rollout, MiB": found["rollout"] / MIB,
                    "with update, MiB": found["update"] / MIB,
                    "added, MiB": (found["update"] - found["rollout"]) / MIB,
                }
            )
        if vocabulary == smallest:
            ours = found["buffer"] / case.tokens
            stock = stock_bytes_per_token(case.prompt + response, vocabulary)
            buffers.append(
                {"table": BUFFER, "what": f"T = {response}", "ratio": stock / ours}
                | {"ours, bytes": ours, "SB3's, bytes": stock}
            )
    return buffers + peaks


def limit_rows(folder: Path, case: Case, vocabulary: int) -> list[Row]:
    """A row for each stage: the most memory that the process held until its end."""
    found = measure(models_of(folder, vocabulary), case)
    rows, before = [], 0
    for stage in ("models", "rollout", "update"):
        rows.append(
            {
                "table": LIMIT,
                "what": stage if stage == "models" else f"… and the {stage}",
                "sequences": case.sequences,
                "T": case.response,
                "vocabulary": vocabulary,
                "micro_batch_tokens": case.micro_batch_tokens or "–",
                "ratio": found[stage] / LIMIT_BYTES,
                "peak, MiB": found[stage] / MIB,
                "added, MiB": (found[stage] - before) / MIB,
            }
        )
        before = found[stage]
    return rows


# Time --------------------------------------------------------------------------------------------


def time_rows(folder: Path, sizes: Sizes, repetitions: int) -> list[Row]:
    """Ours, plain transformers' and SB3's at every T, in turns; and attention's share."""
    models, stock_tokens = models_of(folder, sizes.vocabularies[0]), 16
    stock = {"batch_size": stock_tokens, "rollout_buffer_class": FirstMinibatch}
    cases: dict[str, Callable[[], float]] = {}
    for response in sizes.timed_responses:
        case = Case(max(1, sizes.timed_tokens // response), response)
        packed = rollout(models, case)
        single = rollout(models, case, PPO, "step", **stock)
        size = min(stock_tokens, case.tokens)
        epochs: dict[str, Callable[[], float]] = {
            OURS: partial(seconds_of, packed.train),
            PLAIN: plain_epoch(models, case),
            STOCK: stock_epoch(single, size, case.tokens),
        }
        for kind, epoch in epochs.items():
            cases[f"{kind}, T = {response}"] = partial(_per_token, epoch, case.tokens)
    seconds = medians(take_turns(cases, repetitions))
    unit = next(iter(seconds.values()))
    rows: list[Row] = [
        {"table": TIME, "what": name, "ratio": found / unit, "µs per token": 1e6 * found}
        for kind in (OURS, PLAIN, STOCK)
        for name, found in seconds.items()
        if name.startswith(kind)
    ]
    shape = dataclasses.replace(GPT2_4M, vocabulary=sizes.vocabularies[0])
    first = sizes.timed_responses[0]
    return rows + [
        {
            "table": TIME,
            "what": f"{ATTENTION}, T = {response}",
            "ratio": attention_growth(shape, case.prompt, first, response),
            "µs per token": "–",
        }
        for response in sizes.timed_responses
    ]


def plain_epoch(models: Path, case: Case) -> Callable[[], float]:
    """A function: seconds of forward, backward and Adam's step by transformers and torch alone."""
    parts = SumOfParts(Workload(models, case.sequences, case.prompt, case.response))
    vocabulary = parts.actor.config.vocab_size
    responses = torch.randint(vocabulary, (case.sequences, case.response))
    tokens = torch.cat([parts.prompts, responses], dim=1)
    old = parts.reference_log_probs(tokens)
    return lambda: seconds_of(lambda: parts.epoch(tokens, old))


def attention_growth(shape: ModelShape, prompt: int, first: int, response: int) -> float:
    """The cost per token at T = `response` over that at `first`, were only attention to grow."""

    def attention(tokens: int) -> int:
        return shape.width * (prompt + tokens) * shape.layers

    matrices = 12 * shape.width**2 * shape.layers + shape.width * shape.vocabulary
    share = attention(first) / (matrices + attention(first))
    return 1 + share * (attention(response) / attention(first) - 1)


def _per_token(epoch: Callable[[], float], tokens: int) -> float:
    return epoch() / tokens


def plot(rows: Sequence[Row], path: Path) -> None:
    """Time per token over T, as multiples of ours at the smallest T, and attention's share."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for kind, style in ((OURS, "o-"), (PLAIN, "^-"), (STOCK, "s-"), (ATTENTION, "k--")):
        own = [row for row in rows if row["table"] == TIME and row["what"].startswith(kind)]
        lengths = [int(row["what"].rpartition("= ")[2]) for row in own]
        axes.loglog(lengths, [row["ratio"] for row in own], style, label=kind)
    axes.set_xlabel("tokens of a response, T")
    axes.set_ylabel("time per token of one epoch\n(ours at the smallest T = 1)")
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main(arguments: argparse.Namespace) -> None:
    """Measure, print the tables, and write JSON and the plot where asked."""
    sizes = QUICK if arguments.quick else Sizes()
    repetitions = 1 if arguments.quick else arguments.repetitions
    with tempfile.TemporaryDirectory() as name, quiet_loading():
        folder = Path(name)
        rows = memory_rows(folder, sizes)
        rows += limit_rows(folder, sizes.limit, sizes.limit_vocabulary)
        rows += time_rows(folder, sizes, repetitions)
    report(rows, {"repetitions": repetitions}, arguments.json)
    if arguments.plot is not None:
        plot(rows, arguments.plot)


def _arguments() -> argparse.Namespace:
    parser = arguments_parser(__doc__, repetitions=3)
    parser.add_argument("--plot", type=Path, help="draw the time per token here")
    return parser.parse_args()


if __name__ == "__main__":
    main(_arguments())
