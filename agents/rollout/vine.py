"""Values without a critic: the mean return of continuations sampled from every state.

VinePPO, Kazemnejad et al. 2024, https://arxiv.org/abs/2410.01679: a language environment can be
continued from any state again, as the state is the text so far. So V(s) has an unbiased estimate,
whose error falls as 1/√K with the number K of continuations, and which costs K responses a token.

Continuations are the present policy's. An episode that an earlier rollout began has steps that the
policy of then sampled, at the β of then; they are valued by the present one all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.rollout.segments import Segment
from agents.settings import DEFAULT_VINE_SAMPLES, KLPenalty
from tokenenv.data import Prompt
from tokenenv.maths import token_rewards
from tokenenv.models import SampledResponse, sample_responses
from tokenenv.rewards import Episode, EpisodeScorer

__all__ = ["VineValues"]


@dataclass(frozen=True, slots=True)
class VineValues:
    """V̂ of the states of finished responses, from continuations by the policy as it is now.

    The return of a continuation is what the agent would be paid for its tokens: the score, and
    −β·log π + β·log π_ref of every token, or β times another estimate of the KL where the agent
    pays that (where it pays the full KL, k1, which has the same mean). Where the KL is a loss, the
    score alone.

    Attributes:
        actor: the causal LM that is trained, in eval mode when it is asked.
        scorer: gives the scores, and log π_ref.
        max_new_tokens: T, the longest response; a continuation has what is left of it.
        penalty: the agent's KL penalty.
        samples: K, continuations of every state.
        seed: of the sampling; None draws from torch's global generator.
    """

    actor: Any
    scorer: EpisodeScorer
    max_new_tokens: int
    penalty: KLPenalty
    samples: int = DEFAULT_VINE_SAMPLES
    seed: int | None = None

    def store_values(self, segments: Sequence[Segment], kl_coef: float) -> int:
        """Replace the values of finished episodes by V̂ of their states; returns sampled tokens.

        Args:
            segments: whole episodes; their `values` change in place.
            kl_coef: β.
        """
        values, tokens = self.of_responses(
            [(segment.prompt, segment.response) for segment in segments],
            kl_coef,
            [segment.origin for segment in segments],
        )
        for segment, of_response in zip(segments, values, strict=True):
            segment.values[:] = of_response[len(segment.context) :]
        return tokens

    def of_responses(
        self,
        responses: Sequence[tuple[np.ndarray, np.ndarray]],
        kl_coef: float,
        origins: Sequence[Prompt | None] | None = None,
    ) -> tuple[list[np.ndarray], int]:
        """V̂ of the states that the tokens of responses were taken in, and the tokens sampled.

        Args:
            responses: B pairs of prompt and response, token ids.
            kl_coef: β.
            origins: B prompts as they were given, where the reward asks for messages or columns.

        Returns:
            B float64 arrays, one number for each token of the response, and the tokens of all
            continuations.
        """
        values, tokens = [np.zeros(len(response)) for _, response in responses], 0
        sources = [None] * len(responses) if origins is None else origins
        # Sampling has one limit of tokens for all: states with as many left at a time.
        for length in range(max(map(len, values), default=0)):
            longer = [i for i, of_response in enumerate(values) if len(of_response) > length]
            states = [(responses[i][0], responses[i][1][:length]) for i in longer]
            found, sampled = self.of_states(states, kl_coef, [sources[i] for i in longer])
            tokens += sampled
            for i, value in zip(longer, found.tolist(), strict=True):
                values[i][length] = value
        return values, tokens

    def of_states(
        self,
        states: Sequence[tuple[np.ndarray, np.ndarray]],
        kl_coef: float,
        origins: Sequence[Prompt | None] | None = None,
    ) -> tuple[np.ndarray, int]:
        """V̂ of unfinished responses of one length, and the number of tokens that were sampled.

        Args:
            states: B pairs of prompt and response so far, token ids; the responses have t < T
                tokens each.
            kl_coef: β.
            origins: B prompts as they were given, where the reward asks for messages or columns.

        Returns:
            (B,) float64, and the tokens of all B·K continuations.
        """
        start = len(states[0][1])
        repeated = [state for state in states for _ in range(self.samples)]  # B·K
        sources = [None] * len(states) if origins is None else origins
        repeated_origins = [origin for origin in sources for _ in range(self.samples)]
        continuations = sample_responses(
            self.actor,
            self.scorer.reference.language_model.eos_token_ids,
            [np.concatenate(state).astype(np.int64) for state in repeated],
            self.max_new_tokens - start,
            temperature=self.scorer.reference.temperature,
            seed=None if self.seed is None else self.seed + start,  # no two lengths the same draws
        )
        episodes = [
            Episode(
                prompt.astype(np.int64),
                np.concatenate([response, continuation.tokens]).astype(np.int64),
                continuation.stopped,
                origin,
            )
            for (prompt, response), continuation, origin in zip(
                repeated, continuations, repeated_origins, strict=True
            )
        ]
        returns = self._returns(episodes, continuations, start, kl_coef)
        tokens = sum(len(continuation.tokens) for continuation in continuations)
        return returns.reshape(len(states), self.samples).mean(axis=1), tokens

    def _returns(
        self,
        episodes: Sequence[Episode],
        continuations: Sequence[SampledResponse],
        start: int,
        kl_coef: float,
    ) -> np.ndarray:
        """(B·K,) sums of the rewards from token `start` of the responses on."""
        # A gold reward judges responses that are trained on, and may be slow.
        of_scores = EpisodeScorer(
            self.scorer.reference,
            self.scorer.reward,
            self.scorer.score_clip,
            self.scorer.missing_eos_penalty,
        )
        scores = of_scores.score(episodes).token_rewards
        estimator = "k1" if self.penalty.pays_full else self.penalty.estimator
        pays_kl = kl_coef != 0 and not self.penalty.as_loss
        ref_log_probs = self.scorer.ref_log_probs(episodes) if pays_kl else None
        returns = np.zeros(len(episodes))
        for i, continuation in enumerate(continuations):
            log_probs, paid = continuation.log_probs, scores[i][start:]
            if ref_log_probs is not None:
                ref = ref_log_probs[i][start:]
                paid = token_rewards(paid, log_probs, ref, kl_coef, estimator)
            returns[i] = paid.sum()
        return returns
