"""`reviews`: continue a film review, positively (Ziegler et al. 2019, in small).

Humans prefer positive reviews here. The reviews come from a grammar (`grammar.py`), so
their entropy and their true reward (`gold.py`) are known.
`python -m tokenenv.tasks.reviews.build` makes the models that ship with it.
"""

from __future__ import annotations

from tokenenv.tasks import ASSETS, Task
from tokenenv.tasks.reviews.gold import gold_reward
from tokenenv.tasks.reviews.parsing import begins_review, parse_review
from tokenenv.tasks.reviews.prompts import reviews_prompts

__all__ = ["FOLDER", "TASK", "gold_rewards"]

FOLDER = ASSETS / "reviews"
"""The shipped models and their card."""


def _gold_reward(prompt: str, response: str, stopped: bool) -> float:
    return gold_reward(prompt + response)


def gold_rewards(prompts: list[str], responses: list[str]) -> list[float]:
    """The gold reward as a reward function: what people who agree with it would say."""
    return [gold_reward(p + r) for p, r in zip(prompts, responses, strict=True)]


def _grammar(prompt: str, response: str, stopped: bool) -> bool:
    text = prompt + response
    return parse_review(text).is_grammatical if stopped else begins_review(text)


TASK = Task(
    name="reviews",
    reference=str(FOLDER / "reference"),
    reward_model=str(FOLDER / "reward_model"),
    prompts=reviews_prompts,
    max_prompt_tokens=16,
    max_new_tokens=32,
    kl_coef=0.25,
    gold_reward=_gold_reward,
    card=FOLDER / "card.json",
    grammar=_grammar,
)
