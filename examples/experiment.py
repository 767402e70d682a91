"""What the numbered experiments share: options, processes, intervals, JSON, the look of figures."""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

# Small models are fastest with one thread each; processes use the other cores. Before torch loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

COLORS = ("#1f6fb2", "#d1662c", "#2a8f4f", "#8c4a9e", "#7f7f7f", "#b8860b")
"""Told apart by readers who see colours differently, blue and orange first."""

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t for 1, 2, … degrees of freedom."""


def options(
    description: str | None, flags: Mapping[str, str] | None = None, **further: str
) -> argparse.Namespace:
    """`--quick`, `--out` and `--processes` of a script, and options of its own with their help.

    Args:
        description: of the script.
        flags: name of an option without a value → its help.
        **further: name of an option with a value → its help.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a small version, in half a minute")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of JSON and figure")
    parser.add_argument("--processes", type=int, default=2, help="runs side by side")
    for name, text in further.items():
        parser.add_argument(f"--{name}", help=text)
    for name, text in (flags or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    return arguments


def new_agent(task: str, seed: int, n_envs: int = 64, **changes: Any) -> Any:
    """A `TokenPPO` with the settings that learn `reviews` and `exact` fast, ready to learn.

    Args:
        task: name of a task.
        seed: of environment and agent.
        n_envs: episodes side by side; 128 on `exact`.
        **changes: of the settings; `advantage_estimator`, `group_size`, `kl_coef` and
            `max_new_tokens` go where they belong.
    """
    from agents import LMActorCriticPolicy, TokenPPO, make_vec_env
    from tokenenv.maths import CRITIC_FREE

    is_exact = task == "exact"
    estimator = changes.pop("advantage_estimator", "gae")
    group_size = changes.pop("group_size", 1)
    env = make_vec_env(
        n_envs=2 * n_envs if is_exact else n_envs,
        seed=seed,
        scoring="deferred",
        task=task,
        group_size=group_size,
        device="cpu",
        **{name: changes.pop(name) for name in ("kl_coef", "max_new_tokens") if name in changes},
    )
    settings = {
        "learning_rate": 3e-3 if is_exact else 5e-4,
        "batch_size": 1024 if is_exact else 512,
        **({"clip_range_vf": None} if is_exact else {}),
        **{"n_steps": 32, "n_epochs": 4, "seed": seed, "device": "cpu"},
        **changes,
    }
    buffer = {
        "advantage_estimator": estimator,
        "group_size": group_size,
        "cut": "carry" if estimator in CRITIC_FREE else "bootstrap",
    }
    return TokenPPO(
        LMActorCriticPolicy,
        env,
        policy_kwargs={"actor": env.inner.mdp.settings.reference},
        rollout_buffer_kwargs=buffer,
        **settings,
    )


def sample_episodes(actor: Any, held_out: Any, per_prompt: int, seed: int) -> list[Any]:
    """Finished responses of an actor to held-out prompts, those to one prompt side by side."""
    from tokenenv.models import sample_responses
    from tokenenv.rewards import Episode

    prompts = [prompt for prompt in held_out.prompts for _ in range(per_prompt)]
    reference = held_out.scorer.reference
    sampled = sample_responses(
        actor,
        reference.language_model.eos_token_ids,
        prompts,
        held_out.max_new_tokens,
        temperature=reference.temperature,
        seed=seed,
    )
    return [Episode(p, s.tokens, s.stopped) for p, s in zip(prompts, sampled, strict=True)]


def in_parallel(run: Callable[..., Any], jobs: Iterable[tuple], processes: int) -> list[Any]:
    """The results of `run(*job)` for each job, in order; in processes of their own.

    Args:
        run: a function of the script's top level.
        jobs: its arguments.
        processes: how many work at once; 1 works in this one.
    """
    listed = list(jobs)
    if processes <= 1 or len(listed) <= 1:
        return [run(*job) for job in listed]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(listed)), spawn) as pool:
        return [future.result() for future in [pool.submit(run, *job) for job in listed]]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of some seeds and half the width of its 95 % interval by Student's t.

    NaN for the half where there is one seed alone.
    """
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, T_975[min(n - 2, len(T_975) - 1)] * math.sqrt(variance / n)


def said(values: Sequence[float], form: str = ".3f") -> str:
    """The mean of some seeds with its interval, as a table shows it."""
    mean, half = interval(values)
    return format(mean, form) + ("" if math.isnan(half) else f" ± {half:{form.lstrip('+')}}")


def new_figure(rows: int, columns: int, width: float, height: float, **kwargs: Any) -> Any:
    """A figure and its axes, in one style; nothing needs a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            **{"font.size": 9, "axes.titlesize": 10, "legend.fontsize": 8, "legend.frameon": False},
            **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True},
            **{"grid.alpha": 0.25, "lines.linewidth": 1.6, "axes.axisbelow": True},
        }
    )
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", **kwargs)


def write(out: Path, name: str, result: Any, figure: Any) -> None:
    """Write `NAME.json` and `NAME.png`, and say so."""
    (out / f"{name}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    figure.savefig(out / f"{name}.png", dpi=140)
    print(f"written: {out / name}.json, {out / name}.png")
