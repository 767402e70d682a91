"""What is a good critic? Explained variance, rank accuracy and advantages, against the truth.

On `exact` everything is enumerated: V, A and Q of the policy, and mean and variance of GAE with the
critic as it is. Critics of several qualities come from several weights of the value loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from tempfile import TemporaryDirectory

import numpy as np
from experiment import (
    COLORS,
    in_parallel,
    interval,
    new_agent,
    new_figure,
    options,
    said,
    write,
)
from judge import Judge, continuation_values, critic_levels
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.callbacks import BaseCallback

from agents import LMActorCriticPolicy, RLHFCallback, TokenPPO
from tokenenv.optimum import enumerate_task, evaluate_exactly, solve

VF_COEFS = (0.0, 0.001, 0.01, 0.1, 1.0)
CONTINUATIONS = (1, 3, 9, 27)
GOAL = 0.95
ROLLOUT = 4096
"""Tokens of a rollout: states that one update needs values of."""
REPEATS = 4
"""Draws of all continuations: the few states at the start weigh much, and one draw is noise."""


class Judging(BaseCallback):
    """Judges the critic before some rollouts."""

    def __init__(self, solution, rollouts: Iterable[int]) -> None:
        super().__init__()
        self.solution, self.rollouts, self.points = solution, set(rollouts), []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps // ROLLOUT in self.rollouts:
            self.judge()

    def judge(self) -> None:
        """Add a point for the critic as it is now."""
        judge = Judge(self.model.policy.actor, self.solution.tree, self.solution.kl_coef)
        evaluation = evaluate_exactly(judge.log_policy, self.solution)
        self.points.append(
            judge.judged(
                critic_levels(self.model.policy, judge.tree),
                tokens=self.num_timesteps,
                objective_fraction=evaluation.objective_fraction,
            )
        )


@cache
def exact_solution(length: int):
    """π* and the tree of `exact` with responses of so many tokens, once in each process."""
    return solve(enumerate_task("exact", max_new_tokens=length, device="cpu"))


def train(vf_coef: float, seed: int, length: int, rollouts: int, every: int) -> dict:
    """One training with its critic judged on the way."""
    model = new_agent("exact", seed, vf_coef=vf_coef, max_new_tokens=length)
    judging = Judging(exact_solution(length), range(0, rollouts, every))
    model.learn(rollouts * ROLLOUT, callback=[RLHFCallback(), judging])
    judging.judge()  # after the last update
    reached = [p["tokens"] for p in judging.points if p["objective_fraction"] >= GOAL]
    return {
        "vf_coef": vf_coef,
        "seed": seed,
        "points": judging.points,
        "tokens_to_goal": reached[0] if reached else None,
    }


def compare_values(seed: int, length: int, rollouts: int, of_critic: tuple[int, ...]) -> list[dict]:
    """A policy on its way; continuations for its states, and critics trained on it held still."""
    solution = exact_solution(length)
    model = new_agent("exact", seed, max_new_tokens=length)
    model.learn(rollouts * ROLLOUT, callback=RLHFCallback())
    judge = Judge(model.policy.actor, solution.tree, solution.kl_coef)
    rng = np.random.default_rng(seed)
    rows = [{**of_continuations(judge, count, rng), "seed": seed} for count in CONTINUATIONS]
    rows.append({**judge.judged(judge.truth.values), "seed": seed, "kind": "true V", "tokens": 0})
    for head in ("shared", "separate"):
        with TemporaryDirectory() as folder:
            model.policy.save_pretrained(folder, model.env.inner.mdp.language_model.tokenizer)
            critic = TokenPPO(
                LMActorCriticPolicy,
                model.env,
                policy_kwargs={"actor": folder, "value_head": head},
                **{"learning_rate": 3e-3, "batch_size": 1024, "clip_range_vf": None},
                **{"n_steps": 32, "n_epochs": 4, "critic_warmup": 10**6, "seed": seed},
                device="cpu",
            )
        judging = Judging(solution, of_critic[:-1])
        critic.learn(of_critic[-1] * ROLLOUT, callback=[RLHFCallback(), judging])
        judging.judge()
        rows += [{**point, "seed": seed, "kind": f"{head} critic"} for point in judging.points]
    return rows


def of_continuations(judge: Judge, count: int, rng: np.random.Generator) -> dict:
    """Values from `count` continuations of every state, as a critic is judged."""
    drawn = [continuation_values(judge, count, rng) for _ in range(REPEATS)]
    judged = [judge.judged(values) for values, _ in drawn]
    means = {name: float(np.mean([row[name] for row in judged])) for name in judged[0]}
    used = float(np.mean([tokens for _, tokens in drawn])) * ROLLOUT
    return {**means, "kind": "continuations", "count": count, "tokens": used}


def one(experiment: str, *arguments) -> dict | list[dict]:
    """`train` or `compare_values`: a process that does both enumerates the task once."""
    return {"train": train, "values": compare_values}[experiment](*arguments)


QUANTITIES = {
    "explained_variance": "explained variance of V",
    "rank_accuracy": "rank accuracy",
    "correlation": "correlation of Â with A, λ = 0.95",
    "correlation_td": "λ = 0",
}


def print_tables(runs: list[dict], values: list[dict]) -> None:
    shown = Table(title="critics in training: means over the run, up to the goal where it is met")
    names = list(QUANTITIES)[:3]
    titles = [QUANTITIES[name] for name in names]
    for header in ("vf_coef", *titles, f"tokens to {GOAL}", "seeds there"):
        shown.add_column(header, justify="right")
    for vf_coef in dict.fromkeys(run["vf_coef"] for run in runs):
        own = [run for run in runs if run["vf_coef"] == vf_coef]
        cells = [said([mean_of(run, name) for run in own], ".3f") for name in names]
        reached = [run["tokens_to_goal"] for run in own if run["tokens_to_goal"]]
        speed = said(reached, ",.0f") if reached else "not reached"
        shown.add_row(f"{vf_coef:g}", *cells, speed, f"{len(reached)} of {len(own)}")
    Console(width=150).print(shown)
    shown = Table(title="one policy held still: values from continuations, and critics")
    for header in ("values", "tokens", *QUANTITIES.values()):
        shown.add_column(header, justify="right")
    for kind, tokens, rows in grouped(values):
        label = f"{rows[0]['count']} {kind}" if "count" in rows[0] else kind
        cells = [said([row[name] for row in rows], ".3f") for name in QUANTITIES]
        shown.add_row(label, f"{tokens:,.0f}", *cells)
    Console(width=150).print(shown)


def mean_of(run: dict, name: str) -> float:
    """The mean over a training's points up to the goal."""
    points = [p for p in run["points"] if p["tokens"] <= (run["tokens_to_goal"] or 10**12)]
    return sum(p[name] for p in points) / len(points)


def grouped(values: list[dict]) -> list[tuple[str, float, list[dict]]]:
    """Kind, tokens and rows of all seeds, for each number of continuations or training tokens."""
    keys = dict.fromkeys((row["kind"], row.get("count", row["tokens"])) for row in values)
    groups = []
    for kind, size in keys:
        rows = [r for r in values if (r["kind"], r.get("count", r["tokens"])) == (kind, size)]
        groups.append((kind, interval([r["tokens"] for r in rows])[0], rows))
    return groups


def draw(runs: list[dict], values: list[dict]):
    figure, axes = new_figure(1, 4, 13.0, 3.3)
    for vf_coef, color in zip(VF_COEFS, COLORS, strict=False):
        points = [p for r in runs if r["vf_coef"] == vf_coef for p in r["points"]]
        explained = np.clip([p["explained_variance"] for p in points], -1.05, None)
        for axis, name in zip(axes, ("correlation", "rank_accuracy"), strict=False):
            of_name = [p[name] for p in points]
            label = f"vf_coef = {vf_coef:g}"
            axis.scatter(explained, of_name, s=9, alpha=0.6, color=color, label=label)
        tokens = sorted({p["tokens"] for p in points})
        by_tokens = [
            interval([p["objective_fraction"] for p in points if p["tokens"] == t])[0]
            for t in tokens
        ]
        axes[2].plot(np.array(tokens) / 1000, by_tokens, color=color)
    for axis, name in zip(axes, ("correlation", "rank_accuracy"), strict=False):
        axis.set(xlabel="explained variance of V (≥ −1)", ylabel=QUANTITIES[name])
    axes[2].axhline(GOAL, color="black", linestyle=":", linewidth=1)
    axes[2].set(xlabel="thousands of tokens", ylim=(0.5, 1.01))
    axes[2].set_ylabel("share of the way to the optimum")
    axes[0].legend(loc="best")
    draw_at_equal_tokens(axes[3], values)
    return figure


def draw_at_equal_tokens(axis, values: list[dict]) -> None:
    kinds = [k for k in dict.fromkeys(row["kind"] for row in values) if k != "true V"]
    for kind, color in zip(kinds, COLORS, strict=False):
        groups = [g for g in grouped(values) if g[0] == kind and g[1] > 0]
        tokens = [g[1] for g in groups]
        for name, style in (("explained_variance", "o-"), ("rank_accuracy", "s--")):
            middle = [interval([r[name] for r in rows])[0] for _, _, rows in groups]
            axis.plot(tokens, np.clip(middle, 0, None), style, color=color, markersize=3.5)
        axis.plot([], [], color=color, label=kind)
    axis.plot([], [], "o-", color="black", markersize=3.5, label="explained variance (≥ 0)")
    axis.plot([], [], "s--", color="black", markersize=3.5, label="rank accuracy")
    axis.set(xscale="log", xlabel="tokens spent", ylim=(-0.02, 1.02))
    axis.set_xticks(tokens, [f"{x / 1000:,.0f},000" for x in tokens])
    axis.minorticks_off()
    axis.legend(loc="lower right", fontsize=7, handlelength=3.2)


def main() -> None:
    arguments = options(__doc__)
    if arguments.quick:
        seeds, coefficients, length, rollouts, every = 1, VF_COEFS[::4], 4, 2, 2
        still = (1, (0, 2))
    else:
        seeds, coefficients, length, rollouts, every = 3, VF_COEFS, 6, 24, 3
        still = (10, (0, 3, 9, 27, 81))  # at about the tokens that the continuations cost
    comparisons = [("values", seed, length, *still) for seed in range(seeds)]
    trainings = [
        ("train", vf_coef, seed, length, rollouts, every)
        for seed in range(seeds)
        for vf_coef in coefficients
    ]
    results = in_parallel(one, comparisons + trainings, arguments.processes)
    values, runs = [row for part in results[:seeds] for row in part], results[seeds:]
    print_tables(runs, values)
    write(arguments.out, "critic", {"runs": runs, "values": values}, draw(runs, values))


if __name__ == "__main__":
    main()
