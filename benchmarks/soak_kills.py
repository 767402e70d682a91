"""A run that is killed again and again, and resumed each time, beside one that nobody kills.

    python benchmarks/soak_kills.py --kills 20

Each process is killed by SIGKILL at a random moment of a phase that is drawn: while it samples, in
an update, while it writes a checkpoint. Then `train --resume` goes on. After every kill it is
checked that

- the newest checkpoint is whole, and at most one interval of updates older than the last one,
- `metrics.jsonl` has whole lines alone, and after resuming no update twice;

and at the end, that metrics (clocks apart), responses and weights are those of the run that nobody
killed, bit for bit. A run that is killed before its first checkpoint begins anew. The exit status
is 1 where anything differs.

The processes are forked from one that has imported everything, which takes longer than to train.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rich.console import Console
from safetensors.numpy import load_file

from agents.checkpoints import Checkpoint, newest_checkpoint
from agents.config import TrainConfig
from agents.ppo import TokenPPO, whole_state
from agents.runs import training
from agents.runs.resumed_settings import settings_of_run
from tokenenv.tasks import load_task

PHASES = {"s": "sampling", "u": "update", "c": "writing a checkpoint"}
CLOCKS = ("time/fps", "time/time_elapsed", "time/tokens_per_second")
EVERY = 2
"""Updates between two checkpoints."""

LIMIT = 300.0
"""Seconds after which a process that has not come as far as wanted is taken to hang."""


def settings(out: Path, tokens: int) -> TrainConfig:
    """A small run with most of what has a state: groups, carried episodes, a moving β."""
    return TrainConfig(
        **{"out": out, "task": "exact", "device": "cpu", "total_tokens": tokens, "num_threads": 1},
        **{"n_envs": 16, "n_steps": 8, "batch_size": 64, "n_epochs": 2, "cut": "carry"},
        **{"advantage_estimator": "rloo", "group_size": 3, "kl_controller": "adaptive"},
        **{"kl_target": 0.5, "eval_prompts": 4, "eval_responses": 8, "eval_every": 4},
        **{"explain_every": 8, "explain_prompts": 1, "checkpoint_every": EVERY},
    )


def train_in_child(config: TrainConfig, phases: int) -> None:
    """Train; write a letter for every phase that begins."""
    devnull = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(devnull, descriptor)

    def told(letter: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            os.write(phases, letter.encode())
            return function(*args, **kwargs)

        return call

    TokenPPO.collect_rollouts = told("s", TokenPPO.collect_rollouts)  # type: ignore[method-assign]
    TokenPPO.train = told("u", TokenPPO.train)  # type: ignore[method-assign]
    whole_state.write_checkpoint = told("c", whole_state.write_checkpoint)
    training.draw_curves = lambda *_: None  # type: ignore[assignment]
    training.TrainingRun(config, Console(quiet=True)).train()


def start(config: TrainConfig) -> tuple[int, int]:
    """A process that trains; its id, and where its phases are read."""
    read_end, write_end = os.pipe()
    process = os.fork()
    if process == 0:
        status = 1
        try:
            os.close(read_end)
            train_in_child(config, write_end)
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    return process, read_end


def kill_in(process: int, phases: int, letter: str, count: int, delay: float) -> bool:
    """Kill a process some time after a phase has begun `count` times; False where it ended first.

    Raises:
        RuntimeError: it hangs, or has failed.
    """
    deadline, is_killed = time.monotonic() + LIMIT, False
    while True:
        if not select.select([phases], [], [], max(0.0, deadline - time.monotonic()))[0]:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise RuntimeError(f"a process did not come to {PHASES[letter]} within {LIMIT:g} s")
        begun = os.read(phases, 1).decode()
        count -= begun == letter
        if not begun:
            break
        if count <= 0:
            time.sleep(delay)
            os.kill(process, signal.SIGKILL)
            is_killed = True
            break
    os.close(phases)
    _, status = os.waitpid(process, 0)
    if not is_killed and status:
        raise RuntimeError(f"a process failed with status {status}")
    return os.WIFSIGNALED(status)


def rows_of(out: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The rows of a log without its clocks; a torn line raises ValueError."""
    path = out / name
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in rows]


def wrong_after_kill(out: Path) -> tuple[list[str], Checkpoint | None]:
    """What is wrong with a folder whose process was killed; and the newest checkpoint."""
    said: list[str] = []
    newest = newest_checkpoint(out / "checkpoints", said.append)
    wrong = [f"a checkpoint is not whole: {text}" for text in said]
    steps = [row["time/iterations"] for row in rows_of(out) if "time/iterations" in row]
    if steps != list(range(1, len(steps) + 1)):
        wrong.append(f"metrics.jsonl has the updates {steps}")
    begun, updates = len(steps), newest.updates if newest else 0
    if begun - updates > EVERY + 1:  # the row of an update is written before it
        wrong.append(f"{begun} updates had begun, and the newest checkpoint is of {updates}")
    return wrong, newest


def differences(out: Path, whole: Path) -> list[str]:
    """What a run that was killed has of other content than one that was not."""
    wrong = [
        f"{name} differs"
        for name in ("metrics.jsonl", "samples.jsonl")
        if rows_of(out, name) != rows_of(whole, name)
    ]
    here, there = (load_file(root / "policy" / "model.safetensors") for root in (out, whole))
    if here.keys() != there.keys() or any((here[n] != there[n]).any() for n in here):
        wrong.append("weights differ")
    return wrong


def soak(folder: Path, kills: int, tokens: int, seed: int, console: Console) -> list[str]:
    """Kill and resume; what was wrong."""
    rng, wrong = random.Random(seed), list[str]()
    whole, out = folder / "whole", folder / "killed"
    process, phases = start(settings(whole, tokens))
    kill_in(process, phases, "s", 10**9, 0.0)
    config, done = settings(out, tokens), 0
    while True:
        process, phases = start(config)
        letter = rng.choice(list(PHASES)) if done < kills else "s"
        count = rng.randint(1, 5) if done < kills else 10**9
        if not kill_in(process, phases, letter, count, rng.uniform(0.0, 0.1)):
            if done >= kills:
                break
            wrong += differences(out, whole)  # it was too quick: another one
            config = dataclasses.replace(settings(out, tokens), overwrite=True)
            continue
        done += 1
        told, newest = wrong_after_kill(out)
        wrong += [f"kill {done}, while {PHASES[letter]}: {text}" for text in told]
        begun = sum("time/iterations" in row for row in rows_of(out))
        updates = newest.updates if newest else 0
        console.print(
            f"kill {done:>2} while {PHASES[letter]:<20} {begun:>3} updates begun, newest "
            f"checkpoint of {updates:>3}"
        )
        if newest is None:
            config = dataclasses.replace(settings(out, tokens), overwrite=True)
        else:
            config = dataclasses.replace(settings_of_run(out), resume=out)
    return wrong + differences(out, whole)


def main() -> int:
    """Soak, and say what was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=8192, help="of the whole run, 128 an update")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    load_task("exact")
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as folder:
        wrong = soak(Path(folder), arguments.kills, arguments.tokens, arguments.seed, console)
    for text in wrong:
        console.print(text, markup=False)
    console.print(f"{arguments.kills} kills: {'as it was' if not wrong else f'{len(wrong)} wrong'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
