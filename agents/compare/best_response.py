"""The plain-return optimum on text: exactly where all responses can be listed, else from below.

The environment is deterministic, so the best that an agent without its half of the KL can do is to
give to each prompt the one response y with the greatest β·log π_ref(y|x) + R(x, y).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tokenenv.mdp import TokenMDP
from tokenenv.models import output_logits, pad_right, sample_responses, trunk_hidden_states
from tokenenv.optimum import PrefixTree
from tokenenv.rewards import Episode, EpisodeScorer

__all__ = ["episode_returns", "reference_ranks", "restricted_optimum", "search_best_responses"]

KEPT = 8
"""Best responses of a prompt that a round of the search starts from."""

WIDTH = 24
"""Responses per prompt and round."""

ROUNDS = 24

TEMPERATURES = (1.0, 0.5, 2.0)
"""Temperatures of the rounds in turn: the reference's, towards its likeliest, and away from it."""


def restricted_optimum(tree: PrefixTree, top_k: int | None) -> float:
    """The greatest E[Σ r_t] of policies that take one of the reference's k likeliest tokens.

    By hard backward induction; `plain_returns(tree).optimum` where k is V or None.

    Args:
        tree: all states.
        top_k: k.
    """
    after: np.ndarray | None = None
    for t in reversed(range(tree.depth)):
        ref = tree.ref_log_probs[t]
        shaped = tree.kl_coef * ref if tree.settings.kl_shaping == "k1" else 0.0
        q = np.where(tree.ending(t), tree.scores[t], 0.0) + shaped + tree.after(t, after)
        if top_k is not None:
            ranks = np.argsort(np.argsort(-ref, axis=-1, kind="stable"), axis=-1)
            q = np.where(ranks < top_k, q, -np.inf)
        after = q.max(axis=-1)
    assert after is not None
    return float(after.mean())


def episode_returns(mdp: TokenMDP, episodes: Sequence[Episode]) -> np.ndarray:
    """(n,) what the environment pays for finished episodes, Σ r_t."""
    full = mdp.scorer  # without its gold reward, which takes longest and pays nothing
    scorer = EpisodeScorer(full.reference, full.reward, full.score_clip, full.missing_eos_penalty)
    paid = scorer.score(episodes).score.astype(np.float64)
    if mdp.settings.kl_shaping == "k1":
        paid = paid + mdp.kl_coef * np.array([p.sum() for p in mdp.scorer.ref_log_probs(episodes)])
    return paid


@torch.no_grad()
def reference_ranks(mdp: TokenMDP, episodes: Sequence[Episode]) -> list[np.ndarray]:
    """The rank of every response token among the reference's at its state; 0 is the likeliest."""
    model, all_ranks = mdp.language_model.model, []
    for start in range(0, len(episodes), 256):
        part = episodes[start : start + 256]
        tokens, _ = pad_right([np.concatenate([e.prompt, e.response[:-1]]) for e in part])
        hidden = trunk_hidden_states(model, torch.as_tensor(tokens, device=model.device))
        for row, episode in enumerate(part):
            first, count = len(episode.prompt) - 1, len(episode.response)
            logits = output_logits(model, hidden[row, first : first + count])
            response_tokens = torch.as_tensor(episode.response, device=model.device)[:, None]
            above = logits > logits.gather(-1, response_tokens)
            all_ranks.append(above.sum(dim=-1).cpu().numpy())
    return all_ranks


@dataclass
class _Best:
    """The best responses to one prompt so far, best first."""

    returns: list[float]
    episodes: list[Episode]

    def add(self, plain_return: float, episode: Episode) -> None:
        same = any(np.array_equal(episode.response, e.response) for e in self.episodes)
        if same or (len(self.returns) == KEPT and plain_return <= self.returns[-1]):
            return
        self.returns.append(plain_return)
        self.episodes.append(episode)
        order = np.argsort(self.returns, kind="stable")[::-1][:KEPT]
        self.returns = [self.returns[i] for i in order]
        self.episodes = [self.episodes[i] for i in order]


def search_best_responses(
    mdp: TokenMDP,
    prompts: Sequence[Any],
    top_k: int | None = None,
    *,
    rounds: int = ROUNDS,
    width: int = WIDTH,
    seed: int = 0,
) -> np.ndarray:
    """A lower bound on the greatest Σ r_t for each prompt: that of the best response found.

    The first rounds sample from the reference. Every later one changes the best responses so far,
    in turn: it cuts them and lets the reference finish them anew (at temperatures 1, ½ and 2), puts
    another token in the place of one, or tries the best responses to other prompts. The best ones
    are kept, so the bound only rises with `rounds`.

    Args:
        mdp: the token MDP.
        prompts: X texts, or prompts as `tokenenv.data.as_prompt` takes them.
        top_k: only responses of the reference's k likeliest tokens count; None: all.
        rounds: of the search.
        width: responses per prompt and round.
        seed: of everything.

    Returns:
        (X,) returns of the best responses.

    Raises:
        ValueError: for some prompt no response of the k likeliest tokens was found.
    """
    search = _Search(mdp, prompts, top_k, width, np.random.default_rng(seed))
    for number in range(rounds):
        search.round(number)
    lacking = [
        prompt for prompt, best in zip(prompts, search.best, strict=True) if not best.returns
    ]
    if lacking:
        raise ValueError(
            f"no response of the {top_k} likeliest tokens was found for {lacking[0]!r}: raise k, "
            "or search with a greater width."
        )
    return np.array([best.returns[0] for best in search.best])


class _Search:
    """The state of a search; the arguments are those of `search_best_responses`."""

    def __init__(
        self,
        mdp: TokenMDP,
        prompts: Sequence[Any],
        top_k: int | None,
        width: int,
        rng: np.random.Generator,
    ) -> None:
        self.mdp, self.top_k, self.width, self.rng = mdp, top_k, width, rng
        self.origins = [mdp.origin_of(prompt) for prompt in prompts]
        self.encoded = [mdp.encode_prompt(origin) for origin in self.origins]
        self.best = [_Best([], []) for _ in prompts]
        eos = mdp.language_model.eos_token_ids
        self._continuing = np.setdiff1d(np.arange(mdp.language_model.vocabulary_size), eos)
        self._tried: set[tuple[int, bytes]] = set()

    def round(self, number: int) -> None:
        """Make new responses of the best ones, and keep those that are better."""
        rows = np.repeat(np.arange(len(self.encoded)), self.width).tolist()
        is_first = not all(best.episodes for best in self.best)
        if is_first:
            made = self._finish([(row, np.zeros(0, dtype=np.int64)) for row in rows], 1.0)
        elif number % 4 in (0, 2):
            temperature = TEMPERATURES[number // 2 % 3]
            made = self._finish(self._prefixes(rows), temperature)
        else:
            move = self._substituted if number % 4 == 1 else self._transplanted
            made = [move(row) for row in rows]
        new = []
        for row, episode in zip(rows, made, strict=True):
            key = (row, episode.response.tobytes())
            if key not in self._tried:
                self._tried.add(key)
                new.append((row, episode))
        if new:
            self._keep(new)

    def _keep(self, new: list[tuple[int, Episode]]) -> None:
        episodes = [episode for _, episode in new]
        allowed = [True] * len(new)
        if self.top_k is not None:
            ranks = reference_ranks(self.mdp, episodes)
            allowed = [bool((response_ranks < self.top_k).all()) for response_ranks in ranks]
        returns = episode_returns(self.mdp, episodes)
        for (row, episode), value, is_allowed in zip(new, returns, allowed, strict=True):
            if is_allowed:
                self.best[row].add(float(value), episode)

    def _parent(self, row: int) -> Episode:
        """One of the best responses to a prompt, the better the more often."""
        episodes = self.best[row].episodes
        return episodes[int(len(episodes) * self.rng.random() ** 2)]

    def _prefixes(self, rows: list[int]) -> list[tuple[int, np.ndarray]]:
        """The first tokens of best responses, cut at one place, so that one batch finishes them."""
        parents = [self._parent(row).response for row in rows]
        longest = max(len(parent) for parent in parents)
        cut = int(self.rng.integers(longest))
        return [(row, p[: min(cut, len(p) - 1)]) for row, p in zip(rows, parents, strict=True)]

    def _substituted(self, row: int) -> Episode:
        """A best response with another token in one place; EOS stays at the end."""
        parent = self._parent(row)
        changeable = len(parent.response) - bool(parent.stopped)
        if not changeable:
            return parent
        response = parent.response.copy()
        response[int(self.rng.integers(changeable))] = self.rng.choice(self._continuing)
        return Episode(parent.prompt, response, parent.stopped, parent.origin)

    def _transplanted(self, row: int) -> Episode:
        """A best response to another prompt."""
        donor = self._parent(int(self.rng.integers(len(self.best))))
        return Episode(self.encoded[row], donor.response, donor.stopped, self.origins[row])

    def _finish(self, begun: Sequence[tuple[int, np.ndarray]], temperature: float) -> list[Episode]:
        """Let the reference finish responses; those of one length together."""
        model = self.mdp.language_model
        episodes: list[Episode | None] = [None] * len(begun)
        lengths = np.array([len(prefix) for _, prefix in begun])
        for length in np.unique(lengths).tolist():
            members = np.flatnonzero(lengths == length).tolist()
            sampled = sample_responses(
                model.model,
                model.eos_token_ids,
                [np.concatenate([self.encoded[begun[i][0]], begun[i][1]]) for i in members],
                self.mdp.max_new_tokens - length,
                temperature=temperature * self.mdp.settings.temperature,
                seed=int(self.rng.integers(2**31)),
            )
            for i, rest in zip(members, sampled, strict=True):
                row, prefix = begun[i]
                response = np.concatenate([prefix, rest.tokens])
                episodes[i] = Episode(self.encoded[row], response, rest.stopped, self.origins[row])
        return [episode for episode in episodes if episode is not None]
