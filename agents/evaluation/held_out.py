"""The fixed prompts that a run is evaluated on, with the known optimum or its bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tokenenv.data import Prompt
from tokenenv.json_files import read_json_object
from tokenenv.mdp import TokenMDP
from tokenenv.optimum import MAX_RESPONSES, Solution, enumerate_mdp, solve
from tokenenv.optimum.enumeration import count_mdp_responses
from tokenenv.ranges import COUNT, check_ranges
from tokenenv.rewards import EpisodeScorer, is_learned, learned_rewards
from tokenenv.settings import EnvSettings, ResolvedSettings
from tokenenv.tasks import load_task

__all__ = ["HeldOut", "exact_solution"]


@dataclass(frozen=True)
class HeldOut:
    """The fixed prompts that a run is evaluated on.

    Attributes:
        settings: the environment's, resolved, of the `eval` split.
        scorer: its scorer.
        texts: X prompts.
        prompts: the same as token ids.
        origins: the same as they were given, with the columns that rewards ask for.
        asked_for: the requested number of prompts; there may be fewer.
        max_new_tokens: T.
        known_optimum: the card's bound on J* for just these prompts and settings, or None.
        solution: the exact optimum, where all responses can be enumerated; None otherwise.
    """

    settings: ResolvedSettings
    scorer: EpisodeScorer
    texts: list[str]
    prompts: list[np.ndarray]
    origins: list[Prompt]
    asked_for: int
    max_new_tokens: int
    known_optimum: float | None
    solution: Solution | None

    @classmethod
    def from_env_kwargs(cls, environment: dict[str, Any], count: int) -> HeldOut:
        """The first `count` prompts of the `eval` split of an environment.

        Args:
            environment: keyword arguments of `TokenEnv`.
            count: X, at most.

        Raises:
            ValueError: the environment's arguments can't be used.
        """
        check_ranges({"count": count}, {"count": COUNT})
        # The evaluation depends neither on the groups of training nor on where the KL is paid.
        env_kwargs = {**environment, "split": "eval", "group_size": 1, "kl_shaping": "k1"}
        mdp = TokenMDP(EnvSettings(**env_kwargs), num_envs=1)
        texts = mdp.prompts[:count]
        return cls(
            mdp.settings,
            mdp.scorer,
            texts,
            [mdp.encode_prompt(text) for text in texts],
            mdp.origins[:count],
            count,
            mdp.max_new_tokens,
            _card_optimum(mdp.settings, len(texts)),
            exact_solution(mdp, mdp.origins[:count]),
        )

    def first(self, count: int) -> HeldOut:
        """The first prompts alone, as if no more had been asked for.

        Args:
            count: 1 or more; all there are, at most. Where all responses are enumerated, all.
        """
        everything = len(self.prompts)
        if self.solution is not None or count >= everything:
            return replace(self, asked_for=everything)
        return replace(
            self,
            texts=self.texts[:count],
            prompts=self.prompts[:count],
            origins=self.origins[:count],
            asked_for=count,
            known_optimum=None,  # that of the card is for all
        )


def _card_optimum(settings: ResolvedSettings, prompts: int) -> float | None:
    """The card's bound, if it was measured with these settings, else None."""
    task = load_task(settings.task)
    if task.card is None or not task.card.is_file():
        return None
    card_settings = EnvSettings(
        task=settings.task,
        split=settings.split,
        scoring=settings.scoring,
        device=settings.device,
        dtype=settings.dtype,
        render_mode=settings.render_mode,
    ).resolved(task)
    if card_settings != settings:
        return None
    card = read_json_object(task.card, "a task's card").get("optimum")
    names = ("kl_coef", "prompts", "optimum_lower_bound")
    values = [card.get(name) if isinstance(card, dict) else None for name in names]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise ValueError(
            f"{str(task.card)!r}: a task's card holds an object 'optimum' with the numbers "
            f"{', '.join(names)}; restore the file, or give the task card=None."
        )
    kl_coef, count, bound = map(float, values)  # type: ignore[arg-type]
    return bound if (kl_coef, count) == (settings.kl_coef, prompts) else None


MAX_WORK = 10**10
"""Limit of responses times parameters for an enumeration: seconds on one core."""


def exact_solution(mdp: TokenMDP, prompts: Sequence[Any]) -> Solution | None:
    """The exact optimum for some prompts, where all responses can be enumerated cheaply, else None.

    Where the reward is a user's function there is none either: that may be slow.

    Args:
        mdp: the task.
        prompts: texts, or prompts as `tokenenv.data.as_prompt` takes them.
    """
    count, reward = count_mdp_responses(mdp, len(prompts)), mdp.scorer.reward
    if count > MAX_RESPONSES or mdp.kl_coef == 0 or not is_learned(reward):
        return None
    learned = [part.reward_model.model for part in learned_rewards(reward).values()]
    models = (mdp.language_model.model, *learned)
    if count * sum(model.num_parameters() for model in models) > MAX_WORK:
        return None
    return solve(enumerate_mdp(mdp, prompts))
