"""Token tables and runs without a model: numbers that agree with each other, from a seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from agents.credit import COLUMNS, TOP, write_tokens
from tokenenv.maths import (
    generalized_advantages,
    group_advantages,
    leave_one_out_advantages,
    length_adaptive_lambdas,
)

WORDS = " the| film| was| great| dull| and| I| saw| it| a| plot| music| really| fresh| not| bad|."
VOCABULARY = ["<eos>", *WORDS.split("|")]

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    "\u202eright to left\u202c",
    "שלום عربى",
    "🙂👩‍👩‍👧",
    "\x00\x07\x1b[31m\x9b",
    "\u2028\u2029",
    "\ufffd",
    "{{ 7*7 }} {% raw %} ${x} &amp; \"quoted\" 'single' `tick`",
    "<!--",
    "\n",
    " \t ",
    "",
    "x" * 10_000,
]
"""Texts of tokens that a page must show as text."""


def make_header(step: int = 0, **changes: Any) -> dict[str, Any]:
    """The header of a run with GAE."""
    return {
        "step": step,
        "update": step // 1024,
        "task": "reviews",
        "estimator": "gae",
        "gamma": 1.0,
        "gae_lambda": 0.95,
        "group_size": 1,
        "kl_coef": 0.25,
        "kl_estimator": "k1",
        "use_kl_loss": False,
        "clip_range": 0.2,
        "clip_range_vf": 0.2,
        "temperature": 1.0,
        "ent_coef": 0.0,
        "vf_coef": 0.5,
        "has_critic": True,
        "whitening": {"mean": 0.04, "deviation": 0.6, "of": "the last rollout"},
        "reward_scale": {"factor": 1.0, "shift": 0.0},
        **changes,
    }


def make_response(
    rng: np.random.Generator,
    header: dict[str, Any],
    kind: str = "fresh",
    index: int = 0,
    length: int = 12,
    texts: list[str] | None = None,
    is_exact: bool = False,
    bootstrap_value: float = 0.0,
) -> dict[str, Any]:
    """One response with its columns; a bootstrap value where the rollout's end has cut it."""
    tokens = rng.integers(1, len(VOCABULARY), length)
    if length > 1:
        tokens[-1] = 0
    texts = [VOCABULARY[i] for i in tokens] if texts is None else texts
    order = rng.random((length, len(VOCABULARY)))
    order[np.arange(length), tokens] = 2.0  # the token itself is the second most likely
    top = np.insert(np.argsort(order, axis=1)[:, : TOP - 1], 1, tokens, axis=1)
    probs = -np.sort(-rng.dirichlet(np.full(TOP + 1, 0.5), length), axis=1)[:, :TOP]
    columns = _columns(rng, header, length, kind, probs[:, 1], is_exact, bootstrap_value)
    score = float(columns["reward_score"][-1])
    columns |= {
        "position": np.arange(length),
        "token": tokens,
        "text": texts,
        "top_tokens": top,
        "top_texts": [
            [text if j == 1 else VOCABULARY[k] for j, k in enumerate(row)]
            for row, text in zip(top, texts, strict=True)
        ],
        "top_probs": probs,
    }
    return {
        "kind": kind,
        "index": index,
        "prompt": f"Prompt {index // 2}: we saw the new film today.",
        "response": "".join(texts),
        "score": score,
        "gold_reward": score / 3,
        "finish_reason": "cut" if bootstrap_value else "stop",
        "bootstrap_value": bootstrap_value,
        "uniform": dict.fromkeys(("rloo", "group", "reinforce")),
        "columns": {name: columns[name] for name in [*COLUMNS, *_WHOLE]},
    }


_WHOLE = ("top_tokens", "top_texts", "top_probs")


def _columns(
    rng: np.random.Generator,
    header: dict[str, Any],
    length: int,
    kind: str,
    probs: np.ndarray,
    is_exact: bool,
    bootstrap_value: float,
) -> dict[str, Any]:
    """The columns of numbers, by the formulas that `COLUMNS` gives."""
    beta, scale = header["kl_coef"], header["reward_scale"]
    log_prob = np.log(np.maximum(probs, 1e-6))
    ref_log_prob = log_prob - rng.normal(0.1, 0.5, length)
    score = np.zeros(length)
    score[-1] = rng.normal(1.0, 0.8)
    reward_kl = -beta * (log_prob - ref_log_prob)
    reward = reward_kl + score
    value = np.linspace(0.4, 0.9, length) * score[-1] + rng.normal(0, 0.2, length)
    paid = scale["factor"] * reward + scale["shift"]
    ends = np.array([bootstrap_value])
    lengths, alpha = np.array([length]), header.get("gae_lambda_alpha")
    lambdas = header["gae_lambda"] if alpha is None else length_adaptive_lambdas(lengths, alpha)
    advantage = generalized_advantages(
        paid[None], value[None], lengths, ends, header["gamma"], lambdas
    )[0]
    following = np.append(value[1:], bootstrap_value)
    whitening = header["whitening"] or {"mean": 0.0, "deviation": 1.0}
    whitened = (advantage - whitening["mean"]) / whitening["deviation"]
    unknown = np.full(length, np.nan)
    ratio, clip, weight = unknown, [None] * length, whitened
    if kind == "rollout":
        ratio = np.exp(rng.normal(0, 0.12, length))
        is_high = (ratio > 1 + header["clip_range"]) & (whitened > 0)
        is_low = (ratio < 1 - header["clip_range"]) & (whitened < 0)
        clip = ["high" if h else "low" if lo else "" for h, lo in zip(is_high, is_low, strict=True)]
        weight = np.where(is_high | is_low, 0.0, whitened * ratio)
    strength = np.abs(weight) * rng.gamma(2.0, 0.4, length)
    noise = rng.normal(0, 0.15, length)
    return {
        "log_prob": log_prob,
        "ref_log_prob": ref_log_prob,
        "kl": log_prob - ref_log_prob,
        "full_kl": np.abs(rng.normal(0.1, 0.1, length)),
        "entropy": rng.gamma(2.0, 0.5, length),
        "reward_reference": beta * ref_log_prob,
        "reward_actor": -beta * log_prob,
        "reward_kl": reward_kl,
        "reward_score": score,
        "reward": reward,
        "value": value,
        "delta": paid + header["gamma"] * following - value,
        "advantage": advantage,
        "whitened": whitened,
        "return": advantage + value,
        "true_advantage": 0.6 * advantage + noise if is_exact else unknown,
        "ratio": ratio,
        "clip": clip,
        "weight": weight,
        "strength": strength,
        "share": strength / max(strength.sum(), 1e-9),
        "exact_strength": unknown,
        "exact_share": unknown,
        "value_loss": (advantage) ** 2,
        "entropy_bonus": np.zeros(length),
        "gradient_norm": np.divide(
            strength, np.abs(weight), out=np.ones(length), where=np.asarray(weight) != 0
        ),
        "kl_loss": np.zeros(length),
    }


def make_responses(
    header: dict[str, Any],
    counts: dict[str, int],
    length: int = 12,
    seed: int = 0,
    is_exact: bool = False,
) -> list[dict[str, Any]]:
    """Responses of several kinds, two to each prompt, with their uniform advantages."""
    rng = np.random.default_rng([seed, header["step"]])
    responses = []
    for kind, count in counts.items():
        same = np.random.default_rng(seed)  # the words of fixed responses are those of every step
        group = []
        for index in range(count):
            size = int((same if kind == "fixed" else rng).integers(max(1, length // 2), length + 1))
            texts = [VOCABULARY[i] for i in same.integers(1, len(VOCABULARY), size)]
            response = make_response(
                rng,
                header,
                kind,
                index,
                size,
                [*texts[:-1], "<eos>"] if kind == "fixed" else None,
                is_exact,
            )
            group.append(response)
        _compare(group)
        responses += group
    return responses


def _compare(group: list[dict[str, Any]]) -> None:
    """Fill in the uniform advantages of responses, two of which share a prompt."""
    returns = np.array([np.sum(r["columns"]["reward"]) for r in group])
    if len(group) % 2:
        return
    pairs = returns.reshape(-1, 2)
    by_name = {
        "rloo": leave_one_out_advantages(pairs).ravel(),
        "group": group_advantages(pairs).ravel(),
        "reinforce": returns - returns.mean(),
    }
    for name, values in by_name.items():
        for response, value in zip(group, values, strict=True):
            response["uniform"][name] = float(value)


COUNTS = {"fresh": 8, "fixed": 4, "rollout": 4}


def make_run(
    root: Path,
    steps: tuple[int, ...] = (1024, 2048, 4096),
    seed: int = 0,
    gain: float = 1.0,
    finished: bool = True,
    counts: dict[str, int] | None = None,
    length: int = 12,
    is_exact: bool = False,
    **settings: Any,
) -> Path:
    """The files of a run, without models: config, metrics, samples, summary, token tables."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    config = {
        **{"task": "reviews", "seed": seed, "total_tokens": 16384, "learning_rate": 3e-4},
        **{"kl_coef": None, "advantage_estimator": "gae", "out": str(root)},
        **settings,
    }
    (root / "config.json").write_text(json.dumps(config))
    rows = [_row(rng, i, gain) for i in range(16)]
    (root / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = [_sample(tokens, i, gain) for tokens in (1024, 8192, 16384) for i in range(4)]
    (root / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    if finished:
        (root / "summary.json").write_text(json.dumps(_summary(seed, gain)))
    for step in steps:
        header = make_header(step)
        responses = make_responses(header, counts or COUNTS, length, seed, is_exact)
        write_tokens(root / "tokens" / f"{step}.jsonl", header, responses)
    return root


def _row(rng: np.random.Generator, number: int, gain: float) -> dict[str, float]:
    progress = 1 - np.exp(-number / 5)
    score = 0.1 + gain * progress + rng.normal(0, 0.03)
    kl = max(0.0, 2 * progress + rng.normal(0, 0.05))
    row = {
        "time/total_timesteps": 1024 * (number + 1),
        "rlhf/score": score,
        "rlhf/kl": kl,
        "rlhf/kl_coef": 0.25,
        "rlhf/objective": score - 0.25 * kl,
        "rlhf/gold_reward": score / 3,
        "rlhf/entropy": 1.3 - 0.6 * progress,
        "rlhf/response_length": 10 + 3 * progress,
        "rlhf/eos_rate": 1.0,
    }
    if number:
        row |= {
            "train/explained_variance": 0.6 * progress + rng.normal(0, 0.02),
            "train/clip_fraction": 0.08 - 0.05 * progress,
            "train/value_loss": 1.0 - 0.7 * progress,
        }
    if number in (7, 15):
        row |= {"eval/objective": score - 0.25 * kl, "eval/score": score, "eval/kl": kl}
    return {name: float(value) for name, value in row.items()}


def _sample(tokens: int, prompt: int, gain: float) -> dict[str, Any]:
    score = (gain if tokens > 1024 else -0.5) * (1 + prompt / 4) * tokens / 16384
    return {
        "tokens": tokens,
        "prompt": f"Prompt {prompt}: we saw the new film today.",
        "response": " It has great scenes." if tokens > 1024 else " It has really weak scenes.",
        "score": score,
        "gold_reward": score / 3,
        "kl": tokens / 8192,
        "finish_reason": "stop",
    }


def _summary(seed: int, gain: float) -> dict[str, Any]:
    objective = 0.1 + 0.6 * gain
    return {
        "task": "reviews",
        "seed": seed,
        "kl_coef": 0.25,
        "prompts": 64,
        "prompts_asked_for": 64,
        "objective": objective,
        "objective_reference": 0.03,
        "optimum_lower_bound": 1.0,
        "optimum_interval": [0.9, 1.1],
        "objective_fraction": (objective - 0.03) / 0.97,
        "fraction_interval": [(objective - 0.13) / 0.97, (objective + 0.07) / 0.97],
        "effective_sample_size": 0.4,
        "least_effective_sample_size": 0.2,
        "kl": 1.9,
        "score": objective + 0.25 * 1.9,
        "score_reference": 0.03,
        "gold_reward": 0.3,
        "gold_reward_reference": -0.1,
        "response_length": 12.5,
        "eos_rate": 0.99,
        "responses_per_prompt": 256,
        "is_reliable": True,
        "finished": True,
        "tokens": 16384,
        "tokens_per_second": 1400.0,
        "wall_seconds": 11.7,
        "precision": "float32",
    }
