"""The reward model: a transformers classifier with one output, read at the last real token."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from tokenenv.addresses import names_server, parse_address
from tokenenv.combinations import ensemble_members
from tokenenv.data import Message
from tokenenv.models import (
    MICRO_BATCH_TOKENS,
    ChatTemplate,
    SharedLoader,
    check_complete,
    check_source,
    check_tokenizer,
    check_weights,
    computing_in,
    eos_ids_of,
    freeze,
    is_adapter_weight,
    join_ids,
    load_tokenizer,
    load_trainable,
    loading_errors,
    merged,
    one_at_a_time,
    output_folder,
    pad_right,
    prepare,
    prompt_ids,
    quiet_loading,
    resolve_dtype,
    token_batches,
)

__all__ = ["RewardModel", "load_reward_model", "new_reward_model", "sequence_rewards"]


class RewardModel:
    """A learned reward with its tokenizer and the statistics that normalise it.

    The raw reward is the classifier's output at the last real token; `normalize` brings it to mean
    0 and standard deviation 1 on samples of the reference.

    Args:
        model: a transformers sequence classifier with `num_labels == 1`.
        tokenizer: its tokenizer.
        is_shared: whether it lives in the process-level cache and so must not be trained.

    Attributes:
        mean: of the raw reward on reference samples; stored in `model.config.reward_mean`.
        std: likewise, in `model.config.reward_std`.
        version: grows with every normalisation, as after a training, for whoever keeps what was
            computed from its rewards.
    """

    def __init__(self, model: Any, tokenizer: Any, is_shared: bool = False) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.version = 0
        self.is_shared = is_shared

    @property
    def name(self) -> str:
        """The folder or hub id that it came from, for messages."""
        return str(getattr(self.model, "name_or_path", "")) or type(self.model).__name__

    @property
    def mean(self) -> float:
        """Mean of the raw reward on reference samples (0 until it has been measured)."""
        return float(getattr(self.model.config, "reward_mean", 0.0))

    @property
    def std(self) -> float:
        """Standard deviation of the raw reward on reference samples (1 until measured)."""
        return float(getattr(self.model.config, "reward_std", 1.0))

    def normalize(self, raw: np.ndarray) -> np.ndarray:
        """(raw − mean) / std."""
        return (raw - self.mean) / self.std

    def measure_normalization(self, raw: np.ndarray) -> None:
        """Take mean and standard deviation from the raw rewards of reference samples.

        Raises:
            ValueError: they are not finite, or do not vary, so that nothing could be divided by
                their deviation.
        """
        bad = int((~np.isfinite(raw)).sum())
        if bad:
            raise ValueError(
                f"the reward model gives NaN or ∞ to {bad} of {len(raw)} samples: its training "
                "diverged. Lower the learning rate."
            )
        std = float(np.std(raw))
        if not std > 1e-8:
            raise ValueError(
                f"the reward model gives the same reward to all {len(raw)} samples (std "
                f"{std:.3g}): it has learned nothing to normalise."
            )
        self.set_normalization(float(np.mean(raw)), std)

    def set_normalization(self, mean: float, std: float) -> None:
        """Normalise by this mean and deviation from now on.

        Args:
            mean: finite.
            std: finite and above 0.

        Raises:
            ValueError: they are not.
        """
        if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
            raise ValueError(
                f"mean={mean!r} and std={std!r} can't normalise a reward: a finite mean, and a "
                "finite deviation above 0."
            )
        self.model.config.reward_mean, self.model.config.reward_std = mean, std
        self.version += 1

    @property
    def is_adapted(self) -> bool:
        """Whether the model has adapters of `tokenenv.models.add_lora`."""
        return any(is_adapter_weight(name) for name, _ in self.model.named_parameters())

    @property
    def num_embeddings(self) -> int:
        """Rows of the input embedding: the token ids that it can read."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def max_tokens(self) -> int:
        """The longest sequence that it has positions for."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return sys.maxsize if limit is None else int(limit)

    def shares_tokenizer(self, tokenizer: Any, vocabulary_size: int) -> bool:
        """Whether `tokenizer`'s ids 0 … `vocabulary_size` − 1 mean the same to this model."""
        return self.num_embeddings >= vocabulary_size and (
            self.tokenizer is tokenizer or self.tokenizer.get_vocab() == tokenizer.get_vocab()
        )

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end a response: those of the config, and that of the tokenizer."""
        eos = getattr(self.tokenizer, "eos_token_id", None)
        return tuple(
            dict.fromkeys(
                [*eos_ids_of(self.model, self.tokenizer), *([] if eos is None else [int(eos)])]
            )
        )

    @property
    def eos_token_id(self) -> int | None:
        """The id that completes every response it reads: that of the tokenizer, else the first."""
        eos = getattr(self.tokenizer, "eos_token_id", None)
        return next(iter(self.eos_token_ids), None) if eos is None else int(eos)

    def encode(self, prompt: str, response: str, stopped: bool = True) -> np.ndarray:
        """(n,) int64 token ids of a prompt and a response, as `tokenenv.models.encoding` says.

        Args:
            prompt: text.
            response: text.
            stopped: whether the response is complete, and so ends with EOS.
        """
        return self.join(
            prompt_ids(self.tokenizer, prompt, self.eos_token_ids),
            self.tokenizer(response, add_special_tokens=False)["input_ids"],
            stopped,
        )

    @cached_property
    def chat(self) -> ChatTemplate:
        """The chat template of the tokenizer."""
        return ChatTemplate(self.tokenizer, self.name)

    def encode_messages(self, messages: Sequence[Message], answer: str | None = None) -> np.ndarray:
        """(n,) int64 token ids of a whole conversation, as the chat template writes it.

        The template completes the last turn, also where the answer was cut off: whoever labelled
        conversations saw them whole, and so did the model that learned from them.

        Args:
            messages: the conversation.
            answer: the assistant's answer to it; None where `messages` hold it.

        Raises:
            ValueError: there is no template, or it refuses these messages.
        """
        text = self.chat.whole(messages, answer)
        return np.asarray(prompt_ids(self.tokenizer, text, self.eos_token_ids), dtype=np.int64)

    def join(
        self,
        prompt: Sequence[int] | np.ndarray,
        response: Sequence[int] | np.ndarray,
        stopped: bool,
    ) -> np.ndarray:
        """(n,) int64: the token ids of a prompt and of a response as the one sequence it reads."""
        return join_ids(prompt, response, stopped, self.eos_token_ids, self.eos_token_id)

    @torch.no_grad()
    def raw_rewards(
        self, sequences: Sequence[np.ndarray], max_tokens: int = MICRO_BATCH_TOKENS
    ) -> np.ndarray:
        """(B,) float64 raw rewards of B token sequences (prompt and response in one).

        Raises:
            ValueError: a sequence is longer than the model has positions for.
        """
        rewards = np.zeros(len(sequences))
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        if lengths.max(initial=0) > self.max_tokens:
            raise ValueError(
                f"a prompt and response have {lengths.max()} tokens, more than the "
                f"{self.max_tokens} positions of the reward model: lower max_new_tokens."
            )
        for batch in token_batches(lengths, max_tokens):
            batch_rewards = sequence_rewards(self.model, [sequences[i] for i in batch])
            rewards[batch] = batch_rewards.double().cpu().numpy()
        return rewards

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write a folder for `AutoModelForSequenceClassification`, statistics in its config.

        A model with adapters is written merged.

        Raises:
            ValueError: `folder` is empty, or is there and is no folder.
        """
        folder = output_folder(folder)
        with quiet_loading():
            model = merged(self.model) if self.is_adapted else self.model
            model = model if dtype is None else _converted(model, dtype)
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)


def _converted(model: Any, dtype: torch.dtype) -> Any:
    twin = type(model)(model.config).to(dtype)
    twin.load_state_dict(model.state_dict())
    twin.config.dtype = dtype
    return twin


def sequence_rewards(
    model: Any, sequences: Sequence[np.ndarray], precision: str = "float32"
) -> torch.Tensor:
    """(B,) float32 rewards at the last real token of sequences, with gradient where it is on.

    Args:
        model: a transformers classifier with one output.
        sequences: B arrays of token ids.
        precision: `"float32"` or `"bfloat16"`, of the trunk; the head computes in float32.
    """
    tokens, lengths = pad_right(sequences)
    ids = torch.as_tensor(tokens, device=model.device)
    head = getattr(model, "score", None)
    if isinstance(head, nn.Linear):
        with computing_in(precision, model.device):
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        last = torch.as_tensor(lengths - 1, device=model.device)
        hidden = hidden[torch.arange(len(tokens), device=model.device), last]
        rewards = head(hidden if precision == "float32" else hidden.float())
    else:  # an encoder pools in another way, but must not see columns behind the last token
        is_token = np.arange(tokens.shape[1])[None, :] < lengths[:, None]
        mask = torch.as_tensor(is_token.astype(np.int64), device=model.device)
        with computing_in(precision, model.device):
            rewards = model(input_ids=ids, attention_mask=mask).logits
    rewards = rewards.squeeze(-1)
    return rewards if rewards.dtype == torch.float64 else rewards.float()


@SharedLoader
def load_reward_model(name: str, device: str = "cpu", dtype: str = "float32") -> RewardModel:
    """The reward model in `name`, frozen; a second call with the same arguments shares it.

    Raises:
        ValueError: `name` holds no sequence classifier with one output, or not all of its weights.
    """
    if names_server(name):
        raise ValueError(
            f"reward_model={str(parse_address(name))!r} is the address of a reward server, and a "
            "reward model itself is wanted here, with its weights: give its folder or hub id."
        )
    if members := ensemble_members(name):
        raise ValueError(
            f"reward_model={name!r} holds {len(members)} members of an ensemble, and one reward "
            f"model is wanted here: name one of them, such as {members[0]!r}."
        )
    check_source(name, "reward_model")
    with quiet_loading(), loading_errors(name, "reward_model"):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    _check_classifier(config, name)
    with quiet_loading(), loading_errors(name, "reward_model"):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name,
            dtype=resolve_dtype(dtype),
            trust_remote_code=False,
            weights_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `check_complete` refuses them by name
        )
    check_complete(report, name, "reward_model")
    check_weights(model, name, "reward_model")
    prepare(model)
    freeze(model)
    tokenizer = load_tokenizer(name, "reward_model")
    check_tokenizer(tokenizer, model, name, "reward_model")
    with loading_errors(name, "reward_model"):
        eos_ids_of(model, tokenizer)  # refuses anything but an id
    return RewardModel(model.to(device), tokenizer, is_shared=True)


def _check_classifier(config: Any, name: str) -> None:
    architectures = getattr(config, "architectures", None) or []
    if architectures and not any("SequenceClassification" in a for a in architectures):
        raise ValueError(
            f"reward_model={name!r} holds a {architectures[0]}, no sequence classifier. Train a "
            "reward model on it with `tokenrlhf reward-model --pairs FILE --base MODEL --out DIR`."
        )
    if config.num_labels != 1:
        labels = list((getattr(config, "id2label", None) or {}).values())
        two = (
            f" Its log-odds of {labels[1]!r} may be what you want: the difference of the outputs, "
            "as a reward function (docs/rewards.md has one)."
            if len(labels) == config.num_labels == 2
            else ""
        )
        raise ValueError(
            f"reward_model={name!r} has {config.num_labels} outputs "
            f"({', '.join(map(str, labels[:4]))}{', …' * (len(labels) > 4)}); a reward model has "
            f"exactly one (num_labels=1).{two}"
        )
    for key, allowed, is_allowed in (
        ("reward_mean", "a finite number", lambda value: True),
        ("reward_std", "a finite number above 0", lambda value: value > 0),
    ):
        value = getattr(config, key, 1.0)
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not (is_number and math.isfinite(value) and is_allowed(value)):
            raise ValueError(
                f"reward_model={name!r}: its config.json has {key}={value!r}, which must be "
                f"{allowed}, since the score is (reward − reward_mean) / reward_std. Measure it on "
                "responses of the reference (RewardModel.measure_normalization), or remove both "
                "keys to leave the rewards as they are."
            )


def new_reward_model(base: str, device: str = "cpu", seed: int = 0) -> RewardModel:
    """A trainable reward model on the trunk of `base`, its head drawn from N(0, 1/√(h+1)).

    `base` may hold a causal LM or a sequence classifier. Every trunk weight must come from the
    checkpoint: a causal LM is loaded as one, so that tied embeddings which are stored only as the
    output layer arrive as well, and its trunk is then copied.

    Raises:
        ValueError: `base` holds neither, or a trunk weight is missing from it.
    """
    with one_at_a_time():
        return _new_reward_model(base, device, seed)


def _new_reward_model(base: str, device: str, seed: int) -> RewardModel:
    check_source(base, "base")
    with quiet_loading(), loading_errors(base, "base"):
        config = AutoConfig.from_pretrained(base, num_labels=1, trust_remote_code=False)
    if any("SequenceClassification" in a for a in (config.architectures or [])):
        with quiet_loading(), loading_errors(base, "base"):
            model, report = AutoModelForSequenceClassification.from_pretrained(
                base,
                config=config,
                dtype=torch.float32,
                trust_remote_code=False,
                weights_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # a head of several outputs is initialised again
            )
        check_complete(report, base, "base", may_miss=("score.", "classifier."))
        check_weights(model, base, "base")
        tokenizer = load_tokenizer(base, "base")
    else:
        causal = load_trainable(base)
        tokenizer = causal.tokenizer
        with quiet_loading(), loading_errors(base, "base"):
            model = AutoModelForSequenceClassification.from_config(
                config, dtype=torch.float32, trust_remote_code=False
            )
            model.base_model.load_state_dict(causal.model.base_model.state_dict(), strict=True)
        ends = causal.eos_token_ids  # a generation config, which may name more, is not saved
        model.config.eos_token_id = ends[0] if len(ends) == 1 else list(ends)
    prepare(model)
    _initialize_head(model, base, seed)
    _set_pad_token(model, tokenizer)
    return RewardModel(model.to(device), tokenizer)


def _set_pad_token(model: Any, tokenizer: Any) -> None:
    """Make the plain `transformers` forward of a batch read the reward where ours does.

    It takes the last token that is not the pad token. A pad token that is also EOS would hide a
    final EOS from it, so then there is none: it refuses batches instead of misreading them.
    """
    if not isinstance(getattr(model, "score", None), nn.Linear):
        return  # an encoder pools elsewhere, and may count positions by its pad token
    pad = model.config.pad_token_id
    pad = tokenizer.pad_token_id if pad is None else pad
    model.config.pad_token_id = None if pad == tokenizer.eos_token_id else pad


def _initialize_head(model: Any, base: str, seed: int) -> None:
    head = getattr(model, "score", None) or getattr(model, "classifier", None)
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"base={base!r}: {type(model).__name__} has no linear head to draw; use a causal LM, "
            "or a classifier with a single linear layer on its trunk."
        )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        std = 1.0 / math.sqrt(head.in_features + 1)
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * std)
        if head.bias is not None:
            head.bias.zero_()
