"""A reward model on human preferences against a peer's: accuracy on the same pairs, and speed.

PAIRS is a file of preference pairs, such as the harmless-base split of hh-rlhf. For every split the
prompts of it are drawn anew: `--held-out` of them, with all their pairs, are held out, and the
pairs of the others, `--training` at most, are trained on. Pairs of more than `--max-tokens` tokens
lose the beginning of their prompt. Both sides start from one and the same classifier, the trunk of
`--lm` with a random head, and get the same token ids, the same number of epochs and no pair to
choose weights by: they keep their last weights.

- Ours is `fit_reward_model` with the defaults of `tokenrlhf reward-model`, in float32.
- The peer, where `--peer` gives the Python of its environment, is `--peer-script`: it is run as
  `PYTHON SCRIPT MODEL PAIRS.json --epochs … --learning-rate … --batch … --seed …`, and prints as
  its last line JSON with `seconds` and `cpu_seconds` of its training and `rewards` of the held-out
  pairs. Its clocks start with its training.

Speed is the ratio of the times of a split's two trainings, which follow one another, ours first in
every other split. The CPU time is that of the process: other processes on the machine disturb it
less than the wall time. Differences of accuracy are taken per split; the interval is Student's over
the splits, which share most of their pairs, so that it is somewhat too narrow. "The shorter wins"
stands beside. `--keep FILE` keeps each split's results: a second call goes on where it ended.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from ppo_updates import add_peer_arguments, parse_with_peer
from reporting import Row, arguments_parser, report

from agents.runs.reward_model_config import RewardModelConfig
from tokenenv.data import read_pairs
from tokenenv.models import quiet_loading
from tokenenv.rewards import (
    RewardTrainingSettings,
    TokenPair,
    fit_reward_model,
    new_reward_model,
    truncated_pairs,
)

ACCURACY = "accuracy on the held-out pairs"
SPEED = "how many times as fast as the peer the training is"
INSTALL = (
    "--peer and --peer-script name a peer to compare with, which needs an environment of its own: "
    "make bench-trl makes one for TRL's (.venv-trl/bin/python, benchmarks/trl_reward.py)."
)

Result = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Split:
    """Pairs to train on and pairs to judge by, without a common prompt."""

    training: list[TokenPair]
    held_out: list[TokenPair]

    @classmethod
    def draw(cls, pairs: list[TokenPair], seed: int, held_out: int, training: int) -> Split:
        """Draw the prompts.

        Args:
            pairs: all of them.
            seed: of the drawing.
            held_out: prompts.
            training: pairs at most.
        """
        rng = np.random.default_rng(seed)
        prompts = sorted({pair.prompt for pair in pairs})
        chosen = {prompts[i] for i in rng.permutation(len(prompts))[:held_out]}
        rest = [pair for pair in pairs if pair.prompt not in chosen]
        rest = [rest[i] for i in rng.permutation(len(rest))[:training]]
        return cls(rest, [pair for pair in pairs if pair.prompt in chosen])

    def as_json(self) -> dict[str, Any]:
        """Token ids, for a peer."""
        return {
            name: [[pair.chosen.tolist(), pair.rejected.tolist()] for pair in pairs]
            for name, pairs in (("training", self.training), ("held_out", self.held_out))
        }


def accuracy(rewards: np.ndarray) -> float:
    """Share of (B, 2) rewards of chosen and rejected that are in this order; equal ones count ½."""
    difference = rewards[:, 0] - rewards[:, 1]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def shorter_wins(pairs: list[TokenPair]) -> float:
    """The accuracy of preferring the response with fewer tokens."""
    return accuracy(np.array([[-len(pair.chosen), -len(pair.rejected)] for pair in pairs]))


def ours(split: Split, seed: int, arguments: argparse.Namespace) -> Result:
    """Train and judge ours."""
    defaults = RewardModelConfig(pairs=Path("-"), base="-", out=Path("-")).training()
    settings = RewardTrainingSettings(
        **{**defaults, "epochs": arguments.epochs, "early_stopping": False, "seed": seed}
    )
    model = new_reward_model(str(arguments.lm), seed=seed)
    start, start_cpu = time.perf_counter(), time.process_time()
    fit_reward_model(split.training, model, settings)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    sides = [[pair.chosen for pair in split.held_out], [pair.rejected for pair in split.held_out]]
    rewards = np.stack([model.raw_rewards(side) for side in sides], axis=1)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "accuracy": accuracy(rewards)}


def peer(split: Split, seed: int, arguments: argparse.Namespace) -> Result:
    """Train and judge the peer's, in a process of its own, from the same weights.

    Raises:
        SystemExit: it failed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        new_reward_model(str(arguments.lm), seed=seed).save_pretrained(folder / "model")
        (folder / "pairs.json").write_text(json.dumps(split.as_json()), encoding="utf-8")
        command = [str(arguments.peer), str(arguments.peer_script)]
        command += [str(folder / "model"), str(folder / "pairs.json")]
        for option in ("epochs", "learning_rate", "batch"):
            command += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
        done = subprocess.run([*command, "--seed", str(seed)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}\n{INSTALL}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    rewards = np.array(found["rewards"])
    return {
        **{name: found[name] for name in ("seconds", "cpu_seconds")},
        "accuracy": accuracy(rewards),
    }


def measure(pairs: list[TokenPair], arguments: argparse.Namespace) -> list[Result]:
    """The results of every split."""
    kept = arguments.keep
    results = json.loads(kept.read_text(encoding="utf-8")) if kept and kept.is_file() else []
    for seed in range(arguments.seed + len(results), arguments.seed + arguments.splits):
        split = Split.draw(pairs, seed, arguments.held_out, arguments.training)
        sides = {"ours": ours, **({"peer": peer} if arguments.peer else {})}
        names = list(sides)[:: 1 if seed % 2 == 0 else -1]
        result: Result = {name: sides[name](split, seed, arguments) for name in names}
        result |= {"seed": seed, "shorter wins": shorter_wins(split.held_out)}
        result |= {"training": len(split.training), "held out": len(split.held_out)}
        results.append(result)
        if kept:
            kept.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def rows_of(results: list[Result]) -> list[Row]:
    """Rows for the accuracies, their difference and the speed."""
    who = {"ours": "ours", "peer": "the peer"}
    rows: list[Row] = []
    for name in [name for name in who if name in results[0]]:
        values = [result[name]["accuracy"] for result in results]
        rows.append(_accuracy_row(who[name], values))
    shorter = [result["shorter wins"] for result in results]
    rows.append(_accuracy_row("the shorter wins", shorter))
    if "peer" not in results[0]:
        return rows
    difference = [r["ours"]["accuracy"] - r["peer"]["accuracy"] for r in results]
    rows.append(_accuracy_row("ours − the peer", difference))
    for clock, what in (("cpu_seconds", "CPU time"), ("seconds", "wall time")):
        ratios = [result["peer"][clock] / result["ours"][clock] for result in results]
        rows.append(
            {
                "table": SPEED,
                "what": what,
                "ratio": float(np.median(ratios)),
                "least": min(ratios),
                "most": max(ratios),
                "ours, s": float(np.median([r["ours"][clock] for r in results])),
                "the peer, s": float(np.median([r["peer"][clock] for r in results])),
            }
        )
    return rows


def _accuracy_row(what: str, values: list[float]) -> Row:
    """Mean and 95 % interval over the splits; without a second one there is no interval."""
    low = high = mean = float(np.mean(values))
    if len(values) > 1 and np.std(values) > 0:
        error = float(scipy.stats.sem(values))
        low, high = scipy.stats.t.interval(0.95, len(values) - 1, mean, error)
    return {
        "table": ACCURACY,
        "what": what,
        "mean": f"{mean:.3f}",
        "95 % interval": f"{low:.3f} to {high:.3f}",
        "splits": " ".join(f"{value:.3f}" for value in values),
    }


def main(arguments: argparse.Namespace) -> None:
    """Measure, print the tables, and write JSON where asked."""
    if arguments.quick:
        arguments.training, arguments.held_out, arguments.epochs, arguments.splits = 8, 4, 1, 2
    with quiet_loading():
        model = new_reward_model(str(arguments.lm))
        pairs, cut = truncated_pairs(read_pairs(arguments.pairs), model, arguments.max_tokens)
        for note in cut.notes:
            sys.stdout.write(f"{note}\n")
        results = measure(pairs, arguments)
    if arguments.peer is None:
        sys.stdout.write(f"no peer: {INSTALL}\n")
    names = ["epochs", "max_tokens", "splits", "seed", "learning_rate", "batch"]
    setting = {name: getattr(arguments, name) for name in names}
    setting |= {name: results[0][name] for name in ("training", "held out")}
    report(rows_of(results), setting, arguments.json)


def _arguments() -> argparse.Namespace:
    parser = arguments_parser(__doc__, repetitions=1)
    parser.add_argument("pairs", type=Path, help="file of preference pairs")
    parser.add_argument("--lm", type=Path, required=True, help="folder of the causal LM")
    sizes = {"training": 1900, "held-out": 400, "epochs": 2, "splits": 5, "seed": 0}
    for name, default in {**sizes, "max-tokens": 512}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="the peer's")
    parser.add_argument("--batch", type=int, default=8, help="the peer's pairs per step")
    parser.add_argument("--keep", type=Path, help="keep each split's results here, and go on")
    add_peer_arguments(parser)
    arguments = parse_with_peer(parser)
    if arguments.peer is not None and not arguments.peer.is_file():
        parser.error(f"--peer {arguments.peer} is no file. {INSTALL}")
    return arguments


if __name__ == "__main__":
    main(_arguments())
