"""Evaluation of a policy by J, on fresh samples for held-out prompts, not by `ep_rew_mean`.

`ep_rew_mean` is of the training prompts, and of the policies of the last rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from agents.atomic_files import whole_folder, write_json
from agents.evaluation.held_out import HeldOut
from tokenenv.data import Prompt
from tokenenv.json_files import read_json_object
from tokenenv.models import sample_responses
from tokenenv.optimum import (
    Comparison,
    ExactEvaluation,
    compare,
    evaluate_exactly,
    gain_interval,
    objectives_of,
    rescaled,
    sample_mixture,
)
from tokenenv.rewards import EpisodeScorer, episodes_of

BEST = "best.json"
"""In the folder of the best policy: how long it was trained, and its J."""

__all__ = ["EvaluationCallback", "ResponseReport", "evaluate", "measure", "respond"]


def evaluate(
    actor: Any,
    held_out: HeldOut,
    responses_per_prompt: int,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
    starting_actor: Any = None,
) -> Comparison | ExactEvaluation:
    """J of `actor`, J of the untrained actor and J*: exactly where all responses can be enumerated.

    Elsewhere by fresh samples, with a bound on J*.

    Args:
        actor: a causal LM.
        held_out: the prompts.
        responses_per_prompt: half the actor's, half the reference's. Where there are fewer prompts
            than were asked for, each gets more, so that there are as many responses in all.
        seed: of the sampling.
        on_progress: called with (responses done, all).
        starting_actor: the untrained actor, where it was not the reference.
    """
    if held_out.solution is not None:
        return evaluate_exactly(actor, held_out.solution, starting_policy=starting_actor)
    responses_per_prompt *= -(-held_out.asked_for // len(held_out.prompts))
    samples = sample_mixture(
        actor,
        held_out.scorer,
        held_out.prompts,
        held_out.max_new_tokens,
        responses_per_prompt,
        seed,
        on_progress,
        held_out.origins,
    )
    kl_coef = held_out.settings.kl_coef
    comparison = compare(samples, kl_coef, held_out.known_optimum, seed=seed)
    if starting_actor is None:
        return comparison
    before = sample_mixture(
        starting_actor,
        held_out.scorer,
        held_out.prompts,
        held_out.max_new_tokens,
        responses_per_prompt,
        seed,
        origins=held_out.origins,
    )
    # Its bound is used as well: both mixtures are proposals for the same optimum.
    interval = gain_interval(objectives_of(samples, kl_coef), objectives_of(before, kl_coef))
    return rescaled(comparison, compare(before, kl_coef, seed=seed), interval)


@dataclass(frozen=True, slots=True)
class ResponseReport:
    """One response with its scores.

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
    origins: Sequence[Prompt | None] | None = None,
) -> list[ResponseReport]:
    """One response of `actor` to each prompt, scored.

    Args:
        actor: a causal LM.
        scorer: of the environment.
        texts: B prompts.
        prompts: the same as token ids.
        max_new_tokens: T.
        seed: of the sampling.
        greedy: take the most likely token instead of sampling.
        origins: the same as they were given, where the reward asks for messages or columns.
    """
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
    episodes = episodes_of(prompts, sampled, origins)
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


def measure(
    actor: Any, held_out: HeldOut, responses_per_prompt: int, seed: int
) -> dict[str, float]:
    """J of `actor` and its parts, at the β of the held-out prompts; quicker than `evaluate`.

    Exactly where all responses can be enumerated, by fresh samples elsewhere.

    Args:
        actor: a causal LM.
        held_out: the prompts.
        responses_per_prompt: samples of the actor for each.
        seed: of the sampling.

    Returns:
        `objective`, `score`, `kl` in nats per response, `gold_reward` where the task knows it,
        `objective_fraction` where the optimum is exact.
    """
    if held_out.solution is not None:
        exact = evaluate_exactly(actor, held_out.solution)
        names = ("objective", "objective_fraction", "score", "kl", "gold_reward")
        known = {name: getattr(exact, name) for name in names}
        return {name: value for name, value in known.items() if value is not None}
    reports = respond(
        actor,
        held_out.scorer,
        [text for text in held_out.texts for _ in range(responses_per_prompt)],
        [prompt for prompt in held_out.prompts for _ in range(responses_per_prompt)],
        held_out.max_new_tokens,
        seed,
        origins=[origin for origin in held_out.origins for _ in range(responses_per_prompt)],
    )
    score, kl = (float(np.mean([getattr(r, name) for r in reports])) for name in ("score", "kl"))
    metrics = {"objective": score - held_out.settings.kl_coef * kl, "score": score, "kl": kl}
    gold = [r.gold_reward for r in reports if r.gold_reward is not None]
    return {**metrics, "gold_reward": float(np.mean(gold))} if gold else metrics


class EvaluationCallback(BaseCallback):
    """Measures J on held-out prompts every few updates, and keeps the best policy by it.

    Args:
        held_out: the prompts.
        every: rollouts between two evaluations.
        best: folder for the best policy.
        responses_per_prompt: samples of the policy for each prompt.
        seed: of the sampling, the same each time.
        tokenizer: saved beside the policy.

    Attributes:
        best_objective: J of the best policy so far; −∞ before the first evaluation.
        best_tokens: that it had been trained on.
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
        self.best_objective, self.best_tokens = -math.inf, 0
        self._rollouts = self._before_rollout = 0

    def state_dict(self) -> dict[str, Any]:
        """The best so far, and how many rollouts there were; JSON."""
        return {
            "best_objective": self.best_objective,
            "best_tokens": self.best_tokens,
            "rollouts": self._rollouts,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was called."""
        self.best_objective, self.best_tokens = state["best_objective"], state["best_tokens"]
        self._rollouts = state["rollouts"]
        if self.best_objective > -math.inf and self.best_tokens != self._tokens_of_best():
            # A later policy stands there, of what is not gone on with: the next one replaces it.
            self.best_objective, self.best_tokens = -math.inf, 0

    def _tokens_of_best(self) -> int | None:
        """Tokens that the policy in the folder was trained on; None where it does not say."""
        try:
            tokens = read_json_object(self.best / BEST, "what the best policy is").get("tokens")
        except (OSError, ValueError):
            return None
        return tokens if isinstance(tokens, int) else None

    def begin_anew(self, held_out: HeldOut) -> None:
        """Forget the best: the reward has changed, and an older J is not comparable with it.

        Args:
            held_out: the prompts, with the new reward's optimum.
        """
        self.held_out, self.best_objective = held_out, -math.inf

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self._before_rollout = self.model.num_timesteps

    def _on_rollout_end(self) -> None:
        """Measure the policy that has just sampled a rollout."""
        self._rollouts += 1
        if self._rollouts % self.every:
            return
        metrics = self._measure()
        for name, value in metrics.items():
            self.logger.record(f"eval/{name}", value)
        objective = metrics["objective"]
        if objective > self.best_objective:
            self.best_objective = objective
            # The rollout sampled tokens, and did not train on them yet.
            self.best_tokens = self._before_rollout
            policy: Any = self.model.policy
            with whole_folder(self.best) as folder:
                policy.save_pretrained(folder, self.tokenizer)
                write_json(folder / BEST, {"tokens": self.best_tokens, "objective": objective})

    def _measure(self) -> dict[str, float]:
        """J and its parts, at the β of the held-out prompts, which no controller moves."""
        actor: Any = self.model.policy.actor
        return measure(actor, self.held_out, self.responses_per_prompt, self.seed)
