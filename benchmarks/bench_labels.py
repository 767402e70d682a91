"""Is accuracy what one wants? Many small reward models of `reviews`, and what PPO makes of each.

    python benchmarks/bench_labels.py RESULTS.jsonl --figure reward_models.png
    python benchmarks/bench_labels.py RESULTS.jsonl --kl-coef 0.02 --tokens 131072

The reward models differ in what they learn from (50 to 6,400 pairs of the reference's responses, by
the task's annotator or by one who is a quarter as sure) and in size (one to three layers of the
reference's trunk). Each is judged by its accuracy on the same held-out pairs of the task's own
annotator, and by what `TokenPPO` with the settings of `--config` makes of it: on held-out prompts
the gold reward, J by its own score, and J by the gold reward, in deviations of the reference's gold
rewards from their mean, less β·KL.

Printed are Spearman's rank correlations over the models with 95 % bootstrap intervals, and means of
three groups of models by accuracy. Every model is appended to RESULTS as it comes; those that are
there are not made again, so that the same command goes on after an interruption. One process
computes with one thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from reporting import Row, report

from agents.atomic_files import append_lines, json_text
from agents.config import TrainConfig
from agents.reward_quality.labels.pair_sources import DrawnPairs
from agents.reward_quality.labels.policies import policy_settings, train_policy
from agents.reward_quality.labels.reward_models import accuracy_on, train_on
from agents.reward_quality.labels.statistics import rank_correlation
from agents.runs.reward_model_config import RewardTrainingOptions
from tokenenv.json_files import read_json_lines
from tokenenv.models import load_trainable, quiet_loading
from tokenenv.tasks.reviews import TASK

PAIRS = (50, 100, 200, 400, 800, 1600, 3200, 6400)
LAYERS = (1, 2, 3)
SHARPNESS = (12.0, 3.0)
OPTIONS = RewardTrainingOptions(epochs=8, learning_rate=1.5e-3, device="cpu")
"""How the task's own reward model is trained, but for the number of epochs."""

CORRELATION, GROUPS = "rank correlation over the models", "models by accuracy"
MEASURED = {
    "gold": "gold reward",
    "gold_objective": "J by gold",
    "objective": "J by its own score",
    "kl": "KL",
}
_OF_A_RESULT = ("tokens_asked_for", "config", "kl_coef", "prompts", "responses", "held_out")


def models(count: int, pairs: tuple[int, ...] = PAIRS) -> list[dict[str, Any]]:
    """What the models are, in a random order in which every combination comes before a second."""
    everything = list(itertools.product(pairs, LAYERS, SHARPNESS))
    order = np.random.default_rng(0).permutation(len(everything))
    drawn = [everything[order[i % len(order)]] for i in range(count)]
    return [
        {"model": i, "pairs": pairs, "layers": layers, "sharpness": sharpness}
        for i, (pairs, layers, sharpness) in enumerate(drawn)
    ]


def cut_trunk(layers: int, folder: Path) -> str:
    """The first layers of the reference, as a model of its own; its folder."""
    language_model = load_trainable(str(TASK.reference))
    model: Any = language_model.model
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    with quiet_loading():
        model.save_pretrained(folder)
        language_model.tokenizer.save_pretrained(folder)
    return str(folder)


def make(
    what: dict[str, Any], ppo: TrainConfig, arguments: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Train a reward model and a policy with it, and measure both."""
    start, seed = time.perf_counter(), int(what["model"])
    base = cut_trunk(what["layers"], folder / f"trunk-{what['layers']}")
    learned = DrawnPairs(1, what["sharpness"]).draw(seed, what["pairs"]).pool[: what["pairs"]]
    judged = DrawnPairs(arguments.held_out).draw(2**31, 0)
    reward_model, _ = train_on(learned, OPTIONS, base, seed)
    place = folder / "reward_model"
    reward_model.save_pretrained(place)
    return {
        **what,
        **accuracy_on(judged.held_out, reward_model),
        "best_accuracy": judged.best_accuracy,
        **train_policy(place, ppo, arguments.prompts, arguments.responses, seed),
        "seconds": time.perf_counter() - start,
    }


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The results of all models; those that are missing are made."""
    settings = {
        "tokens_asked_for": arguments.tokens,
        "config": arguments.config,
        "kl_coef": arguments.kl_coef,
        "prompts": arguments.prompts,
        "responses": arguments.responses,
        "held_out": arguments.held_out,
    }
    ppo = policy_settings(arguments.config, arguments.tokens, "cpu")
    if arguments.kl_coef is not None:
        ppo = dataclasses.replace(ppo, kl_coef=arguments.kl_coef)
    if arguments.quick:
        ppo = dataclasses.replace(ppo, n_envs=8, n_steps=8, batch_size=64, n_epochs=1)
    path, there = arguments.results, {}
    if path.exists():
        for result in read_json_lines(path):
            other = {name: result.get(name) for name in _OF_A_RESULT}
            if other != settings:
                raise SystemExit(f"{path} holds models of other settings ({other}): name another.")
            there[result["model"]] = result
    sizes = (8, 16) if arguments.quick else PAIRS
    with tempfile.TemporaryDirectory() as folder:
        for what in models(arguments.models, sizes):
            if what["model"] in there:
                continue
            result = {**make(what, ppo, arguments, Path(folder)), **settings}
            append_lines(path, [json_text(result)])
            there[what["model"]] = result
            print(  # noqa: T201
                f"{len(there)} of {arguments.models}: {what['pairs']:,} pairs, {what['layers']} "
                f"layers, accuracy {result['accuracy']:.3f}, gold {result['gold']:+.3f}, KL "
                f"{result['kl']:.1f}, {result['seconds']:.0f} s",
                flush=True,
            )
    return [there[i] for i in range(arguments.models)]


def rows_of(results: list[dict[str, Any]]) -> list[Row]:
    """The correlations, and the means of three groups."""

    def values(name: str) -> np.ndarray:
        return np.array([result[name] for result in results], dtype=np.float64)

    columns = {
        "accuracy": values("accuracy"),
        "− loss": -values("loss"),
        "pairs": values("pairs"),
        "layers": values("layers"),
    }
    rows: list[Row] = []
    for name, said in MEASURED.items():
        for of_model, column in columns.items():
            rho, (low, high) = rank_correlation(column, values(name))
            rows.append(
                {
                    "table": CORRELATION,
                    "what": f"{of_model} and {said}",
                    "Spearman": f"{rho:+.2f}",
                    "95 % interval": f"{low:+.2f} to {high:+.2f}",
                    "models": len(results),
                }
            )
    order = np.argsort(values("accuracy"), kind="stable")
    for name, part in zip(("worst", "middle", "best"), np.array_split(order, 3), strict=True):
        group = [results[i] for i in part]
        accuracies = [result["accuracy"] for result in group]
        means = {said: f"{np.mean([r[key] for r in group]):+.3f}" for key, said in MEASURED.items()}
        rows.append(
            {
                "table": GROUPS,
                "what": f"the {name} {len(group)}",
                "accuracy": f"{min(accuracies):.3f} to {max(accuracies):.3f}",
                **means,
                "gold, reference": f"{np.mean([r['untrained']['gold'] for r in group]):+.3f}",
            }
        )
    return rows


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """A point for each model: what its policy is worth by gold and by its own score."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharex=True, layout="constrained")
    colours = np.log2([result["pairs"] for result in results])
    panels = (("gold", "gold reward after PPO"), ("objective", "J by its own score after PPO"))
    accuracies = np.array([result["accuracy"] for result in results])
    for axis, (name, said) in zip(axes, panels, strict=True):
        values = np.array([result[name] for result in results])
        rho, _ = rank_correlation(accuracies, values)
        points = axis.scatter(accuracies, values, c=colours, cmap="viridis", s=18)
        axis.set(xlabel="accuracy on held-out pairs", ylabel=said)
        axis.set_title(f"rank correlation {rho:+.2f}".replace("-", "−"), fontsize=10)
        axis.axvline(0.5, color="grey", lw=0.8, ls=":")
        start = np.mean([result["untrained"][name] for result in results])
        axis.axhline(start, color="grey", lw=0.8, ls="--", label="reference")
        axis.grid(alpha=0.25)
    axes[0].legend(frameon=False)
    bar = figure.colorbar(points, ax=axes, label="pairs that it learned from")
    ticks = np.unique(colours)
    bar.set_ticks(ticks, labels=[f"{2**tick:,.0f}" for tick in ticks])
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    """Make what is missing, print the tables, draw the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="file of JSON lines, one for each model")
    parser.add_argument("--models", type=int, default=50, help="how many, 3 or more")
    parser.add_argument("--tokens", type=int, default=65_536, help="that PPO trains on")
    parser.add_argument("--config", default="zoo:reviews", help="settings of PPO")
    parser.add_argument("--kl-coef", type=float, help="β, in the place of that of the settings")
    parser.add_argument("--held-out", type=int, default=2000, help="pairs for the accuracy")
    parser.add_argument("--prompts", type=int, default=64, help="held-out prompts for policies")
    parser.add_argument("--responses", type=int, default=16, help="to each of them")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all?")
    parser.add_argument("--figure", type=Path, help="draw gold and J over the accuracy here")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.models, arguments.tokens, arguments.held_out = 3, 64, 20
        arguments.prompts, arguments.responses = 4, 2
    if arguments.models < 3:
        parser.error(f"--models {arguments.models}: a rank correlation is of 3 or more")
    torch.set_num_threads(1)
    results = measure(arguments)
    report(
        rows_of(results), {"tokens": arguments.tokens, "config": arguments.config}, arguments.json
    )
    if arguments.figure is not None:
        draw(results, arguments.figure)


if __name__ == "__main__":
    main()
