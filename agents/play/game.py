"""The episode that a person plays: its state, the tokens that may come, undo."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenenv.env import TokenEnv
from tokenenv.models import LanguageModel, Reference, ReferenceDecoder, decode_all
from tokenenv.rendering import token_texts

__all__ = ["Candidate", "Game"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that may come next.

    Attributes:
        token: its id.
        text: its text.
        probability: under the reference.
        policy_probability: under the policy of a run; None without one.
        reward: β·log π_ref of it, what taking it pays at once, the score apart.
        ends: whether it ends the response.
    """

    token: int
    text: str
    probability: float
    policy_probability: float | None
    reward: float
    ends: bool


class Game:
    """An episode of a `TokenEnv`, with an undo.

    Args:
        env: with stepwise scoring and `kl_shaping="k1"`.
        policy: a causal LM whose probabilities are shown beside the reference's; or None.

    Attributes:
        prompt: the text of the prompt.
        origin: the prompt as it was given, with the columns of its row; None for a text alone.
        rewards: what each token was paid.
        ref_log_probs: log π_ref of each token.
        policy_log_probs: log π of each token under the policy; empty without one.
        ending: the last info of an episode that has ended, else None.
    """

    def __init__(self, env: TokenEnv, policy: Any = None) -> None:
        self._start = self._env = env
        self.prompt, self.origin = "", None
        self._policy = None if policy is None else _decoder(env, policy)
        self._forget()

    def _forget(self) -> None:
        self.rewards: list[float] = []
        self.ref_log_probs: list[float] = []
        self.policy_log_probs: list[float] = []
        self.ending: dict[str, Any] | None = None

    # Moves ---------------------------------------------------------------------------------------

    def reset(self, prompt: Any = None, seed: int | None = None) -> None:
        """Begin an episode; a prompt is drawn unless given.

        Raises:
            ValueError: the prompt is empty or too long.
        """
        options = None if prompt is None else {"prompt": prompt}
        _, info = self._env.reset(seed=seed, options=options)
        self.prompt, self.origin = info["prompt"], info.get("origin")
        self._start = self._env.fork()  # undo goes on from here
        self._forget()

    def take(self, token: int) -> None:
        """Append a token."""
        if self._policy is not None:
            log_probs = self._policy.log_probs(self._mdp.episodes.observations)
            self.policy_log_probs.append(float(log_probs[0, token]))
        _, reward, ended, _, info = self._env.step(token)
        self.rewards.append(reward)
        self.ref_log_probs.append(info["ref_logprob"])
        self.ending = info if ended else None

    def undo(self, count: int) -> int:
        """Take back tokens, as many as there are at most; returns how many."""
        tokens = self.tokens
        count = min(count, len(tokens))
        self._env = self._start.fork()
        self._forget()
        for token in tokens[: len(tokens) - count]:
            self.take(token)
        return count

    # State ---------------------------------------------------------------------------------------

    @property
    def _mdp(self) -> Any:
        return self._env.mdp

    @property
    def language_model(self) -> LanguageModel:
        """The reference, whose tokens are chosen."""
        return self._mdp.language_model

    @property
    def kl_coef(self) -> float:
        """β."""
        return self._env.kl_coef

    @property
    def max_new_tokens(self) -> int:
        """T."""
        return self._mdp.max_new_tokens

    @property
    def tokens(self) -> list[int]:
        """The response so far."""
        return self._mdp.episodes.response(0).tolist()

    @property
    def token_texts(self) -> list[str]:
        """What each of its tokens adds to the text."""
        return token_texts(self.language_model.tokenizer, self.tokens)

    @property
    def text(self) -> str:
        """Prompt and response so far."""
        ids = [*self._mdp.episodes.prompt(0).tolist(), *self.tokens]
        return decode_all(self.language_model.tokenizer, ids)

    @property
    def kl(self) -> float:
        """−Σ log π_ref of the tokens: the KL of a policy that always answers so, in nats."""
        return -sum(self.ref_log_probs) + 0.0  # no -0.0

    @property
    def policy_kl(self) -> float | None:
        """Σ (log π − log π_ref) of the tokens under the run's policy; None without one."""
        if self._policy is None:
            return None
        return sum(self.policy_log_probs) - sum(self.ref_log_probs)

    def candidates(self, count: int) -> list[Candidate]:
        """The `count` likeliest tokens of the reference, the likeliest first."""
        count = min(count, self.language_model.vocabulary_size)
        tokens, _ = self._mdp.reference_decoder.top_tokens(self._mdp.episodes.observations, count)
        return [self.candidate(token) for token in tokens[0].tolist()]

    def candidate(self, token: int) -> Candidate:
        """What is known of a token that may come next."""
        observations = self._mdp.episodes.observations
        log_prob = float(self._mdp.reference_decoder.log_probs(observations)[0, token])
        policy = None
        if self._policy is not None:
            policy = float(self._policy.log_probs(observations)[0, token].exp())
        text = decode_all(self.language_model.tokenizer, [token])
        is_eos = token in self.language_model.eos_token_ids
        reward = self.kl_coef * log_prob
        return Candidate(token, text, float(np.exp(log_prob)), policy, reward, is_eos)


def _decoder(env: TokenEnv, policy: Any) -> ReferenceDecoder:
    """The distributions of a policy at the states of an environment."""
    mdp = env.mdp
    language_model = dataclasses.replace(mdp.language_model, name="the run's policy", model=policy)
    reference = Reference(language_model, mdp.settings.temperature)
    return ReferenceDecoder(reference, 1, mdp.max_prompt_tokens, mdp.max_new_tokens)
