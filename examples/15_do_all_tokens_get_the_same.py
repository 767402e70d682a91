"""Do all tokens get the same update? Its strength by token: under GAE and under uniform credit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from experiment import (
    COLORS,
    in_parallel,
    new_agent,
    new_figure,
    options,
    said,
    sample_episodes,
    write,
)
from rich.console import Console
from rich.table import Table

TOKENS = {"reviews": 32_768, "exact": 98_304}
"""Half of what the two tasks are trained on: the policy is under way."""
ESTIMATORS = {"gae": "GAE, λ = 0.95", "rloo": "uniform (rloo)"}
GROUP = 8
"""Responses to a prompt that uniform credit compares."""
GRID = np.linspace(0.0, 1.0, 101)


def measure(
    task: str, seed: int, tokens: int, prompts: int, per_prompt: int, environment: dict
) -> list[dict]:
    """The distribution of update strength, at the start and after training."""
    from agents import RLHFCallback
    from agents.credit import UpdateSettings
    from agents.evaluation import HeldOut

    held_out = HeldOut.from_env_kwargs({"task": task, "device": "cpu", **environment}, prompts)
    model, rows = new_agent(task, seed, **environment), []
    gae = UpdateSettings(kl_coef=held_out.settings.kl_coef)
    settings = {"gae": gae, "rloo": replace(gae, advantage_estimator="rloo", group_size=GROUP)}
    for stage in ("start", "middle"):
        if stage == "middle":  # half of a schedule that ends at twice the tokens
            model.learn(2 * tokens, callback=[RLHFCallback(), stop_after(tokens)])
        episodes = sample_episodes(model.policy.actor, held_out, per_prompt, seed)
        norms = None
        for name, of_estimator in settings.items():
            row, norms = describe(model.policy, held_out, episodes, of_estimator, norms)
            rows.append({"task": task, "seed": seed, "stage": stage, "estimator": name, **row})
    return rows


def stop_after(tokens: int):
    from stable_baselines3.common.callbacks import BaseCallback

    class StopAfter(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps <= tokens  # into the next rollout: the update is made

    return StopAfter()


def describe(policy, held_out, episodes, settings, norms):
    """The numbers of one table, and ‖∇ log π‖ of its tokens, which no estimator changes."""
    from agents.credit import (
        MAX_PARAMETERS,
        Truth,
        by_decile,
        by_position,
        exact_norms_and_shares,
        gini,
        lorenz,
        token_table,
    )

    truth = None
    if held_out.solution is not None:
        truth = Truth.of(policy, held_out.solution, settings.kl_coef)
    table = token_table(policy, held_out.scorer, episodes, settings, truth=truth)
    weights = table.column("weight")
    size = sum(p.numel() for p in policy.actor.parameters() if p.requires_grad)
    if norms is None and size <= MAX_PARAMETERS:
        prompts, responses = ([getattr(e, n) for e in episodes] for n in ("prompt", "response"))
        norms, _ = exact_norms_and_shares(policy, prompts, responses, weights)
    strengths = table.column("strength") if norms is None else np.abs(weights) * norms
    relative = strengths / strengths.mean()
    tokens, shares = lorenz(strengths)
    of_truth = table.column("true_advantage")
    order = np.sort(relative)[::-1]
    of_responses = np.split(strengths, np.cumsum([len(e.response) for e in episodes])[:-1])
    row = {
        "tokens": len(strengths),
        "gini": gini(strengths),
        "gini_within": float(np.mean([gini(x) for x in of_responses if len(x) > 1])),
        "gini_weight": gini(np.abs(weights)),
        "gini_output_layer": gini(table.column("strength")),
        "gini_norm": None if norms is None else gini(norms),
        "top_tenth": float(order[: len(order) // 10].sum() / order.sum()),
        "weakest_half": float(order[len(order) // 2 :].sum() / order.sum()),
        "output_layer_correlation": float(np.corrcoef(strengths, table.column("strength"))[0, 1]),
        "lorenz": np.interp(GRID, tokens, shares).tolist(),
        "by_position": by_position(relative, table.column("position")),
        "by_entropy": by_decile(relative, table.column("entropy")),
        "by_advantage": by_decile(relative, table.column("whitened")),
        "mean_entropy": by_decile(table.column("entropy"), table.column("entropy")),
        "mean_advantage": by_decile(table.column("whitened"), table.column("whitened")),
    }
    if truth is not None:
        row["correlation_with_truth"] = float(
            np.corrcoef(table.column("advantage"), of_truth)[0, 1]
        )
    return row, norms


def print_table(rows: list[dict]) -> None:
    shown = Table(title="update strength of tokens, all trainable parameters")
    headers = ("task", "policy", "credit", "Gini", "in a response", "of |w|", "of ‖∇ log π‖")
    for header in (*headers, "strongest tenth", "weakest half", "corr. with true A"):
        shown.add_column(header, justify="right")
    for key in dict.fromkeys((r["task"], r["stage"], r["estimator"]) for r in rows):
        own = [r for r in rows if (r["task"], r["stage"], r["estimator"]) == key]
        names = ("gini", "gini_within", "gini_weight", "gini_norm", "top_tenth", "weakest_half")
        cells = [
            "" if own[0].get(name) is None else said([r[name] for r in own], ".2f")
            for name in (*names, "correlation_with_truth")
        ]
        shown.add_row(*key, *cells, end_section=key[2] == "rloo")
    Console(width=150).print(shown)


def draw(rows: list[dict]):
    """A row for each task: Lorenz curves, and strength by position, entropy and advantage."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, axes = new_figure(len(tasks), 4, 11.5, 2.7 * len(tasks), squeeze=False)
    for i, task in enumerate(tasks):
        for (name, label), color in zip(ESTIMATORS.items(), (COLORS[0], COLORS[1]), strict=True):
            wanted = (task, "middle", name)
            own = [r for r in rows if (r["task"], r["stage"], r["estimator"]) == wanted]
            positions = sorted({p for r in own for p in r["by_position"]})
            by_position = [[r["by_position"].get(p, np.nan) for p in positions] for r in own]
            for axis, x, curves in (
                (axes[i, 0], GRID, [r["lorenz"] for r in own]),
                (axes[i, 1], [p + 1 for p in positions], by_position),
                (axes[i, 2], range(1, 11), [r["by_entropy"] for r in own]),
                (axes[i, 3], range(1, 11), [r["by_advantage"] for r in own]),
            ):
                curves = np.array(curves)
                marker = "" if axis is axes[i, 0] else "o"
                middle = np.nanmean(curves, axis=0)
                axis.plot(x, middle, marker=marker, markersize=3, color=color, label=label)
                low, high = np.nanmin(curves, axis=0), np.nanmax(curves, axis=0)
                axis.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
        axes[i, 0].plot([0, 1], [0, 1], ":", color="black", linewidth=1, label="all the same")
        axes[i, 0].set_ylabel(f"{task}\nshare of all update strength")
        for axis in axes[i, 1:]:
            axis.axhline(1.0, color="black", linestyle=":", linewidth=1)
            axis.set_ylim(bottom=0)
        axes[i, 1].set_ylabel("strength / mean")
    for axis, label in zip(
        axes[-1],
        (
            "share of tokens, weakest first",
            "position in the response",
            "decile of entropy (10: most uncertain)",
            "decile of advantage (10: highest)",
        ),
        strict=True,
    ):
        axis.set_xlabel(label)
    axes[0, 0].legend(loc="upper left")
    return figure


def main() -> None:
    arguments = options(__doc__, task="a further task, 'package.module:TASK': a model of yours")
    seeds, prompts, groups = (1, 2, 1) if arguments.quick else (5, 32, 8)
    shorter = {"max_new_tokens": 4} if arguments.quick else {}
    jobs = []
    for task in [*TOKENS, *([arguments.task] if arguments.task else [])]:
        tokens = 4096 if arguments.quick else TOKENS.get(task, 32_768)
        of_task = (prompts, GROUP, {})
        if task == "exact":
            of_task = (5, groups * GROUP, shorter)  # it has 5 prompts
        jobs += [(task, seed, tokens, *of_task) for seed in range(seeds)]
    rows = [row for part in in_parallel(measure, jobs, arguments.processes) for row in part]
    print_table(rows)
    write(arguments.out, "token_strength", rows, draw(rows))


if __name__ == "__main__":
    main()
