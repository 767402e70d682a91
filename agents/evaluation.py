"""Judging a policy by J, on fresh samples for held-out prompts; never by SB3's `ep_rew_mean`.

`ep_rew_mean` sees the environment's half of the reward only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from agents.files import whole_folder
from tokenenv.optimum import Comparison, compare, rescaled, sample_mixture
from tokenenv.rewards import Episode
from tokenenv.sampling import sample_responses
from tokenenv.scoring import EpisodeScorer
from tokenenv.settings import EnvSettings
from tokenenv.tasks import load_task
from tokenenv.token_mdp import TokenMDP

__all__ = ["EvaluationCallback", "HeldOut", "ResponseReport", "evaluate", "respond"]


@dataclass(frozen=True)
class HeldOut:
    """The fixed prompts that a run is judged on.

    Attributes:
        settings: the environment's, resolved, of the `eval` split.
        scorer: its scorer.
        texts: X prompts.
        prompts: the same as token ids.
        max_new_tokens: T.
        known_optimum: the card's bound on J* for just these prompts and settings, or None.
    """

    settings: EnvSettings
    scorer: EpisodeScorer
    texts: list[str]
    prompts: list[np.ndarray]
    max_new_tokens: int
    known_optimum: float | None

    @classmethod
    def of(cls, environment: dict[str, Any], count: int) -> HeldOut:
        """The first `count` prompts of the `eval` split of an environment.

        Args:
            environment: keyword arguments of `TokenEnv`.
            count: X, at most.

        Raises:
            ValueError: the environment's arguments can't be used.
        """
        mdp = TokenMDP(EnvSettings(**{**environment, "split": "eval"}), num_envs=1)
        texts = mdp.prompts[:count]
        return cls(
            mdp.settings,
            mdp.scorer,
            texts,
            [mdp.encode_prompt(text) for text in texts],
            mdp.max_new_tokens,
            _card_optimum(mdp.settings, len(texts)),
        )


def _card_optimum(settings: EnvSettings, prompts: int) -> float | None:
    """The card's bound, where the settings are those that it was measured with."""
    task = load_task(settings.task)
    if task.card is None or not task.card.is_file():
        return None
    own = EnvSettings(
        task=settings.task,
        split=settings.split,
        scoring=settings.scoring,
        device=settings.device,
        dtype=settings.dtype,
        render_mode=settings.render_mode,
    ).resolved(task)
    card = json.loads(task.card.read_text(encoding="utf-8"))["optimum"]
    same = own == settings and card["kl_coef"] == settings.kl_coef and card["prompts"] == prompts
    return float(card["optimum_lower_bound"]) if same else None


def evaluate(
    actor: Any,
    held_out: HeldOut,
    responses_per_prompt: int,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
    starting_actor: Any = None,
) -> Comparison:
    """J of `actor`, J of the untrained actor and a bound on J*, on fresh samples.

    Args:
        actor: a causal LM.
        held_out: the prompts.
        responses_per_prompt: half the actor's, half the reference's.
        seed: of the sampling.
        on_progress: called with (responses done, all).
        starting_actor: the untrained actor, where it was not the reference.
    """
    samples = sample_mixture(
        actor,
        held_out.scorer,
        held_out.prompts,
        held_out.max_new_tokens,
        responses_per_prompt,
        seed,
        on_progress,
    )
    kl_coef = held_out.settings.kl_coef
    assert kl_coef is not None
    found = compare(samples, kl_coef, held_out.known_optimum, seed=seed)
    if starting_actor is None:
        return found
    before = sample_mixture(
        starting_actor,
        held_out.scorer,
        held_out.prompts,
        held_out.max_new_tokens,
        responses_per_prompt,
        seed,
    )
    # Its own bound counts too: both mixtures are proposals for the same optimum.
    known = compare(before, kl_coef, found.optimum_lower_bound, seed=seed)
    return rescaled(found, known.objective, known.optimum_lower_bound)


@dataclass(frozen=True, slots=True)
class ResponseReport:
    """One response with what is known of it.

    Attributes:
        prompt: text.
        response: text.
        score: R(x, y).
        gold_reward: the true reward, or None.
        kl: log π(y|x) − log π_ref(y|x) of this response.
        finish_reason: `"stop"` or `"length"`.
    """

    prompt: str
    response: str
    score: float
    gold_reward: float | None
    kl: float
    finish_reason: str


def respond(
    actor: Any,
    scorer: EpisodeScorer,
    texts: list[str],
    prompts: list[np.ndarray],
    max_new_tokens: int,
    seed: int,
    greedy: bool = False,
) -> list[ResponseReport]:
    """One response of `actor` to each prompt, scored."""
    language_model = scorer.reference.language_model
    sampled = sample_responses(
        actor,
        language_model.eos_token_ids,
        prompts,
        max_new_tokens,
        temperature=scorer.reference.temperature,
        greedy=greedy,
        seed=seed,
    )
    episodes = [Episode(p, s.tokens, s.stopped) for p, s in zip(prompts, sampled, strict=True)]
    scores, references = scorer.score(episodes), scorer.ref_log_probs(episodes)
    gold = scores.gold_reward
    return [
        ResponseReport(
            texts[i],
            language_model.decode(s.tokens),
            float(scores.score[i]),
            None if gold is None else float(gold[i]),
            float(s.log_probs.sum() - references[i].sum()),
            "stop" if s.stopped else "length",
        )
        for i, s in enumerate(sampled)
    ]


class EvaluationCallback(BaseCallback):
    """Measures J on held-out prompts every few updates, and keeps the best policy by it.

    Args:
        held_out: the prompts.
        every: rollouts between two evaluations.
        best: folder for the best policy.
        responses_per_prompt: samples of the policy for each prompt.
        seed: of the sampling, the same each time.
        tokenizer: saved beside the policy.
    """

    def __init__(
        self,
        held_out: HeldOut,
        every: int,
        best: Path,
        responses_per_prompt: int = 4,
        seed: int = 0,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        self.held_out, self.every, self.best = held_out, every, best
        self.responses_per_prompt, self.seed, self.tokenizer = responses_per_prompt, seed, tokenizer
        self.best_objective = -math.inf
        self._rollouts = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        """The policy that has just sampled a rollout is the one that is measured."""
        self._rollouts += 1
        if self._rollouts % self.every:
            return
        objective, score, gold = self._objective()
        self.logger.record("eval/objective", objective)
        self.logger.record("eval/score", score)
        if gold is not None:
            self.logger.record("eval/gold_reward", gold)
        if objective > self.best_objective:
            self.best_objective = objective
            policy: Any = self.model.policy
            with whole_folder(self.best) as folder:
                policy.save_pretrained(folder, self.tokenizer)

    def _objective(self) -> tuple[float, float, float | None]:
        held_out, n = self.held_out, self.responses_per_prompt
        reports = respond(
            self.model.policy.actor,
            held_out.scorer,
            [text for text in held_out.texts for _ in range(n)],
            [prompt for prompt in held_out.prompts for _ in range(n)],
            held_out.max_new_tokens,
            self.seed,
        )
        score = float(np.mean([r.score for r in reports]))
        kl_coef = float(self.training_env.get_attr("kl_coef")[0])
        kl = float(np.mean([r.kl for r in reports]))
        gold = [r.gold_reward for r in reports if r.gold_reward is not None]
        return score - kl_coef * kl, score, float(np.mean(gold)) if gold else None
