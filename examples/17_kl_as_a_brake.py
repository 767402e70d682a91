"""What does β hold back? Score, gold reward, KL and variety by β, and which tokens pay the KL."""

from __future__ import annotations

from collections import defaultdict

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

KL_COEFS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5)
COLUMNS = {
    "score": ("score", "+.2f"),
    "gold_reward": ("gold reward", "+.2f"),
    "kl": ("KL, nats", ".2f"),
    "distinct": ("distinct responses", ".2f"),
    "top_tenth": ("KL paid by a tenth of the tokens", ".2f"),
}


def train(kl_coef: float, seed: int, tokens: int, prompts: int, per_prompt: int) -> dict:
    """One training on `reviews`, and its responses to held-out prompts."""
    from agents import RLHFCallback
    from agents.credit import UpdateSettings, by_decile, by_position, token_table
    from agents.evaluation import HeldOut

    environment = {"task": "reviews", "device": "cpu", "kl_coef": kl_coef}
    held_out = HeldOut.from_env_kwargs(environment, prompts)
    model = new_agent("reviews", seed, kl_coef=kl_coef)
    model.learn(tokens, callback=RLHFCallback())
    episodes = sample_episodes(model.policy.actor, held_out, per_prompt, 1000 + seed)
    settings = UpdateSettings(kl_coef=kl_coef)
    table = token_table(model.policy, held_out.scorer, episodes, settings)
    responses = table.responses
    kls, positions = table.column("full_kl"), table.column("position")
    by_word = defaultdict(float)
    for text, kl in zip(table.column("text"), kls, strict=True):
        by_word[str(text)] += float(kl) / kls.sum()
    ordered = np.sort(kls)[::-1]
    return {
        "kl_coef": kl_coef,
        "seed": seed,
        "score": float(np.mean([r["score"] for r in responses])),
        "gold_reward": float(np.mean([r["gold_reward"] for r in responses])),
        "kl": float(kls.sum() / len(responses)),
        "distinct": len({r["response"] for r in responses}) / len(responses),
        "top_tenth": float(ordered[: len(ordered) // 10].sum() / ordered.sum()),
        "by_position": by_position(kls, positions),
        "by_entropy": by_decile(kls / kls.mean(), table.column("entropy")),
        "words": sorted(by_word.items(), key=lambda item: -item[1])[:10],
    }


def print_table(rows: list[dict]) -> None:
    shown = Table(title="held-out responses after training with β")
    for header in ("β", *(title for title, _ in COLUMNS.values()), "tokens that pay most"):
        shown.add_column(header, justify="right")
    for kl_coef in tried(rows):
        own = [row for row in rows if row["kl_coef"] == kl_coef]
        cells = [said([r[name] for r in own], form) for name, (_, form) in COLUMNS.items()]
        words = ", ".join(
            f"{word.strip() or '␣'} {share:.0%}" for word, share in own[0]["words"][:4]
        )
        shown.add_row(f"{kl_coef:g}", *cells, words)
    Console(width=170).print(shown)


def tried(rows: list[dict]) -> list[float]:
    return sorted({row["kl_coef"] for row in rows})


def draw(rows: list[dict]):
    figure, axes = new_figure(1, 4, 12.5, 3.2)
    kl_coefs = tried(rows)
    places = np.arange(len(kl_coefs))
    own = [[row for row in rows if row["kl_coef"] == x] for x in kl_coefs]

    def bars(axis, name: str, color: str, label: str) -> None:
        middle, half = np.array([interval([r[name] for r in of]) for of in own]).T
        axis.errorbar(
            places, middle, np.nan_to_num(half), fmt="o-", color=color, capsize=2.5, label=label
        )

    bars(axes[0], "score", COLORS[0], "score (reward model)")
    bars(axes[0], "gold_reward", COLORS[1], "gold reward")
    axes[0].legend(loc="best")
    axes[0].set_ylabel("mean over held-out responses")
    bars(axes[1], "kl", COLORS[0], "KL")
    axes[1].set_ylabel("KL per response, nats")
    axes[1].set_ylim(bottom=0)
    bars(axes[2], "distinct", COLORS[2], "distinct")
    axes[2].set_ylabel("share of distinct responses")
    axes[2].set_ylim(0, 1.02)
    for axis in axes[:3]:
        axis.set_xticks(places, [f"{x:g}" for x in kl_coefs])
        axis.set_xlabel("β")
    draw_by_position(axes[3], kl_coefs, own)
    return figure


def draw_by_position(axis, kl_coefs: list[float], own: list[list[dict]]) -> None:
    from matplotlib import colormaps

    shades = colormaps["viridis"](np.linspace(0.0, 0.88, len(kl_coefs)))
    for kl_coef, of, color in zip(kl_coefs, own, shades, strict=True):
        positions = sorted({p for row in of for p in row["by_position"]})
        middle = [np.mean([r["by_position"].get(p, np.nan) for r in of]) for p in positions]
        label = f"β = {kl_coef:g}"
        axis.plot([p + 1 for p in positions], middle, color=color, linewidth=1.3, label=label)
    axis.set(xlabel="position in the response", ylabel="KL(π ‖ π_ref) at the token, nats")
    axis.set_yscale("log")
    axis.set_ylim(0.05, 40)  # room for the legend
    axis.set_yticks([0.1, 1, 10], ["0.1", "1", "10"])
    axis.legend(loc="upper center", fontsize=7, ncols=2)


def main() -> None:
    arguments = options(__doc__)
    seeds, tokens, prompts = (1, 6144, 4) if arguments.quick else (3, 32_768, 64)
    kl_coefs = KL_COEFS[::5] if arguments.quick else KL_COEFS
    jobs = [(x, seed, tokens, prompts, 8) for seed in range(seeds) for x in kl_coefs]
    rows = in_parallel(train, jobs, arguments.processes)
    print_table(rows)
    write(arguments.out, "kl_brake", rows, draw(rows))


if __name__ == "__main__":
    main()
