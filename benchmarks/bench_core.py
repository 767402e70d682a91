"""The figures that the README quotes: `make numbers`, a few minutes on two cores.

Every figure is a ratio of two things measured in this run, or a count; absolute times of a shared
machine mean little.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO

from agents import EpisodeRolloutBuffer, LMActorCriticPolicy, RLHFCallback, make_vec_env

_MAKE_ENV = """
import gymnasium as gym
gym.make("tokenenv:TokenRLHF-v0")
"""

_PLAIN = """
import sys
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
for kind, folder in zip((AutoModelForCausalLM, AutoModelForSequenceClassification), sys.argv[1:]):
    kind.from_pretrained(folder, dtype="float32")
    AutoTokenizer.from_pretrained(folder)
"""


def time_of(code: str) -> tuple[float, float]:
    """(wall, CPU) seconds of a fresh Python process that runs `code` with the bundled models."""
    folder = files("tokenenv") / "assets" / "reviews"
    models = [str(folder / name) for name in ("reference", "reward_model")]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code, *models],
        check=True,
        capture_output=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def startup(repetitions: int) -> list[dict[str, Any]]:
    """`gym.make` in a fresh process beside plain transformers loading the same models.

    The two take turns, so that a machine that slows down slows both; ratios of medians.
    """
    time_of(_PLAIN)  # the disk's cache
    pairs = [(time_of(_MAKE_ENV), time_of(_PLAIN)) for _ in range(repetitions)]
    rows = []
    for index, clock in enumerate(("wall time", "CPU time")):
        ours, plain = (statistics.median(p[who][index] for p in pairs) for who in (0, 1))
        what = f"gym.make in a fresh process / plain transformers, {clock}"
        rows.append({"what": what, "goal": "≤ 1.3", "found": ours / plain})
    return rows


def without_eos(folder: Path) -> str:
    """A copy in `folder` of the bundled reference whose EOS is an id that it never samples.

    Its responses use their whole budget of T tokens.
    """
    copy = shutil.copytree(Path(str(files("tokenenv"))) / "assets/reviews/reference", folder / "lm")
    for name in ("config.json", "generation_config.json"):
        config = json.loads((copy / name).read_text())
        config["eos_token_id"] = config["pad_token_id"]
        (copy / name).write_text(json.dumps(config))
    return str(copy)


def update_model(reference: str, is_packed: bool) -> PPO:
    """Stock PPO with one rollout of 32 × 32 steps in the packed buffer, or in SB3's own."""
    model = PPO(
        LMActorCriticPolicy,
        make_vec_env(
            n_envs=32,
            seed=0,
            reference=reference,
            reward_model="reviews",
            max_new_tokens=32,
            device="cpu",
        ),
        n_steps=32,
        batch_size=1024,
        n_epochs=1,
        gamma=1.0,
        rollout_buffer_class=EpisodeRolloutBuffer if is_packed else None,
        policy_kwargs={"actor": reference},
        seed=0,
        device="cpu",
    )
    _, callback = model._setup_learn(1024, RLHFCallback())
    callback.on_training_start({}, {})
    assert model.env is not None
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


def update_throughput(
    repetitions: int, clock: Callable[[], float] = time.perf_counter
) -> list[dict[str, Any]]:
    """One epoch over the same 1,024 tokens on either buffer; the two take turns.

    SB3's buffer pays a whole sequence per token, so the ratio grows with the responses' length.

    Args:
        repetitions: of each.
        clock: in seconds; on a machine that does other work, `time.process_time` does not count
            the moments in which this process had to wait.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cases = {
            "responses of T = 32 tokens": (without_eos(Path(folder)), "≥ 15"),
            "`reviews` as it ships": ("reviews", "–"),
        }
        for case, (reference, goal) in cases.items():
            packed, stock = (update_model(reference, is_packed) for is_packed in (True, False))
            seconds = [
                (_seconds(packed.train, clock), _seconds(stock.train, clock))
                for _ in range(repetitions)
            ]
            ours, theirs = (statistics.median(column) for column in zip(*seconds, strict=True))
            what = f"update, packed buffer / SB3's own buffer, {case}"
            rows.append({"what": what, "goal": goal, "found": theirs / ours})
            buffer: Any = packed.rollout_buffer
        found = buffer.nbytes / buffer.num_tokens
    return [*rows, {"what": "rollout buffer, bytes per token", "goal": "≤ 64", "found": found}]


def _seconds(function: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    function()
    return clock() - start


def main() -> None:
    """Measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    rows = [*startup(arguments.repetitions), *update_throughput(arguments.repetitions)]
    table = Table(title="medians of one run")
    for header in ("what", "goal", "found"):
        table.add_column(header, justify="left" if header == "what" else "right")
    for row in rows:
        table.add_row(row["what"], row["goal"], f"{row['found']:.2f}")
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
