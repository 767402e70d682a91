"""Memory of the buffer and of an update, and the time per token, as responses grow.

- Buffer: bytes per response token, ours and SB3's own, which keeps an observation per token.
- Update: the most memory that a process held which made models, a rollout and one epoch of one
  minibatch, over that of a process which stopped before the update (`memory_case.py`): as T grows,
  as the vocabulary grows, with micro-batches and without. What an update adds below the rollout's
  own maximum is not seen; gradients and Adam's state count. The trunk is that of `gpt2-4m`.
- The limit: 64 sequences of 512 tokens with a vocabulary of 50k, in micro-batches, are to stay
  below 4 GB, the whole process and its rollout included.
- Time per token of one epoch, at a constant number of tokens per update, over that at the smallest
  T; for SB3's own buffer extrapolated from a minibatch of 16 tokens.

Ratios: buffer, SB3's bytes over ours; update, peak over the peak without it; limit, peak over
4 GB; time, over ours at the smallest T.
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
from gymnasium import spaces
from memory_case import Case, rollout
from ppo_updates import FirstMinibatch, stock_epoch
from random_models import GPT2_4M, write_models
from reporting import Row, arguments_parser, medians, report, seconds_of, take_turns
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer

from tokenenv.language_model import quiet_loading

BUFFER = "rollout buffer: SB3's bytes per token over ours"
PEAK = "peak memory with an update over peak memory without"
LIMIT = "the limit: peak memory over 4 GB"
TIME = "time per token of one epoch over ours at the smallest T"
OURS, STOCK = "TokenPPO, packed buffer", "stock PPO, SB3's own buffer"
LIMIT_BYTES = 4e9
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured: the whole thing, or `--quick`."""

    responses: Sequence[int] = (64, 256, 1024)
    vocabularies: Sequence[int] = (2048, 12_800, 50_304)
    sequences: int = 16
    micro_batch_tokens: int = 512
    timed_responses: Sequence[int] = (64, 128, 256, 512, 1024)
    timed_tokens: int = 4096
    has_limit: bool = True


QUICK = Sizes((8,), (512,), 4, 64, (8, 16), 64, has_limit=False)
LIMIT_CASE, LIMIT_VOCABULARY = Case(64, 512, micro_batch_tokens=2048), 50_304


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
        before = measure(models, case)
        if vocabulary == smallest:
            ours = before["buffer"] / case.tokens
            stock = stock_bytes_per_token(case.prompt + response, vocabulary)
            buffers.append(
                {"table": BUFFER, "what": f"T = {response}", "ratio": stock / ours}
                | {"ours, bytes": ours, "SB3's, bytes": stock}
            )
        for micro in (None, sizes.micro_batch_tokens):
            with_update = dataclasses.replace(case, updates=True, micro_batch_tokens=micro)
            found = measure(models, with_update)
            peaks.append(_peak_row(PEAK, with_update, vocabulary, before, found))
    return buffers + peaks


def _peak_row(
    table: str, case: Case, vocabulary: int, before: dict[str, int], found: dict[str, int]
) -> Row:
    return {
        "table": table,
        "what": f"T = {case.response}, {case.sequences} sequences",
        "vocabulary": vocabulary,
        "micro_batch_tokens": case.micro_batch_tokens or "–",
        "ratio": found["peak"] / (before["peak"] if table == PEAK else LIMIT_BYTES),
        "without, MiB": before["peak"] / MIB,
        "with, MiB": found["peak"] / MIB,
        "added, MiB": (found["peak"] - before["peak"]) / MIB,
    }


def limit_rows(folder: Path) -> list[Row]:
    """The row of the limit."""
    models = models_of(folder, LIMIT_VOCABULARY)
    before = measure(models, LIMIT_CASE)
    found = measure(models, dataclasses.replace(LIMIT_CASE, updates=True))
    return [_peak_row(LIMIT, LIMIT_CASE, LIMIT_VOCABULARY, before, found)]


# Time --------------------------------------------------------------------------------------------


def time_rows(folder: Path, sizes: Sizes, repetitions: int) -> list[Row]:
    """Ours at every T and SB3's at every T, in turns."""
    models, stock_tokens = models_of(folder, sizes.vocabularies[0]), 16
    stock = {"batch_size": stock_tokens, "rollout_buffer_class": FirstMinibatch}
    cases: dict[str, Callable[[], float]] = {}
    for response in sizes.timed_responses:
        case = Case(max(1, sizes.timed_tokens // response), response)
        packed = rollout(models, case)
        single = rollout(models, case, PPO, "step", **stock)
        epochs: dict[str, Callable[[], float]] = {OURS: partial(seconds_of, packed.train)}
        size = min(stock_tokens, case.tokens)
        epochs[STOCK] = stock_epoch(single, size, case.tokens)
        for kind, epoch in epochs.items():
            cases[f"{kind}, T = {response}"] = partial(_per_token, epoch, case.tokens)
    seconds = medians(take_turns(cases, repetitions))
    unit = next(iter(seconds.values()))
    return [
        {"table": TIME, "what": name, "ratio": found / unit, "µs per token": 1e6 * found}
        for kind in (OURS, STOCK)
        for name, found in seconds.items()
        if name.startswith(kind)
    ]


def _per_token(epoch: Callable[[], float], tokens: int) -> float:
    return epoch() / tokens


def plot(rows: Sequence[Row], path: Path) -> None:
    """Time per token over T, ours and SB3's, as multiples of ours at the smallest T."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for kind, marker in ((OURS, "o"), (STOCK, "s")):
        own = [row for row in rows if row["table"] == TIME and row["what"].startswith(kind)]
        lengths = [int(row["what"].rpartition("= ")[2]) for row in own]
        axes.loglog(lengths, [row["ratio"] for row in own], marker=marker, label=kind)
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
        rows += limit_rows(folder) if sizes.has_limit else []
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
