"""What models say of every token of some responses: one forward of the actor, one of the reference.

Axes: `B` responses, `n` tokens of all of them, one response after another, `V` the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from agents.credit.columns import TOP
from agents.policy import LMActorCriticPolicy
from tokenenv.maths import full_kl
from tokenenv.models import (
    MICRO_BATCH_TOKENS,
    Reference,
    hidden_states,
    pack,
    rows_at_once,
    tempered_logits,
    token_batches,
)

__all__ = ["TokenStates", "evaluate_states", "logit_chunks"]


@dataclass(frozen=True, slots=True)
class TokenStates:
    """The actor, its critic and the reference at the n tokens of some responses.

    Attributes:
        hidden: (n, h) last hidden states of the actor's trunk, on its device.
        actions: (n,) int64 token ids.
        log_probs: (n,) float64 log π(a|s).
        ref_log_probs: (n,) float64 log π_ref(a|s).
        full_kls: (n,) float64 KL(π ‖ π_ref) at each state.
        entropies: (n,) float64 of π.
        values: (n,) float64 V(s).
        top_tokens: (n, k) int64, the most likely tokens.
        top_probs: (n, k) float64, their probabilities.
    """

    hidden: torch.Tensor
    actions: np.ndarray
    log_probs: np.ndarray
    ref_log_probs: np.ndarray
    full_kls: np.ndarray
    entropies: np.ndarray
    values: np.ndarray
    top_tokens: np.ndarray
    top_probs: np.ndarray


def logit_chunks(
    policy: LMActorCriticPolicy, hidden: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor]]:
    """(m, V) logits of (n, h) hidden states, divided by the temperature, some states at a time."""
    size = rows_at_once(hidden.device, policy.actor.get_output_embeddings().weight.shape[0])
    for start in range(0, len(hidden), size):
        part = slice(start, start + size)
        yield part, tempered_logits(policy.actor, hidden[part], policy.temperature)


@torch.no_grad()
def evaluate_states(
    policy: LMActorCriticPolicy,
    reference: Reference,
    prefixes: Sequence[np.ndarray],
    responses: Sequence[np.ndarray],
) -> TokenStates:
    """Everything that models say of the tokens of `responses`.

    Args:
        policy: whose actor and critic are asked.
        reference: at the temperature of the policy.
        prefixes: B arrays of the token ids before each response.
        responses: B arrays of token ids, none of them empty.
    """
    lengths = np.array([len(p) + len(r) for p, r in zip(prefixes, responses, strict=True)])
    parts: dict[int, TokenStates] = {}
    for batch in token_batches(lengths, MICRO_BATCH_TOKENS):
        actions = [responses[i] for i in batch]
        states = _of_batch(policy, reference, [prefixes[i] for i in batch], actions)
        bounds = np.cumsum([0, *map(len, actions)])
        for i, start, end in zip(batch.tolist(), bounds, bounds[1:], strict=False):
            arrays = {f.name: getattr(states, f.name)[start:end] for f in fields(states)}
            parts[i] = TokenStates(**arrays)
    ordered = [parts[i] for i in range(len(responses))]
    joined = {
        f.name: np.concatenate([getattr(part, f.name) for part in ordered])
        for f in fields(TokenStates)
        if f.name != "hidden"
    }
    return TokenStates(torch.cat([part.hidden for part in ordered]), **joined)


def _of_batch(
    policy: LMActorCriticPolicy,
    reference: Reference,
    prefixes: list[np.ndarray],
    actions: list[np.ndarray],
) -> TokenStates:
    packed = pack(prefixes, actions, policy.device)
    hidden, critic_hidden = policy.trunk_states(packed)  # (n, h), (n, h')
    values = policy.values_of(critic_hidden).flatten()  # (n, 1) → (n,)
    tokens = torch.as_tensor(np.concatenate(actions), device=hidden.device)  # (n,)
    ref_model = reference.language_model.model
    ref_hidden = hidden_states(ref_model, packed)  # (n, h of the reference)
    numbers: dict[str, list[np.ndarray]] = {}
    for part, logits in logit_chunks(policy, hidden):
        log_probs = torch.log_softmax(logits.double(), dim=-1)  # (m, V)
        ref_logits = tempered_logits(ref_model, ref_hidden[part], reference.temperature)
        ref_log_probs = torch.log_softmax(ref_logits.double(), dim=-1).to(log_probs.device)
        top_probs, top_tokens = log_probs.exp().topk(min(TOP, log_probs.shape[1]), dim=-1)
        index = tokens[part][:, None]  # (m, 1)
        for name, tensor in {
            "log_probs": log_probs.gather(-1, index).squeeze(-1),
            "ref_log_probs": ref_log_probs.gather(-1, index).squeeze(-1),
            "full_kls": full_kl(log_probs, ref_log_probs),
            "entropies": -(log_probs.exp() * log_probs).sum(-1),
            "top_tokens": top_tokens,
            "top_probs": top_probs,
        }.items():
            numbers.setdefault(name, []).append(tensor.cpu().numpy())
    return TokenStates(
        hidden=hidden,
        actions=np.concatenate(actions),
        values=values.double().cpu().numpy(),
        **{name: np.concatenate(chunks) for name, chunks in numbers.items()},
    )
