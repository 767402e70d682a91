"""What docs/reward-models.md is measured by: the commands of the page, one step each.

The sizes are chosen so that all of it takes less than 180 minutes of one core, a training of 65,536
tokens on `reviews` being some 75 seconds. The seeds of reward hacking are none of those that the
monitor's limits were chosen on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "Step", "page_steps"]

ROOT = Path(__file__).resolve().parents[1]

SEEDS = (6, 7, 8, 9, 10)
"""Of reward hacking."""

MODELS = ("weak", "middling", "good")
"""Its reward models; the middling one is trained with no remedy."""


@dataclass(frozen=True)
class Step:
    """A part of the page.

    Attributes:
        name: of the step.
        what: what comes of it.
        commands: one after the other.
        makes: files in the folder of the results that are there when it is whole.
        needs: names of steps that come before.
        group: what `--only` may call several steps.
        missing: what this version lacks for it; "" where it has everything.
    """

    name: str
    what: str
    commands: Sequence[Sequence[str]]
    makes: tuple[str, ...]
    needs: tuple[str, ...] = ()
    group: str = ""
    missing: str = ""


def page_steps(out: Path, is_quick: bool = False) -> list[Step]:
    """All steps, the longest first.

    Args:
        out: folder of the results.
        is_quick: tiny sizes.
    """
    return [
        _models(out, is_quick),
        *_hacking(out, is_quick),
        *_labels(out, is_quick),
        *_refresh(out, is_quick),
        *_best_of_n(out, is_quick),
        _audit(out, is_quick),
    ]


def _tokenrlhf(words: str, *more: object) -> tuple[str, ...]:
    return (sys.executable, "-m", "agents.cli", *words.split(), *map(str, more))


def _benchmark(name: str, *more: object) -> tuple[str, ...]:
    return (sys.executable, str(Path("benchmarks", f"{name}.py")), *map(str, more))


def _models(out: Path, is_quick: bool) -> Step:
    sizes = ["--quick"] if is_quick else ["--tokens", 32_768]
    results = (out / "models.jsonl", "--json", out / "models.json")
    figure = ("--figure", out / "reward_models.png")
    return Step(
        "models",
        "accuracy against what PPO makes of 50 reward models",
        [_benchmark("bench_labels", *results, *figure, *sizes)],
        ("models.jsonl", "models.json", "reward_models.png"),
    )


def _hacking(out: Path, is_quick: bool) -> list[Step]:
    """Runs of one seed a step; then tables and figure of all."""
    results, quick = out / "hacking.jsonl", ["--quick"] if is_quick else []
    seeds = SEEDS[:1] if is_quick else SEEDS

    def runs(*which: object) -> tuple[str, ...]:
        return _benchmark("bench_hacking", results, *which, *quick)

    steps = [
        Step(
            f"hacking-{seed}",
            f"trainings against reward models, against the weak one with every remedy, seed {seed}",
            [
                runs("--models", *MODELS, "--remedies", "none", "--seeds", seed),
                runs("--models", "weak", "--seeds", seed),
                runs("--models", "good", "--all", "--remedies", "ensemble, mean", "--seeds", seed),
            ],
            ("hacking.jsonl",),
            group="hacking",
        )
        for seed in seeds
    ]
    shown = ("--models", *MODELS, "--all", "--seeds", *seeds, "--table")
    files = ("--figure", out / "gold_against_proxy.png", "--json", out / "hacking.json")
    needs = tuple(step.name for step in steps)
    return [
        *steps,
        Step(
            "hacking-table",
            "alarms, remedies, gold against proxy",
            [runs(*shown, *files)],
            ("gold_against_proxy.png", "hacking.json"),
            needs,
            "hacking",
        ),
    ]


def _labels(out: Path, is_quick: bool) -> list[Step]:
    curve = "labels curve --pairs reviews --base reviews --learning-rate 1.5e-3 --device cpu"
    select = (
        "labels select --simulate --pool reviews --base reviews --learning-rate 1.5e-3 --device cpu"
    )
    if is_quick:
        curve += " --sizes 16 32 --seeds 2 --epochs 1 --held-out-pairs 100"
        curve += " --ppo-tokens 2048 --ppo-prompts 4 --ppo-responses 2"
        select += " -k 8 --start 16 --seeds 1 --members 2 --epochs 1 --held-out-pairs 100"
    else:
        curve += " --sizes 100 200 400 800 1600 3200 --seeds 3 --epochs 8 --ppo-tokens 32768"
        select += " -k 200 --start 200 --epochs 8"
    return [
        Step(
            "labels-curve",
            "accuracy and gold reward by the number of pairs",
            [_tokenrlhf(curve, "--out", out / "labels")],
            ("labels/curve.json", "labels/curve.png"),
            group="labels",
        ),
        Step(
            "labels-select",
            "whether choosing the pairs to label helps",
            [_tokenrlhf(select, "--out", out / "select.json")],
            ("select.json",),
            group="labels",
        ),
    ]


def _refresh(out: Path, is_quick: bool) -> list[Step]:
    """Of `bench_refresh.py`, which a version may lack."""
    name = "bench_refresh"
    has_it = (ROOT / "benchmarks" / f"{name}.py").is_file()
    sizes = ["--quick"] if is_quick else []
    files = (out / "refresh.jsonl", "--json", out / "refresh.json")
    return [
        Step(
            "refresh",
            "accuracy on the policy's own responses, with fresh labels and without",
            [_benchmark(name, *files, "--figure", out / "reward_refresh.png", *sizes)],
            ("refresh.json", "reward_refresh.png"),
            missing="" if has_it else f"there is no benchmarks/{name}.py",
        )
    ]


def _best_of_n(out: Path, is_quick: bool) -> list[Step]:
    run, exact, reviews = out / "exact-run", out / "exact.json", out / "reviews.json"
    train = "train --config zoo:exact --device cpu --overwrite"
    train += " --total-tokens 4096 --eval-responses 32" if is_quick else ""
    sampled = "best-of-n --task reviews --device cpu --eval-prompts"
    sizes = "4 --samples 16" if is_quick else "32"
    exactly = "best-of-n -n 1 2 4 8 16 64 256 1024 1000000 --run"
    return [
        Step(
            "best-of-n-exact",
            "best-of-n in closed form, beside PPO and the tilted optimum",
            [
                _tokenrlhf(train, "--out", run),
                _tokenrlhf(exactly, run, "--json", exact, "--figure", out / "best_of_n.png"),
            ],
            ("exact.json", "best_of_n.png"),
            group="best-of-n",
        ),
        Step(
            "best-of-n-reviews",
            "best-of-n by samples",
            [_tokenrlhf(f"{sampled} {sizes}", "--json", reviews)],
            ("reviews.json",),
            group="best-of-n",
        ),
    ]


def _audit(out: Path, is_quick: bool) -> Step:
    audit = "audit reviews --prompts reviews --device cpu"
    audit += " --max-texts 96 --responses 2 --probed 40 --resamples 1000" if is_quick else ""
    files = ("--out", out / "audit.json", "--figure", out / "reward_audit.png")
    return Step(
        "audit",
        "what the reward model of reviews pays for",
        [_tokenrlhf(audit, *files)],
        ("audit.json", "reward_audit.png"),
    )
