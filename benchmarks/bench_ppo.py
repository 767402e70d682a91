"""Whole PPO updates per second: sampling, scoring, optimisation, against what else there is.

An update samples a response of 48 tokens to each of 64 prompts of 16 random tokens, through the
environment with deferred scoring, scores them with the reference and the reward model, and makes 4
epochs of one minibatch each (learning rate 1e-5, β = 0.05). No id counts as EOS, so that all
responses have their full length. Against it stand, in turns within this run:

- the sum of parts: `generate` of transformers for the tokens, one forward each of the reference
  and the reward model, and per epoch one forward, backward and step of Adam, by plain torch
  (`ppo_parts.py`): an update without an environment, a buffer or anything to keep.
- stock `stable_baselines3.PPO` with SB3's own buffer and the same policy. It pays a whole sequence
  for every token, so one minibatch of 64 tokens is measured and extrapolated to all of them, token
  for token; its sampling is measured in full.
- a peer, where `--peer` gives the Python of its environment and `--peer-script` a script that times
  it: run as `PYTHON SCRIPT MODELS --batch … --prompt … --response … --epochs … --updates …
  --minibatches 1`, it prints as its last line JSON with `tokens_per_second`. Its process starts
  cold every time, but its clock starts with its training.

Ratios are of medians of the time per update: 2 is an update of ours in half the time. MODELS holds
lm/ and rm/; left out, random models of the shape `gpt2-4m` are made.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ppo_parts import SumOfParts
from ppo_updates import (
    PRECISIONS,
    Workload,
    breakdown,
    peer_update,
    stock_update,
    token_ppo,
)
from random_models import model_folder
from reporting import Row, arguments_parser, medians, report, seconds_of, take_turns

from tokenenv.language_model import quiet_loading

OURS = "TokenPPO"
PARTS = "the sum of parts"
STOCK = "stock PPO, SB3's own buffer (extrapolated)"
UPDATES = "whole updates: their time over TokenPPO's"
STAGES = "where the time of TokenPPO goes: share of an update"
PARTWISE = "the sum of parts: share of TokenPPO's update"


def updates(work: Workload, arguments: argparse.Namespace) -> list[Row]:
    """A row for each that was compared, and one for each of the parts."""
    model, count = token_ppo(work), arguments.updates
    parts = SumOfParts(work)
    cases: dict[str, Callable[[], float]] = {
        OURS: lambda: seconds_of(lambda: model.learn(count * work.tokens)) / count,
        PARTS: parts,
        STOCK: stock_update(work),
    }
    if arguments.peer is not None:
        name = f"peer, {arguments.peer_script.stem}"
        cases[name] = peer_update(work, arguments.peer, arguments.peer_script, count)
    seconds = medians(take_turns(cases, arguments.repetitions))
    rows = [
        {
            "table": UPDATES,
            "what": name,
            "ratio": found / seconds[OURS],
            "tokens/s": work.tokens / found,
        }
        for name, found in seconds.items()
    ]
    return rows + [
        {"table": PARTWISE, "what": name, "ratio": found / seconds[OURS]}
        for name, found in medians(parts.seconds).items()
    ]


def stages(work: Workload, count: int) -> list[Row]:
    """A row for each stage of our update."""
    found = breakdown(work, count)
    total = sum(found.values())
    order = ("sampling", "scoring", "advantages", "optimisation")
    rows = []
    for stage in order:
        own = {name: seconds for name, seconds in found.items() if name.startswith(stage)}
        if len(own) > 1:
            own = {stage: sum(own.values()), **own}
        rows += [
            {"table": STAGES, "what": name, "ratio": seconds / total, "ms": 1e3 * seconds / count}
            for name, seconds in own.items()
        ]
    return rows


def main(arguments: argparse.Namespace) -> None:
    """Measure, print the tables, and write JSON where asked."""
    if arguments.quick:
        arguments.batch, arguments.response, arguments.epochs = 4, 8, 2
        arguments.repetitions = arguments.updates = 1
    with model_folder(arguments.models) as folder, quiet_loading():
        work = Workload(
            folder,
            arguments.batch,
            arguments.prompt,
            arguments.response,
            arguments.epochs,
            arguments.value_head,
            arguments.micro_batch_tokens,
            arguments.precision,
            arguments.device,
        )
        rows = updates(work, arguments) + stages(work, arguments.updates)
    names = ("batch", "prompt", "response", "epochs", "value_head", "micro_batch_tokens")
    names += ("precision", "device", "updates", "repetitions")
    report(rows, {name: getattr(arguments, name) for name in names}, arguments.json)


def _arguments() -> argparse.Namespace:
    parser = arguments_parser(__doc__, repetitions=3)
    parser.add_argument("models", type=Path, nargs="?", help="holds lm/ and rm/; default: random")
    parser.add_argument("--updates", type=int, default=3, help="per repetition")
    for name, default in (("batch", 64), ("prompt", 16), ("response", 48), ("epochs", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--value-head", choices=("shared", "separate"), default="shared")
    parser.add_argument("--micro-batch-tokens", type=int)
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peer", type=Path, help="the Python of a peer's environment")
    parser.add_argument("--peer-script", type=Path, help="the script that times the peer")
    arguments = parser.parse_args()
    if (arguments.peer is None) != (arguments.peer_script is None):
        parser.error("--peer and --peer-script go together")
    return arguments


if __name__ == "__main__":
    main(_arguments())
