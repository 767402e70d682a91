"""Bias and variance of advantage estimates against the true advantage: table, JSON and plot."""

import json
from dataclasses import asdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

from tokenenv.optimum import enumerate_task, solve
from tokenenv.optimum.bias_variance import measure_advantages

ERRORS = (0.0, 0.5, 1.0, 2.0)  # of the critic, in standard deviations of the true values
solution = solve(enumerate_task("exact"))
policy = solution.policy_between(0.5)
rows = measure_advantages(policy, solution.tree, critic_errors=ERRORS)

table = Table(title="GAE(γ, λ) against the true advantage, per token")
for header in ("critic error", "γ", "λ", "raw bias", "gradient bias", "variance", "total error"):
    table.add_column(header, justify="right")
for row in rows:
    own = [r for r in rows if (r.critic_error, r.gamma) == (row.critic_error, row.gamma)]
    best = row is min(own, key=lambda r: r.total_error)
    table.add_row(
        *(f"{value:g}" for value in (row.critic_error, row.gamma, row.gae_lambda)),
        *(f"{value:.4f}" for value in (row.raw_bias, row.gradient_bias, row.variance)),
        f"{row.total_error:.4f}{' ←' if best else '  '}",
        end_section=row is own[-1],
    )
Console(width=100).print(table)

figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
dense = [i / 50 for i in range(51)]
curves = measure_advantages(
    policy, solution.tree, critic_errors=ERRORS, gammas=(1.0,), lambdas=dense
)
for error, color in zip(ERRORS, ("#2a8f4f", "#1f6fb2", "#d1662c", "#8c4a9e"), strict=True):
    mine = [row for row in curves if row.critic_error == error]
    for axis, name in zip(axes, ("gradient_bias", "variance", "total_error"), strict=True):
        values = [getattr(row, name) for row in mine]
        axis.plot(dense, values, color=color, label=f"critic error {error:g}")
        if name == "total_error":
            axis.plot(dense[values.index(min(values))], min(values), "o", color=color)
titles = ("bias of the gradient", "variance", "total error: bias² + variance")
for axis, title in zip(axes, titles, strict=True):
    axis.set(title=title, xlabel="λ")
    axis.grid(alpha=0.25)
axes[0].legend(fontsize=8)
figure.savefig("bias_variance.png", dpi=120)
found = [{**asdict(row), "total_error": row.total_error} for row in rows]
Path("bias_variance.json").write_text(json.dumps(found, indent=2))
print("written: bias_variance.json, bias_variance.png")
