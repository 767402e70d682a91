"""A real language model learns what a sentiment lexicon likes: the whole way, on one CPU core.

    python examples/21_real_model.py --lm FOLDER --texts FILE --out real

The model's own samples are ordered by the lexicon, a reward model learns that order, and PPO trains
the model on it. Written to the folder of `--out`: the task (`real_task.py`), real_model.json and
.png with score, lexicon, KL and J against tokens, samples before and after, and policy/, a model
for plain `transformers`. docs/real-model.md has such a run. `--task-only` makes the task alone.
`--quick` is small enough for a test, and takes the bundled film reviews where no model is given.
"""

from __future__ import annotations

import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiment import COLORS, new_figure, options, write
from real_task import TaskSettings, environment, held_out_of, make_task

TOKENS, POINTS, RESPONSES = 65_536, 8, 4
SMALL = TaskSettings(10, 16, train_prompts=300, eval_prompts=64, samples=4, epochs=4)
SHOWN = 6
"""Held-out prompts whose responses are shown."""


def sources(lm: str | None, texts: str | None, out: Path, is_quick: bool) -> tuple[Path, Path]:
    """The model and the file of texts; for a quick run those of the bundled film reviews."""
    if lm is not None and texts is not None:
        return Path(lm), Path(texts)
    if not is_quick:
        raise SystemExit(
            "--lm and --texts are missing: the folder of a causal language model, and a file of "
            "text like that it was trained on. docs/real-model.md names those that it used; "
            "--quick does without."
        )
    import numpy as np

    from tokenenv.tasks import load_task
    from tokenenv.tasks.reviews.grammar import sample_review

    rng = np.random.default_rng(0)
    lines = [sample_review(rng) for _ in range(1500)]
    (out / "reviews.txt").write_text("\n".join(lines), encoding="utf-8")
    return Path(load_task("reviews").reference), out / "reviews.txt"


def new_model(task: Path, seed: int) -> Any:
    """A `TokenPPO` with the settings of agents/zoo/real-lm.yaml."""
    from agents import make_vec_env
    from agents.runs.agent import build_agent
    from agents.zoo import train_settings

    config = replace(train_settings("real-lm"), seed=seed)
    env = make_vec_env(
        n_envs=config.n_envs, seed=seed, scoring="deferred", device="cpu", **environment(task)
    )
    return build_agent(config, env)


def train(task: Path, tokens: int, points: int, responses: int, seed: int = 0) -> dict[str, Any]:
    """Train; J and its parts at some points, and responses before and after to the same prompts."""
    import torch

    from agents.evaluation import measure, respond

    torch.set_num_threads(1)
    held_out, model = held_out_of(task), new_model(task, seed)
    actor: Any = model.policy.actor
    curve: list[dict[str, float]] = []

    def look() -> None:
        with torch.random.fork_rng():
            numbers = measure(actor, held_out, responses, seed=1)
        curve.append({"tokens": model.num_timesteps, **numbers})
        print(
            f"{model.num_timesteps:>8,} tokens: J {numbers['objective']:6.3f}, score "
            f"{numbers['score']:6.3f}, KL {numbers['kl']:6.3f} nats, lexicon "
            f"{numbers['gold_reward']:6.3f}",
            flush=True,
        )

    def responded() -> list[Any]:
        first = held_out.prompts[:SHOWN], held_out.max_new_tokens
        return respond(actor, held_out.scorer, held_out.texts[:SHOWN], *first, seed=2)

    before = responded()
    look()
    model.on_updated = lambda _: (
        look() if model.num_timesteps >= len(curve) * tokens / points else None
    )
    try:
        model.learn(tokens)
    except KeyboardInterrupt:
        print(f"stopped after {model.num_timesteps:,} tokens: what was learned by then is kept")
    samples = [
        {"prompt": old.prompt, "before": told(old), "after": told(new)}
        for old, new in zip(before, responded(), strict=True)
    ]
    model.policy.save_pretrained(
        task / "policy", held_out.scorer.reference.language_model.tokenizer
    )
    return {"tokens": model.num_timesteps, "seed": seed, "curve": curve, "samples": samples}


def told(response: Any) -> dict[str, Any]:
    """What is kept of a response."""
    return {
        "text": response.response,
        "score": round(response.score, 2),
        "lexicon": round(response.gold_reward, 2),
        "kl": round(response.kl, 2),
    }


def draw(curve: list[dict[str, float]]) -> Any:
    """Four curves against tokens."""
    figure, axes = new_figure(1, 4, 12.5, 2.9)
    shown = {
        "objective": "J = E[score] − β·KL",
        "score": "score, by the reward model",
        "gold_reward": "sentiment, by the lexicon",
        "kl": "KL from the start, nats per response",
    }
    for axis, (name, title), color in zip(axes, shown.items(), COLORS, strict=False):
        axis.plot([p["tokens"] for p in curve], [p[name] for p in curve], "o-", color=color, ms=3)
        axis.set(title=title, xlabel="response tokens")
    return figure


def show(samples: list[dict[str, Any]]) -> None:
    """Print responses before and after."""
    for sample in samples:
        print(f"\n{sample['prompt'].strip()} …")
        for when in ("before", "after"):
            told = sample[when]
            text = textwrap.shorten(told["text"], 200)
            print(f"  {when}, score {told['score']:+.2f}, lexicon {told['lexicon']:+.2f}: {text}")


def main() -> None:
    arguments = options(
        __doc__.partition("\n")[0],
        {"task-only": "make the task, and train nothing"},
        lm="folder of a causal language model",
        texts="file of text that prompts are taken from",
        tokens=f"response tokens to train on; default: {TOKENS}",
    )
    out, is_quick = arguments.out, arguments.quick
    if not (out / "task.json").is_file():
        lm, texts = sources(arguments.lm, arguments.texts, out, is_quick)
        try:
            made = make_task(lm, texts, out, SMALL if is_quick else None)
        except (OSError, ValueError) as error:
            raise SystemExit(str(error)) from error
        print(
            f"{made['prompts']['train']:,} prompts to train on, {made['prompts']['eval']} held "
            f"out; {made['pairs']:,} pairs, and {made['ties']:,} ties left out. The reward model "
            f"orders {made['held_out']['accuracy']:.0%} of {made['held_out']['pairs']} held-out "
            "pairs as the lexicon does."
        )
    if arguments.task_only:
        return
    tokens = int(arguments.tokens or (4096 if is_quick else TOKENS))
    points, responses = (2, 1) if is_quick else (POINTS, RESPONSES)
    result = train(out, tokens, points, responses)
    show(result["samples"])
    write(out, "real_model", result, draw(result["curve"]))


if __name__ == "__main__":
    main()
