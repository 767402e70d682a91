"""Good film reviews for `tokenrlhf sft` (docs/whole-way.md), as people would write them.

Every one is the best of four reviews that the grammar of the task `reviews` draws, by the gold
reward. The first sentence is the prompt. No prompt of the held-out split is among them.

    python examples/20_demonstrations.py
"""

import json
from pathlib import Path

import numpy as np

from tokenenv.tasks.reviews import TASK
from tokenenv.tasks.reviews.gold import gold_reward
from tokenenv.tasks.reviews.grammar import sample_review

COUNT, BEST_OF = 1000, 4


def first_sentence(review: str) -> str:
    """Up to the first full stop."""
    return review[: review.index(".") + 1]


def demonstrations(count: int = COUNT, seed: int = 0) -> list[dict[str, str]]:
    """Rows of a prompt and a good response."""
    rng = np.random.default_rng(seed)
    openings = {first_sentence(prompt) for prompt in TASK.prompts("train")}
    rows: list[dict[str, str]] = []
    while len(rows) < count:
        best = max((sample_review(rng) for _ in range(BEST_OF)), key=gold_reward)
        prompt = first_sentence(best)
        if prompt in openings:
            rows.append({"prompt": prompt, "response": best[len(prompt) :]})
    return rows


if __name__ == "__main__":
    rows = demonstrations()
    Path("demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gold = np.mean([gold_reward(row["prompt"] + row["response"]) for row in rows])
    print(f"{len(rows)} demonstrations in demonstrations.jsonl, gold reward {gold:.3f} on average")
