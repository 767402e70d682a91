"""Whole PPO updates per second: sampling, scoring, optimisation, against what else there is.

An update samples a response of 48 tokens to each of 64 prompts of 16 random tokens, through the
environment with deferred scoring, scores them with the reference and the reward model, and makes 4
epochs of one minibatch each (learning rate 1e-5, β = 0.05). No id counts as EOS, so that all
responses have their full length. Ours runs in every precision of `--precisions`. Against it stand,
in turns within this run:

- the sum of parts: `generate` of transformers for the tokens, one forward each of the reference
  and the reward model, and per epoch one forward, backward and step of Adam, by plain torch
  (`ppo_parts.py`): an update without an environment, a buffer or anything to keep. Once as
  transformers and torch have them, and once with fused activations and Adam, as ours has: the first
  says what an update by hand would cost, the second what stands between the parts. With a precision
  other than float32 among ours, there are both again with bfloat16 autocast in their epochs.
- stock `stable_baselines3.PPO` with SB3's own buffer and the same policy. It pays a whole sequence
  for every token, so one minibatch of 64 tokens is measured and extrapolated to all of them, token
  for token; its sampling is measured in full.
- a peer, where `--peer` gives the Python of its environment and `--peer-script` a script that times
  it: run as `PYTHON SCRIPT MODELS --batch … --prompt … --response … --epochs … --updates …
  --minibatches 1`, and with `--bf16` again where ours has another precision than float32, it prints
  as its last line JSON with `tokens_per_second`. Its process starts cold every time, but its clock
  starts with its training.

Ratios are of medians of the time per update: 2 is an update of ours in half the time. They are
given float32 against float32, and best against best: everybody's fastest precision. MODELS holds
lm/ and rm/; `--lm FOLDER` takes a causal LM and puts a reward model with a random head on its
trunk; with neither, random models of the shape `gpt2-4m` are made.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

from ppo_parts import SumOfParts
from ppo_updates import (
    PRECISIONS,
    Workload,
    add_peer_arguments,
    breakdown,
    parse_with_peer,
    peer_update,
    stock_update,
    token_ppo,
)
from random_models import add_model_arguments, model_folder
from reporting import Row, arguments_parser, medians, report, seconds_of, take_turns

from agents import TokenPPO
from tokenenv.models import quiet_loading

OURS = "TokenPPO"
PARTS = "the sum of parts"
FUSED = "the sum of parts, fused as ours"
STOCK = "stock PPO, SB3's own buffer (extrapolated)"
UPDATES = "whole updates: their time over TokenPPO's in float32"
RATIOS = "how many times as fast as each TokenPPO is"
STAGES = "where the time of TokenPPO goes: share of an update"
PARTWISE = "the sum of parts: share of TokenPPO's update in float32"

Times = Mapping[tuple[str, str], float]
"""(who, in which precision) → seconds per update."""


def updates(work: Workload, arguments: argparse.Namespace) -> list[Row]:
    """Rows for each that was compared, for the ratios, and for each of the parts."""
    count, parts = arguments.updates, SumOfParts(work)
    others = ["bfloat16"] if set(arguments.precisions) - {"float32"} else []
    cases: dict[tuple[str, str], Callable[[], float]] = {}
    for precision in arguments.precisions:
        model = token_ppo(dataclasses.replace(work, precision=precision))
        model.learn(work.tokens)  # warms up; "auto" measures and chooses here
        chosen = model.update_precision
        named = precision if precision == chosen else f"{precision}: {chosen}"
        cases[OURS, named] = partial(_learn, model, count, work)
    cases[PARTS, "float32"] = parts
    parts()  # warms up
    parts.seconds.clear()
    for precision in others:
        cases[PARTS, precision] = SumOfParts(dataclasses.replace(work, precision=precision))
    for precision in ("float32", *others):
        own = dataclasses.replace(work, precision=precision)
        cases[FUSED, precision] = SumOfParts(own, is_fused=True)
    if not arguments.without_stock:
        cases[STOCK, "float32"] = stock_update(work)
    if arguments.peer is not None:
        for precision in ("float32", *others):
            own = dataclasses.replace(work, precision=precision)
            update = peer_update(own, arguments.peer, arguments.peer_script, count)
            cases[f"peer, {arguments.peer_script.stem}", precision] = update
    times = medians(take_turns(cases, arguments.repetitions))
    shares = medians(parts.seconds)
    unit = times[OURS, "float32"]
    return [
        *update_rows(times, work.tokens),
        *ratio_rows(times, work.tokens),
        *({"table": PARTWISE, "what": name, "ratio": s / unit} for name, s in shares.items()),
    ]


def _learn(model: TokenPPO, count: int, work: Workload) -> float:
    return seconds_of(lambda: model.learn(count * work.tokens), work.device) / count


def update_rows(times: Times, tokens: int) -> list[Row]:
    """A row for each that was measured."""
    return [
        {
            "table": UPDATES,
            "what": who,
            "precision": precision,
            "ratio": seconds / times[OURS, "float32"],
            "tokens/s": tokens / seconds,
        }
        for (who, precision), seconds in times.items()
    ]


def ratio_rows(times: Times, tokens: int) -> list[Row]:
    """Others' time over ours: float32 over float32, and, where there is more, best over best."""
    rows = []
    for who in dict.fromkeys(who for who, _ in times if who != OURS):
        pairs = [("float32", times[OURS, "float32"], times[who, "float32"])]
        if sum(other == who for other, _ in times) > 1:
            pairs.append(("best", _best(times, OURS), _best(times, who)))
        rows += [
            {
                "table": RATIOS,
                "what": f"{name}: TokenPPO over {who}",
                "ratio": theirs / ours,
                "TokenPPO, tokens/s": tokens / ours,
                "the other, tokens/s": tokens / theirs,
            }
            for name, ours, theirs in pairs
        ]
    return rows


def _best(times: Times, who: str) -> float:
    return min(seconds for (other, _), seconds in times.items() if other == who)


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
            {
                "table": f"{STAGES}, {work.precision}",
                "what": name,
                "ratio": seconds / total,
                "ms": 1e3 * seconds / count,
            }
            for name, seconds in own.items()
        ]
    return rows


def main(arguments: argparse.Namespace) -> None:
    """Measure, print the tables, and write JSON where asked."""
    if arguments.quick:
        arguments.batch, arguments.response, arguments.epochs = 4, 8, 2
        arguments.repetitions = arguments.updates = 1
    with model_folder(arguments.models, lm=arguments.lm) as folder, quiet_loading():
        work = Workload(
            folder,
            arguments.batch,
            arguments.prompt,
            arguments.response,
            arguments.epochs,
            arguments.value_head,
            arguments.micro_batch_tokens,
            device=arguments.device,
            critic_epochs=arguments.critic_epochs,
        )
        rows = updates(work, arguments)
        for precision in arguments.precisions:
            rows += stages(dataclasses.replace(work, precision=precision), arguments.updates)
    names = ["batch", "prompt", "response", "epochs", "value_head", "critic_epochs"]
    names += ["micro_batch_tokens", "device", "updates", "repetitions"]
    report(rows, {name: getattr(arguments, name) for name in names}, arguments.json)


def _arguments() -> argparse.Namespace:
    parser = arguments_parser(__doc__, repetitions=3)
    add_model_arguments(parser)
    parser.add_argument("--updates", type=int, default=3, help="per repetition")
    for name, default in (("batch", 64), ("prompt", 16), ("response", 48), ("epochs", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--value-head", choices=("shared", "separate"), default="shared")
    parser.add_argument("--critic-epochs", type=int, help="in which a separate critic learns")
    parser.add_argument("--micro-batch-tokens", type=int)
    parser.add_argument("--without-stock", action="store_true", help="leave stock PPO out")
    parser.add_argument(
        "--precisions", nargs="+", choices=tuple(PRECISIONS), default=["float32", "auto"]
    )
    parser.add_argument("--device", default="cpu")
    add_peer_arguments(parser)
    arguments = parse_with_peer(parser)
    if "float32" not in arguments.precisions:
        parser.error("--precisions must hold float32: the ratios are against it")
    return arguments


if __name__ == "__main__":
    main(_arguments())
