"""The tree of all states of a token MDP that is small enough to write every one of them down.

Axes: `X` prompts, `V` token ids, `C` of which continue a response (all but EOS), `T` tokens at
most. At depth t (t tokens of response) each prompt has C^t states; the c-th continuing token leads
from state i at depth t to state i·C + c at depth t + 1. What is known of states or of actions is a
list of T arrays, one per depth: (X, C^t) for states, (X, C^t, V) for actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from tokenenv.episodes import NO_TOKEN
from tokenenv.language_model import LanguageModel, output_logits, trunk_hidden_states
from tokenenv.rewards import Episode
from tokenenv.settings import EnvSettings
from tokenenv.token_mdp import TokenMDP

__all__ = [
    "MAX_RESPONSES",
    "Levels",
    "Policy",
    "PrefixTree",
    "count_responses",
    "enumerate_mdp",
    "enumerate_task",
    "policy_levels",
]

Levels = list[np.ndarray]
"""One array per depth t = 0 … T−1: (X, C^t) of states or (X, C^t, V) of actions."""

Policy = Any
"""What `policy_levels` understands: levels of log-probabilities, a causal LM, or a function."""

MAX_RESPONSES = 300_000
"""Finished responses, over all prompts, that are enumerated unless more is asked for."""

FORWARD_TOKENS = 32_768
"""Tokens that one forward takes at most."""


@dataclass(frozen=True)
class PrefixTree:
    """Every state, every action and every finished response of a token MDP.

    Attributes:
        settings: the environment's, resolved; its `kl_coef` is the β that is meant unless given.
        language_model: the reference.
        prompts: X texts.
        prompt_tokens: X arrays of token ids.
        continuing: (C,) the token ids that do not end a response.
        eos: (V − C,) those that do.
        ref_log_probs: T levels (X, C^t, V) of log π_ref(a|s), float64, normalised.
        scores: T levels (X, C^t, V) of R(x, y) of the response that the action finishes; NaN where
            it goes on.
        gold_rewards: likewise, of the true reward; None where nobody knows it.
    """

    settings: EnvSettings
    language_model: LanguageModel
    prompts: list[str]
    prompt_tokens: list[np.ndarray]
    continuing: np.ndarray
    eos: np.ndarray
    ref_log_probs: Levels
    scores: Levels
    gold_rewards: Levels | None

    @property
    def depth(self) -> int:
        """T, the longest response."""
        assert self.settings.max_new_tokens is not None
        return int(self.settings.max_new_tokens)

    @property
    def vocabulary_size(self) -> int:
        """V."""
        return len(self.continuing) + len(self.eos)

    @property
    def kl_coef(self) -> float:
        """The environment's own β."""
        assert self.settings.kl_coef is not None
        return float(self.settings.kl_coef)

    @property
    def num_responses(self) -> int:
        """Finished responses over all prompts."""
        return count_responses(len(self.prompts), self.vocabulary_size, len(self.eos), self.depth)

    def shape(self, t: int) -> tuple[int, int, int]:
        """(X, C^t, V) of the actions at depth t."""
        return len(self.prompts), len(self.continuing) ** t, self.vocabulary_size

    def ending(self, t: int) -> np.ndarray:
        """(V,) bool, the actions that finish a response at depth t."""
        ends = np.zeros(self.vocabulary_size, dtype=bool)
        ends[self.eos] = True
        return ends | (t == self.depth - 1)

    def prefixes(self, t: int) -> np.ndarray:
        """(C^t, t) the response tokens of the states at depth t."""
        count = len(self.continuing)
        return self.continuing[np.indices((count,) * t).reshape(t, count**t).T]

    def observations(self, t: int) -> np.ndarray:
        """(X·C^t, P+T) the environment's observations of the states at depth t, by prompt."""
        columns = int(self.settings.max_prompt_tokens or 0)
        prefixes = self.prefixes(t)
        shape = (len(self.prompts), len(prefixes), columns + self.depth)
        found = np.full(shape, NO_TOKEN, dtype=np.int64)
        for row, prompt in enumerate(self.prompt_tokens):
            found[row, :, columns - len(prompt) : columns] = prompt
        found[:, :, columns : columns + t] = prefixes
        return found.reshape(-1, shape[-1])

    def locate_state(self, prefix: np.ndarray) -> int:
        """The index, at its depth, of the state after the tokens of `prefix`."""
        state = 0
        for token in prefix:
            state = state * len(self.continuing) + int(np.searchsorted(self.continuing, token))
        return state

    def locate(self, response: np.ndarray) -> tuple[int, int, int]:
        """Depth, state and last action of a finished response, as indices into levels.

        Raises:
            ValueError: the tree has no such response.
        """
        depth = len(response) - 1
        if 0 <= depth < self.depth and self.ending(depth)[response[-1]]:
            return depth, self.locate_state(response[:-1]), int(response[-1])
        raise ValueError(
            f"{list(map(int, response))} is no finished response: it must end with one of "
            f"{self.eos.tolist()}, or have {self.depth} tokens."
        )

    # Along the tree ------------------------------------------------------------------------------

    def after(self, t: int, of_states: np.ndarray | None) -> np.ndarray:
        """(X, C^t, V) what is known of the state that each action at depth t leads to.

        Args:
            t: depth of the actions.
            of_states: (X, C^(t+1)) of the states one deeper; None at the last depth.

        Returns:
            0 where an action finishes the response.
        """
        found = np.zeros(self.shape(t))
        if of_states is not None:
            found[:, :, self.continuing] = of_states.reshape(*found.shape[:2], -1)
        return found

    def next_states(self, of_actions: np.ndarray) -> np.ndarray:
        """(X, C^(t+1)) what (X, C^t, V) says of the actions that lead to the states one deeper."""
        return of_actions[:, :, self.continuing].reshape(len(self.prompts), -1)

    def state_log_probs(self, log_policy: Levels) -> Levels:
        """T levels (X, C^t): the log-probability of coming to each state from its prompt."""
        found = [np.zeros((len(self.prompts), 1))]
        for level in log_policy[:-1]:
            found.append(self.next_states(found[-1][:, :, None] + level))
        return found

    # Finished responses --------------------------------------------------------------------------

    def finished(self, of_actions: Levels) -> np.ndarray:
        """(X, N) what levels say of the last action of each of a prompt's N finished responses.

        Every table of finished responses has this order: by length, then by state, then by action.
        """
        parts = [level[:, :, self.ending(t)] for t, level in enumerate(of_actions)]
        return np.concatenate([part.reshape(len(self.prompts), -1) for part in parts], axis=1)

    def response_log_probs(self, log_policy: Levels) -> np.ndarray:
        """(X, N) log π(y|x) of every finished response."""
        states = self.state_log_probs(log_policy)
        return self.finished(
            [state[:, :, None] + level for state, level in zip(states, log_policy, strict=True)]
        )

    def responses(self) -> list[np.ndarray]:
        """The token ids of a prompt's N finished responses; the same for each prompt."""
        found: list[np.ndarray] = []
        for t in range(self.depth):
            last = np.flatnonzero(self.ending(t))
            prefixes = self.prefixes(t)
            whole = np.empty((len(prefixes), len(last), t + 1), dtype=np.int64)
            whole[:, :, :t] = prefixes[:, None]
            whole[:, :, t] = last
            found += list(whole.reshape(-1, t + 1))
        return found


# Building it -------------------------------------------------------------------------------------


def count_responses(prompts: int, vocabulary_size: int, eos: int, max_new_tokens: int) -> int:
    """Finished responses of a token MDP with that many prompts, token ids and EOS ids."""
    going_on = vocabulary_size - eos
    ended = sum(going_on**t * eos for t in range(max_new_tokens))
    return prompts * (ended + going_on**max_new_tokens)


def enumerate_task(
    task: str, *, max_responses: int = MAX_RESPONSES, **environment: Any
) -> PrefixTree:
    """The tree of a task, over the prompts of its `eval` split.

    Args:
        task: name of a task.
        max_responses: refuse a task with more.
        **environment: further arguments of `TokenEnv`; `split` among them.

    Raises:
        ValueError: the task is too large to enumerate, or an argument can't be used.
    """
    settings = EnvSettings(**{"split": "eval", **environment, "task": task})
    return enumerate_mdp(TokenMDP(settings, num_envs=1), max_responses=max_responses)


def count_mdp_responses(mdp: TokenMDP, prompts: int) -> int:
    """Finished responses of a token MDP to that many prompts."""
    language_model = mdp.language_model
    eos = len(set(language_model.eos_token_ids))
    return count_responses(prompts, language_model.vocabulary_size, eos, mdp.max_new_tokens)


def enumerate_mdp(
    mdp: TokenMDP, prompts: Sequence[str] | None = None, max_responses: int = MAX_RESPONSES
) -> PrefixTree:
    """The tree of a token MDP.

    Args:
        mdp: the token MDP.
        prompts: X texts; those of its split unless given.
        max_responses: refuse more.

    Raises:
        ValueError: it is too large to enumerate, or a prompt can't be used.
    """
    language_model = mdp.language_model
    texts = list(mdp.prompts if prompts is None else prompts)
    count = count_mdp_responses(mdp, len(texts))
    if count > max_responses:
        raise ValueError(
            f"task {mdp.task.name!r} has {_about(count)} finished responses ({len(texts)} "
            f"prompts, {language_model.vocabulary_size} token ids, up to {mdp.max_new_tokens} of "
            f"them), more than the {max_responses:,} that are enumerated: estimate its optimum "
            "from samples instead, with tokenenv.optimum.sample_mixture and compare (`tokenrlhf "
            "evaluate` does it for a run), or take a task like 'exact'."
        )
    eos = np.array(sorted(set(language_model.eos_token_ids)))
    tree = PrefixTree(
        mdp.settings,
        language_model,
        texts,
        [mdp.encode_prompt(prompt) for prompt in texts],
        np.setdiff1d(np.arange(language_model.vocabulary_size), eos),
        eos,
        ref_log_probs=[],
        scores=[],
        gold_rewards=None,
    )
    scores, gold = _score_all(tree, mdp)
    log_probs = _model_levels(language_model.model, tree)
    return replace(tree, ref_log_probs=log_probs, scores=scores, gold_rewards=gold)


def _about(count: int) -> str:
    return f"{count:,}" if count < 10**9 else f"about 10^{len(str(count)) - 1}"


def _score_all(tree: PrefixTree, mdp: TokenMDP) -> tuple[Levels, Levels | None]:
    """The scorer's word on every finished response, as levels."""
    responses = tree.responses()
    stopped = [bool(np.isin(response[-1], tree.eos)) for response in responses]
    episodes = [
        Episode(prompt, response, ended)
        for prompt in tree.prompt_tokens
        for response, ended in zip(responses, stopped, strict=True)
    ]
    found = mdp.scorer.score(episodes)
    gold = found.gold_reward
    return _as_levels(tree, found.score), None if gold is None else _as_levels(tree, gold)


def _as_levels(tree: PrefixTree, finished: np.ndarray) -> Levels:
    """The inverse of `PrefixTree.finished`; NaN at actions that go on."""
    rows = finished.reshape(len(tree.prompts), -1)
    levels, start = [], 0
    for t in range(tree.depth):
        level, ends = np.full(tree.shape(t), np.nan), tree.ending(t)
        size = level.shape[1] * int(ends.sum())
        level[:, :, ends] = rows[:, start : start + size].reshape(*level.shape[:2], -1)
        levels.append(level)
        start += size
    return levels


# Policies ----------------------------------------------------------------------------------------


def policy_levels(policy: Policy, tree: PrefixTree) -> Levels:
    """T levels (X, C^t, V) of log π(a|s), float64 and normalised.

    Args:
        policy: levels already; a causal LM of transformers, or anything with one as `.actor`
            (`LMActorCriticPolicy`), at the environment's temperature; or a function from
            (n, P+T) observations to (n, V) log-probabilities.
        tree: of the token MDP.

    Raises:
        ValueError: it is none of these, its shapes are not the tree's, or some state's
            probabilities do not sum to 1.
    """
    model = getattr(policy, "actor", policy)
    if hasattr(model, "get_output_embeddings"):
        return _model_levels(model, tree)
    shapes = [tree.shape(t) for t in range(tree.depth)]
    if callable(policy):
        levels = [np.asarray(policy(tree.observations(t))) for t in range(tree.depth)]
        levels = [level.reshape(shape) for level, shape in zip(levels, shapes, strict=True)]
    elif isinstance(policy, Sequence) and [np.shape(level) for level in policy] == shapes:
        levels = [np.asarray(level, dtype=np.float64) for level in policy]
    else:
        raise ValueError(
            f"a {type(policy).__name__} is no policy on this tree: give a causal LM, a policy with "
            "an actor, a function from observations to log-probabilities, or a list of arrays of "
            f"log-probabilities with the shapes {shapes}."
        )
    for t, level in enumerate(levels):
        off = float(np.abs(np.exp(level).sum(-1) - 1.0).max())
        if not off <= 1e-4:
            raise ValueError(
                f"the policy's probabilities at depth {t} sum to 1 ± {off:.2g}: give "
                "log-probabilities that are normalised over the token ids."
            )
    return [_normalized(level) for level in levels]


def _normalized(log_probs: np.ndarray) -> np.ndarray:
    """float32 rounding taken out, so that sums over all responses are exact."""
    return log_probs - np.log(np.exp(log_probs.astype(np.float64)).sum(-1, keepdims=True))


@torch.no_grad()
def _model_levels(model: Any, tree: PrefixTree) -> Levels:
    """By forwards over the deepest prefixes, whose states contain all the others."""
    deepest = tree.prefixes(tree.depth - 1)
    continuing = len(tree.continuing)
    rows = [_every_state(model, tree, prompt, deepest) for prompt in tree.prompt_tokens]
    return [
        np.stack([row[:: continuing ** (tree.depth - 1 - t), t] for row in rows])
        for t in range(tree.depth)
    ]


def _every_state(
    model: Any, tree: PrefixTree, prompt: np.ndarray, prefixes: np.ndarray
) -> np.ndarray:
    """(n, T, V) log-probabilities at all states on the way to (n, T−1) prefixes."""
    sequences = np.concatenate([np.tile(prompt, (len(prefixes), 1)), prefixes], axis=1)
    size = max(1, FORWARD_TOKENS // sequences.shape[1])
    found = []
    for start in range(0, len(sequences), size):
        tokens = torch.as_tensor(sequences[start : start + size], device=model.device)
        hidden = trunk_hidden_states(model, tokens)[:, len(prompt) - 1 :]
        logits = output_logits(model, hidden).double() / tree.settings.temperature
        found.append(torch.log_softmax(logits, dim=-1).cpu().numpy())
    return np.concatenate(found)
