"""`gym.make` in a fresh process costs little beside what plain transformers costs anyway."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from importlib.resources import files

import pytest

_OURS = """
import time
start = time.perf_counter()
import gymnasium as gym
import tokenenv
env = gym.make("TokenRLHF-v0")
print(time.perf_counter() - start)
"""

_PLAIN = """
import sys, time
start = time.perf_counter()
from transformers import (
    AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer)
for kind, folder in ((AutoModelForCausalLM, sys.argv[1]),
                     (AutoModelForSequenceClassification, sys.argv[2])):
    kind.from_pretrained(folder, dtype="float32")
    AutoTokenizer.from_pretrained(folder)
print(time.perf_counter() - start)
"""


def seconds(script: str, *arguments: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_gym_make_takes_at_most_1_3_times_what_transformers_takes():
    """Interleaved, so that a machine that slows down slows both; medians of three."""
    folder = files("tokenenv") / "assets" / "reviews"
    folders = str(folder / "reference"), str(folder / "reward_model")
    seconds(_PLAIN, *folders)  # the disk cache
    ours, plain = [], []
    for _ in range(3):
        plain.append(seconds(_PLAIN, *folders))
        ours.append(seconds(_OURS))
    ratio = statistics.median(ours) / statistics.median(plain)
    assert ratio <= 1.3, f"gym.make {ours}, transformers {plain}"
