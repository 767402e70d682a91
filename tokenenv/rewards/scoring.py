"""Scoring of episodes: reward model and reference → R(x, y) and log π_ref, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tokenenv.combinations import Combination
from tokenenv.data import Prompt
from tokenenv.models import Reference, check_cached_step, check_context, load_frozen
from tokenenv.rewards.combined import reference_episodes
from tokenenv.rewards.raw_rewards import Episode, RewardSource, check_rewards
from tokenenv.rewards.sources import learned_rewards, remote_rewards, resolve_reward
from tokenenv.settings import ResolvedSettings
from tokenenv.tasks import load_task
from tokenenv.user_code import user_code

__all__ = ["EpisodeScorer", "EpisodeScores", "build_reference", "build_scorer"]


@dataclass(frozen=True, slots=True)
class EpisodeScores:
    """The scores of B finished episodes.

    Attributes:
        rm_score: (B,) float64, raw.
        score: (B,) float64, R(x, y): normalised, clipped, penalised.
        gold_reward: (B,) float64, or None where the task has none.
        token_rewards: B float64 arrays whose sums are the scores: all on the last token, or, where
            the reward is a function that pays per token, as it paid.
        is_per_token: whether the reward was paid per token.
        parts: of several rewards, each one's raw numbers by its name, (B,); NaN where it said that
            it does not apply.
        disagreement: (B,) of several reward models, the standard deviation over them of their
            normalised rewards; None where there are fewer than two.
    """

    rm_score: np.ndarray
    score: np.ndarray
    gold_reward: np.ndarray | None
    token_rewards: list[np.ndarray]
    is_per_token: bool
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)
    disagreement: np.ndarray | None = None

    def parts_of(self, row: int) -> dict[str, float]:
        """The raw numbers of several rewards for one episode, without those that do not apply."""
        numbers = {name: float(values[row]) for name, values in self.parts.items()}
        return {name: number for name, number in numbers.items() if not np.isnan(number)}


class EpisodeScorer:
    """Reward source and reference in one place, for stepwise and for deferred scoring alike.

    Args:
        reference: the reference.
        reward: where raw rewards come from.
        score_clip: normalised rewards are clipped to ±`score_clip`; None leaves them.
        missing_eos_penalty: subtracted from the score of a response without EOS.
        gold_reward: (prompt, response, stopped) → gold reward, or None.
    """

    def __init__(
        self,
        reference: Reference,
        reward: RewardSource,
        score_clip: float | None = None,
        missing_eos_penalty: float = 0.0,
        gold_reward: Callable[[str, str, bool], float] | None = None,
    ) -> None:
        self.reference = reference
        self.reward = reward
        self.score_clip = score_clip
        self.missing_eos_penalty = missing_eos_penalty
        self.gold_reward = gold_reward

    def score(self, episodes: Sequence[Episode]) -> EpisodeScores:
        """Score finished episodes.

        Raises:
            ValueError: the reward function returned something else than rewards.
        """
        rewards = self.reward(episodes)
        score = rewards.normalized
        if self.score_clip is not None:
            score = np.clip(score, -self.score_clip, self.score_clip)
        stopped = np.array([e.stopped for e in episodes], dtype=bool)
        score = score - self.missing_eos_penalty * ~stopped
        check_rewards(score, "clipping and penalties give a score of", lambda i: f"response {i}")
        return EpisodeScores(
            rewards.raw,
            score,
            self.gold_rewards(episodes),
            self._distribute(episodes, score, rewards.per_token),
            rewards.per_token is not None,
            rewards.parts,
            rewards.disagreement,
        )

    def check_prompts(self, origins: Sequence[Prompt]) -> None:
        """Check prompts before there is an episode of them.

        Raises:
            ValueError: one of them lacks what the reward asks for.
        """
        self.reward.check_prompts(origins)

    def _distribute(
        self, episodes: Sequence[Episode], score: np.ndarray, per_token: list[np.ndarray] | None
    ) -> list[np.ndarray]:
        """Token rewards that sum to the score: clipping and penalties land on the last token."""
        token_rewards = [np.zeros(len(e.response)) for e in episodes]
        if per_token is not None:
            token_rewards = [np.array(r) for r in per_token]
        for row, total in zip(token_rewards, score, strict=True):
            row[-1] += total - row.sum()
        return token_rewards

    def gold_rewards(self, episodes: Sequence[Episode]) -> np.ndarray | None:
        """(B,) float64 of episodes; None where the task knows no gold reward.

        Raises:
            ValueError: the task's function failed, or returned something else than rewards.
        """
        if self.gold_reward is None:
            return None
        # Prompts repeat, and so do responses where all of them are enumerated.
        known: dict[bytes, str] = {}

        def text(ids: np.ndarray) -> str:
            key = ids.tobytes()
            if key not in known:
                known[key] = self.reference.language_model.decode(ids)
            return known[key]

        texts = [(text(e.prompt), text(e.response)) for e in episodes]
        with user_code("the task's gold_reward", self.gold_reward):
            gold = np.array(
                [
                    self.gold_reward(*pair, episode.stopped)
                    for pair, episode in zip(texts, episodes, strict=True)
                ]
            )
        check_rewards(
            gold, "the task's gold reward is", lambda i: f"the response {texts[i][1][:60]!r}"
        )
        return gold

    def ref_log_probs(self, episodes: Sequence[Episode]) -> list[np.ndarray]:
        """Log π_ref of every response token of episodes, finished or not, in one pass."""
        return self.reference.response_log_probs(
            [e.prompt for e in episodes], [e.response for e in episodes]
        )


def build_reference(settings: ResolvedSettings) -> Reference:
    """The reference of an environment, from its resolved settings and the cached models.

    Raises:
        ValueError: the model can't be used; it says why.
    """
    language_model = load_frozen(settings.reference, settings.device, settings.dtype)
    return Reference(language_model, settings.temperature)


def build_scorer(settings: ResolvedSettings) -> EpisodeScorer:
    """The scorer of an environment, from its resolved settings and the cached models.

    Raises:
        ValueError: a model can't be used; it says why.
    """
    reference = build_reference(settings)
    language_model = reference.language_model
    prompt, response = settings.max_prompt_tokens, settings.max_new_tokens
    check_context(language_model.model, prompt + response, "reference")
    check_cached_step(
        language_model.model,
        prompt,
        response,
        f"reference {settings.reference!r}",
        cached=settings.scoring == "step",
    )
    reward = resolve_reward(
        settings.reward_model,
        language_model,
        settings.device,
        settings.dtype,
        settings.reward_weights,
        response_tokens=response,
        combination=Combination(settings.reward_combine, settings.uncertainty_coef),
        reference_episodes=lambda: reference_episodes(settings, reference),
    )
    for learned in learned_rewards(reward).values():
        if learned.feeds_tokens:
            check_context(learned.reward_model.model, prompt + response, "reward model")
    for remote in remote_rewards(reward).values():
        remote.check_context(prompt + response)
    return EpisodeScorer(
        reference,
        reward,
        settings.score_clip,
        settings.missing_eos_penalty,
        _gold_reward(settings),
    )


def _gold_reward(settings: ResolvedSettings) -> Callable[[str, str, bool], float] | None:
    """The task's gold reward, which judges continuations of the task's prompts and no others."""
    is_of_task = settings.prompts is None or settings.prompts == settings.task
    return load_task(settings.task).gold_reward if is_of_task else None
