"""Policies on a tree: models, agents, functions, or log-probabilities themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tokenenv.models import check_context, output_logits, trunk_hidden_states
from tokenenv.optimum.prefix_tree import Levels, PrefixTree, normalized

__all__ = ["Policy", "model_levels", "policy_levels"]

Policy = Any
"""Any argument that `policy_levels` accepts."""

FORWARD_TOKENS = 32_768
"""Tokens that one forward takes at most."""


def policy_levels(policy: Policy, tree: PrefixTree) -> Levels:
    """T levels (X, C^t, V) of log π(a|s), float64 and normalised.

    Args:
        policy: levels already; a causal LM of transformers, at the environment's temperature; an
            agent or a policy of Stable-Baselines3 (`LMActorCriticPolicy`, or any with a
            distribution over actions); or a function from (n, P+T) observations to (n, V)
            log-probabilities.
        tree: of the token MDP.

    Raises:
        ValueError: it is none of these, its vocabulary or shapes are not the tree's, or some
            state's probabilities do not sum to 1.
    """
    unwrapped = _unwrapped(policy)
    if _is_causal_lm(unwrapped):
        return model_levels(unwrapped, tree)
    if hasattr(unwrapped, "get_distribution"):
        levels = [_function_level(_sb3_function(unwrapped), tree, t) for t in range(tree.depth)]
    elif callable(unwrapped) and not isinstance(unwrapped, torch.nn.Module):
        levels = [_function_level(unwrapped, tree, t) for t in range(tree.depth)]
    else:
        levels = _checked_levels(unwrapped, tree)
    for t, level in enumerate(levels):
        off = float(np.abs(np.exp(level).sum(-1) - 1.0).max())
        if not off <= 1e-4:
            raise ValueError(
                f"the policy's probabilities at depth {t} sum to 1 ± {off:.2g}: give "
                "log-probabilities that are normalised over the token ids."
            )
    return [normalized(level) for level in levels]  # takes float32's rounding out


def _unwrapped(policy: Policy) -> Any:
    """The model inside an agent, a policy or a `LanguageModel`; anything else as it is."""
    if _is_causal_lm(policy):
        return policy
    agent_policy = getattr(policy, "policy", policy)
    inner = [getattr(agent_policy, name, None) for name in ("actor", "model")]
    return next((model for model in inner if _is_causal_lm(model)), agent_policy)


def _is_causal_lm(model: Any) -> bool:
    return hasattr(model, "get_output_embeddings") and model.get_output_embeddings() is not None


def _checked_levels(policy: Any, tree: PrefixTree) -> Levels:
    shapes = [tree.shape(t) for t in range(tree.depth)]
    if isinstance(policy, Sequence) and not isinstance(policy, str):
        if [np.shape(level) for level in policy] == shapes:
            return [np.asarray(level, dtype=np.float64) for level in policy]
    raise ValueError(
        f"a {type(policy).__name__} is no policy on this tree: give a causal LM, an agent or "
        "policy of Stable-Baselines3, a function from observations to log-probabilities, or a list "
        f"of arrays of log-probabilities with the shapes {shapes}."
    )


def _function_level(function: Any, tree: PrefixTree, t: int) -> np.ndarray:
    """The level at depth t of a function from observations to log-probabilities."""
    observations = tree.observations(t)
    log_probs = function(observations)
    if isinstance(log_probs, torch.Tensor):
        log_probs = log_probs.detach().cpu().numpy()
    expected = (len(observations), tree.vocabulary_size)
    if np.shape(log_probs) != expected:
        raise ValueError(
            f"the policy gave an array of shape {np.shape(log_probs)} for {len(observations)} "
            f"observations: it must be {expected}, log-probabilities of all token ids."
        )
    return np.asarray(log_probs, dtype=np.float64).reshape(tree.shape(t))


def _sb3_function(policy: Any) -> Any:
    @torch.no_grad()
    def log_probs(observations: np.ndarray) -> torch.Tensor:
        tensor, _ = policy.obs_to_tensor(observations)
        return torch.log_softmax(policy.get_distribution(tensor).distribution.logits.double(), -1)

    return log_probs


@torch.no_grad()
def model_levels(model: Any, tree: PrefixTree) -> Levels:
    """T levels (X, C^t, V) of a causal LM at the environment's temperature, dropout off.

    By forwards over the deepest prefixes, whose states contain all the others.

    Raises:
        ValueError: the model has another vocabulary, or too few positions.
    """
    rows = int(model.get_output_embeddings().weight.shape[0])
    if rows != tree.vocabulary_size:
        raise ValueError(
            f"the policy has a vocabulary of {rows} tokens, the task one of "
            f"{tree.vocabulary_size}: give a model with the reference's vocabulary."
        )
    longest = max(map(len, tree.prompt_tokens)) + tree.depth
    check_context(model, longest, "policy")
    deepest = tree.prefixes(tree.depth - 1)
    continuing = len(tree.continuing)
    was_training = model.training
    model.eval()
    try:
        by_prompt = [_every_state(model, tree, prompt, deepest) for prompt in tree.prompt_tokens]
    finally:
        model.train(was_training)
    return [
        np.stack([log_probs[:: continuing ** (tree.depth - 1 - t), t] for log_probs in by_prompt])
        for t in range(tree.depth)
    ]


def _every_state(
    model: Any, tree: PrefixTree, prompt: np.ndarray, prefixes: np.ndarray
) -> np.ndarray:
    """(n, T, V) log-probabilities at all states on the way to (n, T−1) prefixes."""
    sequences = np.concatenate([np.tile(prompt, (len(prefixes), 1)), prefixes], axis=1)
    size = max(1, FORWARD_TOKENS // sequences.shape[1])
    log_probs = []
    for start in range(0, len(sequences), size):
        tokens = torch.as_tensor(sequences[start : start + size], device=model.device)
        hidden = trunk_hidden_states(model, tokens)[:, len(prompt) - 1 :]
        logits = output_logits(model, hidden).double() / tree.settings.temperature
        log_probs.append(torch.log_softmax(logits, dim=-1).cpu().numpy())
    return np.concatenate(log_probs)
