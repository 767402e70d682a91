"""The parts that a bundled task's models are built with: tokenizer, reference, preference pairs.

Used by `python -m tokenenv.tasks.TASK.build`; nothing here is needed at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from tokenenv.models import (
    output_logits,
    pad_right,
    response_log_probs,
    sample_responses,
    token_log_probs,
    trunk_hidden_states,
)
from tokenenv.rewards import Episode, EpisodeScorer, TokenPair

__all__ = [
    "BOS",
    "EOS",
    "LabelledPairs",
    "ProposalSettings",
    "annotate",
    "fit_proposal",
    "join_pairs",
    "text_log_probs",
    "train_language_model",
    "train_tokenizer",
    "word_tokenizer",
]

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"

FORWARD_SIZE = 32
"""Sequences that one training forward takes at most."""


def train_tokenizer(texts: Iterator[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with BOS in front of every text, and pad apart from EOS.

    All 256 bytes are in the vocabulary, so that any text a user types has a tokenisation.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD
    )


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words between spaces, and EOS behind them: nothing else has an id."""
    vocabulary = {word: index for index, word in enumerate([*words, EOS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS)


def train_language_model(
    model: Any,
    next_batch: Callable[[], Sequence[np.ndarray]],
    steps: int,
    learning_rate: float,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Train a causal LM in place on fresh batches, with AdamW, warm-up and a linear decay to 0.

    Args:
        model: the model.
        next_batch: gives B arrays of token ids; the first token of each is given, not predicted.
        steps: optimiser steps.
        learning_rate: its peak.
        on_step: called after every step with (step, loss in nats per token).
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / max(1, steps // 20), (steps - step) / steps)
    )
    model.train()
    for step in range(1, steps + 1):
        sequences = sorted(next_batch(), key=len)
        predicted = sum(len(sequence) - 1 for sequence in sequences)
        optimizer.zero_grad()
        total = 0.0
        for start in range(0, len(sequences), FORWARD_SIZE):  # of like length: little padding
            hidden, targets = _next_token_states(model, sequences[start : start + FORWARD_SIZE])
            loss = cross_entropy(output_logits(model, hidden), targets, reduction="sum") / predicted
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step(step, total)
    model.eval()


def _next_token_states(
    model: Any, sequences: Sequence[np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, h) hidden states and the (n,) tokens that follow them."""
    tokens, lengths = pad_right(sequences)
    ids = torch.as_tensor(tokens, device=model.device)
    is_target = np.arange(1, tokens.shape[1])[None, :] < lengths[:, None]
    mask = torch.as_tensor(is_target, device=model.device)
    return trunk_hidden_states(model, ids[:, :-1])[mask], ids[:, 1:][mask]


def text_log_probs(model: Any, sequences: Sequence[np.ndarray]) -> np.ndarray:
    """(B,) log p of whole sequences in nats; the first token of each is given, not predicted."""
    scored = response_log_probs(model, [s[:1] for s in sequences], [s[1:] for s in sequences], 1.0)
    return np.array([log_probs.sum() for log_probs in scored])


@dataclass(frozen=True, slots=True)
class LabelledPairs:
    """Preference pairs, with the probabilities of their annotator.

    Attributes:
        pairs: the pairs, as tokens.
        probabilities: (B,) the annotator's probability of the label that it gave.
        gold_margins: (B,) gold reward of the chosen minus that of the rejected response.
    """

    pairs: list[TokenPair]
    probabilities: np.ndarray
    gold_margins: np.ndarray

    @property
    def bayes_accuracy(self) -> float:
        """E[max(p, 1−p)], the expected accuracy of the best predictor of the labels."""
        return float(np.maximum(self.probabilities, 1.0 - self.probabilities).mean())


def annotate(
    prompts: Sequence[np.ndarray],
    names: Sequence[str],
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    gold: tuple[np.ndarray, np.ndarray],
    sharpness: float,
    rng: np.random.Generator,
) -> LabelledPairs:
    """Label pairs of responses as a Bradley–Terry annotator does.

    P(first ≻ second) = σ(sharpness·(gold(first) − gold(second))).

    Args:
        prompts: B arrays of token ids.
        names: B texts that identify the prompts.
        first: B responses as token ids.
        second: B other responses to the same prompts.
        gold: (B,) gold rewards of the first and of the second responses.
        sharpness: how sure the annotator is of a difference in gold reward.
        rng: of the labels.
    """
    difference = gold[0] - gold[1]
    first_wins = 1.0 / (1.0 + np.exp(-sharpness * difference))
    is_first = rng.random(len(difference)) < first_wins
    pairs = []
    for prompt, name, a, b, wins in zip(prompts, names, first, second, is_first, strict=True):
        one, other = (np.concatenate([prompt, response]) for response in (a, b))
        pairs.append(TokenPair(one, other, name) if wins else TokenPair(other, one, name))
    return LabelledPairs(
        pairs,
        np.where(is_first, first_wins, 1.0 - first_wins),
        np.where(is_first, difference, -difference),
    )


def join_pairs(parts: Sequence[LabelledPairs]) -> LabelledPairs:
    """All pairs of several sets as one."""
    return LabelledPairs(
        [pair for part in parts for pair in part.pairs],
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate([part.gold_margins for part in parts]),
    )


@dataclass(frozen=True, slots=True)
class ProposalSettings:
    """How a proposal is fitted.

    Args:
        kl_coef: β of the optimum it should come near.
        rounds: of sampling and fitting.
        prompts_per_round: prompts that each round draws.
        responses_per_prompt: responses that are weighted against each other.
        batch_size: responses per optimiser step.
        learning_rate: AdamW's.
    """

    kl_coef: float
    rounds: int = 8
    prompts_per_round: int = 64
    responses_per_prompt: int = 32
    batch_size: int = 128
    learning_rate: float = 2e-3


def fit_proposal(
    model: Any,
    scorer: EpisodeScorer,
    prompts: Sequence[np.ndarray],
    max_new_tokens: int,
    settings: ProposalSettings,
    seed: int,
) -> None:
    """Train `model` in place towards the optimal policy π* ∝ π_ref·exp(R/β).

    Adaptive importance sampling: each round samples from the current proposal, weights the
    responses by π*/q (normalised over the responses to one prompt) and fits the model to them by
    weighted maximum likelihood, which lowers KL(π* ‖ q): the cross-entropy method (Rubinstein 1999;
    Cappé et al. 2008, https://arxiv.org/abs/0710.4242). β comes down to its
    value over the first half of the rounds.

    Args:
        model: starts as a copy of the reference.
        scorer: of the task.
        prompts: X arrays of token ids to draw from.
        max_new_tokens: T.
        settings: β, rounds and sizes.
        seed: of sampling and order.
    """
    rng = np.random.default_rng(seed)
    eos = scorer.reference.language_model.eos_token_ids
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    for round_ in range(settings.rounds):
        kl_coef = settings.kl_coef * max(1.0, settings.rounds / 2 / (round_ + 1))
        drawn = [prompts[i] for i in rng.integers(len(prompts), size=settings.prompts_per_round)]
        repeated = [prompt for prompt in drawn for _ in range(settings.responses_per_prompt)]
        sampled = sample_responses(
            model,
            eos,
            repeated,
            max_new_tokens,
            temperature=scorer.reference.temperature,
            seed=int(rng.integers(2**31)),
        )
        episodes = [Episode(p, s.tokens, s.stopped) for p, s in zip(repeated, sampled, strict=True)]
        log_weights = scorer.score(episodes).score / kl_coef
        log_weights += [log_probs.sum() for log_probs in scorer.ref_log_probs(episodes)]
        log_weights -= [s.log_probs.sum() for s in sampled]
        weights = _softmax_rows(log_weights.reshape(-1, settings.responses_per_prompt)).ravel()
        _weighted_fit(model, optimizer, episodes, weights, settings, rng)


def _softmax_rows(log_weights: np.ndarray) -> np.ndarray:
    weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
    return weights / weights.mean(axis=1, keepdims=True)


def _weighted_fit(
    model: Any,
    optimizer: torch.optim.Optimizer,
    episodes: list[Episode],
    weights: np.ndarray,
    settings: ProposalSettings,
    rng: np.random.Generator,
) -> None:
    """One pass of −Σ w·log q over the responses that carry weight."""
    carrying = np.flatnonzero(weights > 1e-3)
    order = rng.permutation(carrying)
    model.train()
    for start in range(0, len(order), settings.batch_size):
        batch = order[start : start + settings.batch_size]
        sequences = [np.concatenate([episodes[i].prompt, episodes[i].response]) for i in batch]
        tokens, lengths = pad_right(sequences)
        prompt_lengths = np.array([len(episodes[i].prompt) for i in batch])
        column = np.arange(1, tokens.shape[1])[None, :]
        is_response = (column >= prompt_lengths[:, None]) & (column < lengths[:, None])
        mask = torch.as_tensor(is_response)
        ids = torch.as_tensor(tokens)
        hidden = trunk_hidden_states(model, ids[:, :-1])[mask]
        log_probs = token_log_probs(model, hidden, ids[:, 1:][mask], temperature=1.0)
        token_weights = np.broadcast_to(weights[batch][:, None], is_response.shape)[is_response]
        loss = -(torch.as_tensor(token_weights, dtype=log_probs.dtype) * log_probs).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
