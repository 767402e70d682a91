"""Does credit per token learn faster than one number for all? At equal tokens, over five seeds."""

from __future__ import annotations

from functools import cache

import numpy as np
from experiment import (
    COLORS,
    in_parallel,
    interval,
    new_agent,
    new_figure,
    options,
    said,
    sample_episodes,
    write,
)
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.callbacks import BaseCallback

ESTIMATORS = {"gae": 1, "monte-carlo": 1, "rloo": 4, "group": 4}
"""Estimator → responses to each prompt; the first two have a critic."""
GOAL = 0.95


class Curve(BaseCallback):
    """(tokens, value) before every few rollouts."""

    def __init__(self, measure, every: int) -> None:
        super().__init__()
        self.measure, self.every, self.points, self.rollouts = measure, every, [], 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.rollouts % self.every == 0:
            self.add()
        self.rollouts += 1

    def add(self) -> None:
        """Measure now."""
        self.points.append((self.num_timesteps, self.measure(self.model.policy.actor)))


@cache
def held_out_of(task: str, length: int):
    """Its prompts, scorer and solution, once in each process."""
    from agents.evaluation import HeldOut

    prompts = 5 if task == "exact" else 48
    environment = {"task": task, "max_new_tokens": length, "device": "cpu"}
    return HeldOut.from_env_kwargs(environment, prompts)


def train(task: str, estimator: str, seed: int, length: int, tokens: int, every: int) -> dict:
    """One training with its curve: the exact share of the way, or the held-out gold reward."""
    from agents import RLHFCallback
    from tokenenv.optimum import evaluate_exactly

    held_out = held_out_of(task, length)

    def measure(actor) -> float:
        if held_out.solution is not None:
            return float(evaluate_exactly(actor, held_out.solution).objective_fraction)
        episodes = sample_episodes(actor, held_out, 8, seed=77)
        return float(held_out.scorer.score(episodes).gold_reward.mean())

    model = new_agent(
        task,
        seed,
        advantage_estimator=estimator,
        group_size=ESTIMATORS[estimator],
        max_new_tokens=length,
    )
    curve = Curve(measure, every)
    model.learn(tokens, callback=[RLHFCallback(), curve])
    curve.add()
    reached = [at for at, value in curve.points if value >= GOAL]
    return {
        **{"task": task, "estimator": estimator, "seed": seed, "points": curve.points},
        "tokens_to_goal": reached[0] if reached and task == "exact" else None,
        "last": curve.points[-1][1],
        "best": max(value for _, value in curve.points),
    }


def print_table(rows: list[dict]) -> None:
    shown = Table(title="per-token credit (gae, monte-carlo) and uniform credit at equal tokens")
    headers = ("credit", f"exact: tokens to {GOAL}", "seeds", "exact: at the end")
    for header in (*headers, "reviews: best gold", "reviews: gold at the end"):
        shown.add_column(header, justify="right")
    for estimator in dict.fromkeys(r["estimator"] for r in rows):
        exact, reviews = (
            [r for r in rows if (r["task"], r["estimator"]) == (task, estimator)]
            for task in ("exact", "reviews")
        )
        reached = [r["tokens_to_goal"] for r in exact if r["tokens_to_goal"]]
        shown.add_row(
            estimator,
            said(reached, ",.0f") if reached else "not reached",
            f"{len(reached)} of {len(exact)}",
            said([r["last"] for r in exact], ".4f"),
            said([r["best"] for r in reviews], "+.3f"),
            said([r["last"] for r in reviews], "+.3f"),
        )
    Console(width=150).print(shown)


def draw(rows: list[dict]):
    figure, axes = new_figure(1, 2, 8.6, 3.4)
    for axis, task in zip(axes, ("exact", "reviews"), strict=True):
        estimators = dict.fromkeys(r["estimator"] for r in rows)
        for estimator, color in zip(estimators, COLORS, strict=False):
            own = [r for r in rows if (r["task"], r["estimator"]) == (task, estimator)]
            shared = min(len(r["points"]) for r in own)
            tokens = [at / 1000 for at, _ in own[0]["points"][:shared]]
            values = [interval([r["points"][i][1] for r in own]) for i in range(shared)]
            middle, half = np.array(values).T
            style = "-" if estimator in ("gae", "monte-carlo") else "--"
            axis.plot(tokens, middle, style, color=color, label=estimator)
            half = np.nan_to_num(half)
            axis.fill_between(
                tokens, middle - half, middle + half, color=color, alpha=0.15, linewidth=0
            )
        axis.set_xlabel("thousands of tokens")
        axis.set_title(task)
    axes[0].axhline(GOAL, color="black", linestyle=":", linewidth=1)
    axes[0].set(ylabel="share of the way to the optimum", ylim=(0.0, 1.02))
    axes[1].set_ylabel("gold reward, held-out prompts")
    axes[1].legend(loc="lower right")
    return figure


def main() -> None:
    arguments = options(__doc__)
    seeds = 1 if arguments.quick else 5
    estimators = ("gae", "rloo") if arguments.quick else ESTIMATORS
    budgets = (  # longest response, tokens, rollouts between two points
        {"exact": (4, 4096, 1), "reviews": (32, 4096, 3)}
        if arguments.quick
        else {"exact": (6, 65_536, 1), "reviews": (32, 20_480, 2)}
    )
    jobs = [
        (task, estimator, seed, *budget)
        for seed in range(seeds)
        for task, budget in budgets.items()
        for estimator in estimators
    ]
    rows = in_parallel(train, jobs, arguments.processes)
    print_table(rows)
    write(arguments.out, "uniform", rows, draw(rows))


if __name__ == "__main__":
    main()
