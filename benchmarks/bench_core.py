"""The figures that the README quotes: `make numbers`, a few minutes on two cores.

Every figure is a ratio of two things measured in this run, or a count; absolute times of a shared
machine mean little.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

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


def update_throughput(repetitions: int) -> list[dict[str, Any]]:
    """One update's tokens per second, SB3's own buffer against the packed one, and its memory."""
    from stable_baselines3 import PPO

    from agents import EpisodeRolloutBuffer, LMActorCriticPolicy, RLHFCallback, make_vec_env

    n_envs, n_steps = 32, 32
    rates: dict[str, list[float]] = {"packed": [], "stock": []}
    bytes_per_token = 0.0
    for name, buffer_class in (("packed", EpisodeRolloutBuffer), ("stock", None)):
        env = make_vec_env(n_envs=n_envs, seed=0, device="cpu")
        model = PPO(
            LMActorCriticPolicy,
            env,
            n_steps=n_steps,
            batch_size=n_envs * n_steps,
            n_epochs=1,
            gamma=1.0,
            rollout_buffer_class=buffer_class,
            seed=0,
            device="cpu",
        )
        times: list[float] = []
        train = model.train

        def timed(train: Any = train, times: list[float] = times) -> None:
            start = time.perf_counter()
            train()
            times.append(time.perf_counter() - start)

        model.train = timed  # type: ignore[method-assign]
        model.learn((repetitions + 1) * n_envs * n_steps, callback=RLHFCallback())
        rates[name] = [n_envs * n_steps / seconds for seconds in times[1:]]
        if isinstance(model.rollout_buffer, EpisodeRolloutBuffer):
            bytes_per_token = model.rollout_buffer.nbytes / model.rollout_buffer.num_tokens
    ratio = float(np.median(rates["packed"]) / np.median(rates["stock"]))
    return [
        {"what": "update, packed buffer / SB3's own buffer", "goal": "≥ 15", "found": ratio},
        {"what": "rollout buffer, bytes per token", "goal": "≤ 64", "found": bytes_per_token},
    ]


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
