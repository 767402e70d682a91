"""Training with two processes of one thread each against one process of one thread.

Every process has as many environments and as many tokens of a minibatch, so two of them do twice
the work between two steps of the optimiser. A case is started as `torchrun` starts it. Turns
alternate, and the table has medians:

- Throughput: tokens per second of two over those of one; 2 is the most. It needs two processors
  that nobody else uses.
- Per CPU-second: tokens of a rank per second of its processor's time, over those of one process.
  What it falls short of 1 is what ranks do for each other, and it stays the same on a busy machine.
- Talking: how long the all-reduce of one gradient takes, and the bytes that it moves, as a share
  of the time of a step. Of the time that a rank waits for the other, no share is in it.

`--quick` shows that it runs, with a tiny model.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from random_models import ModelShape, random_prompts, write_models
from reporting import Row, arguments_parser, medians, report, take_turns

from agents import LMActorCriticPolicy, TokenPPO, make_vec_env
from agents.scaling import launched_ranks
from tokenenv.models import load_tokenizer, quiet_loading

SHAPES = {
    "tiny": ModelShape(vocabulary=64, width=64, layers=1, positions=64),
    "4m": ModelShape(),
    "15m": ModelShape(vocabulary=4096, width=384, layers=8, positions=1088),
}
TABLE = "processes of one thread each, every one with as many environments"


def lengths(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward that costs nothing."""
    return [float(len(response)) for response in responses]


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train as one of the processes; what this rank measured, after an update to warm up."""
    torch.set_num_threads(1)
    ranks = launched_ranks("cpu")
    folder, envs, steps = str(arguments.worker / "lm"), arguments.envs, arguments.response
    with quiet_loading():
        prompts = random_prompts(load_tokenizer(folder, "reference"), 8, arguments.prompt)
        env = make_vec_env(
            n_envs=envs,
            seed=envs * ranks.rank,
            reference=folder,
            reward_model=lengths,
            prompts=prompts,
            max_prompt_tokens=arguments.prompt,
            max_new_tokens=steps,
            scoring="deferred",
            device="cpu",
        )
        model = TokenPPO(
            LMActorCriticPolicy,
            env,
            n_steps=steps,
            batch_size=envs * steps * ranks.count // arguments.minibatches,
            n_epochs=arguments.epochs,
            seed=0,
            device="cpu",
        )
    model.join(ranks)
    tokens = envs * steps * ranks.count
    model.learn(tokens)
    ranks.barrier()
    wall, processor = time.perf_counter(), time.process_time()
    model.learn(arguments.updates * tokens, reset_num_timesteps=False)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    size = sum(weight.numel() for weight in model.policy.parameters())
    found = {
        "throughput": arguments.updates * tokens / wall,
        "per CPU-second": arguments.updates * envs * steps / processor,
        "seconds of a step": wall / (arguments.updates * arguments.epochs * arguments.minibatches),
        "gradient, MiB": 4 * size / 2**20,
        "seconds of an all-reduce": _all_reduce(size) if ranks.count > 1 else 0.0,
    }
    ranks.leave()
    return found


def _all_reduce(size: int) -> float:
    """The shortest of several, of as many float32: what it takes where nobody is late."""
    gradient, seconds = torch.zeros(size), []
    for _ in range(10):
        torch.distributed.barrier()
        start = time.perf_counter()
        torch.distributed.all_reduce(gradient)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def run(count: int, models: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Start `count` processes; what the first of them measured."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    launch = ["--nproc-per-node", str(count), "--master-port", str(port)]
    result = models / "found.json"
    options = ["--worker", str(models), "--result", str(result)]
    for name in ("prompt", "response", "envs", "epochs", "minibatches", "updates"):
        options += [f"--{name}", str(getattr(arguments, name))]
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *launch, __file__, *options],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        timeout=900,
    )
    return json.loads(result.read_text(encoding="utf-8"))


def rows_of(found: dict[int, list[dict[str, Any]]]) -> list[Row]:
    """The rows of the table from what was measured with 1 and with 2 processes."""
    middle = {
        name: medians({count: [turn[name] for turn in turns] for count, turns in found.items()})
        for name in found[1][0]
    }
    step, talking = middle["seconds of a step"][2], middle["seconds of an all-reduce"][2]
    return [
        {"table": TABLE, "what": what, "ratio": ratio, "one": one, "two": two}
        for what, ratio, one, two in (
            *(
                (name, middle[name][2] / middle[name][1], middle[name][1], middle[name][2])
                for name in ("throughput", "per CPU-second")
            ),
            ("talking, of a step", talking / step, "", ""),
            ("gradient, MiB", 1.0, middle["gradient, MiB"][1], middle["gradient, MiB"][2]),
        )
    ]


def main(arguments: argparse.Namespace) -> None:
    """Measure both in turns, print the table, and write JSON where asked."""
    if arguments.worker is not None:
        found = work(arguments)
        if os.environ.get("RANK", "0") == "0":
            arguments.result.write_text(json.dumps(found), encoding="utf-8")
        return
    if arguments.quick:
        arguments.model, arguments.repetitions, arguments.updates = "tiny", 1, 1
        arguments.prompt, arguments.response, arguments.envs = 4, 8, 4
    with tempfile.TemporaryDirectory() as folder:
        models = write_models(Path(folder), SHAPES[arguments.model])
        cases = {count: (lambda n=count: run(n, models, arguments)) for count in (1, 2)}
        found = take_turns(cases, arguments.repetitions)
    names = ("model", "prompt", "response", "envs", "epochs", "minibatches", "updates")
    report(rows_of(found), {name: getattr(arguments, name) for name in names}, arguments.json)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = arguments_parser(__doc__, repetitions=3)
    made.add_argument("--model", choices=SHAPES, default="4m", help="its shape")
    made.add_argument("--prompt", type=int, default=16, help="P")
    made.add_argument("--response", type=int, default=48, help="T")
    made.add_argument("--envs", type=int, default=32, help="of each process")
    made.add_argument("--epochs", type=int, default=4, help="over a rollout")
    made.add_argument("--minibatches", type=int, default=2, help="of an epoch")
    made.add_argument("--updates", type=int, default=3, help="that are measured")
    made.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    made.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return made


if __name__ == "__main__":
    main(parser().parse_args())
