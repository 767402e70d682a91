"""The parts of a PPO update, each done once and by transformers and torch alone.

Their sum is what an update would cost if nothing stood between the parts: no environment, no
buffer, no log-probabilities and values kept while sampling, no metrics. transformers' modules run
as they come; only the epochs of a precision other than float32 run under torch's bfloat16 autocast.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from ppo_updates import Workload
from random_models import random_prompts
from reporting import seconds_of
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from tokenenv.models.preparation import fuse_activations

__all__ = ["SumOfParts"]


class SumOfParts:
    """A call: seconds of `generate`, a reference and a reward model forward, and the epochs.

    Args:
        work: the update; a precision other than float32 means bfloat16 in the epochs.
        is_fused: activations in one kernel, as tokenenv loads models, and torch's fused Adam; else
            everything is as transformers and torch make it.

    Attributes:
        prompts: (B, P) token ids, int64.
        seconds: part → seconds in every call.
    """

    def __init__(self, work: Workload, is_fused: bool = False) -> None:
        self.work, lm = work, work.models / "lm"
        self._autocasts = work.precision != "float32"
        tokenizer = AutoTokenizer.from_pretrained(lm)
        self.actor, self.reference = (_load(AutoModelForCausalLM, work, "lm") for _ in range(2))
        self.reward_model = _load(AutoModelForSequenceClassification, work, "rm")
        if is_fused:
            for model in (self.actor, self.reference, self.reward_model):
                fuse_activations(model)
        self.reward_model.config.pad_token_id = None  # nothing is padded: the last token counts
        texts = random_prompts(tokenizer, work.batch, work.prompt)
        self.prompts = torch.tensor([tokenizer(t)["input_ids"] for t in texts]).to(work.device)
        self.actor.generation_config = GenerationConfig(
            do_sample=True,
            top_k=0,
            max_new_tokens=work.response,
            eos_token_id=None,
            pad_token_id=tokenizer.pad_token_id or 0,
        )
        self.trunk = self.actor.base_model
        self.critic = copy.deepcopy(self.trunk) if work.value_head == "separate" else self.trunk
        hidden_size = self.actor.get_output_embeddings().weight.shape[1]
        self.head = nn.Linear(hidden_size, 1).to(work.device)
        parts = (self.actor, self.head, *([self.critic] if self.critic is not self.trunk else []))
        self.parameters = [p for part in parts for p in part.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=1e-5, fused=is_fused)
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def __call__(self) -> float:
        """The sum, in seconds."""
        kept: dict[str, Any] = {}

        def keep(name: str, part: Callable[[], Any]) -> Callable[[], None]:
            return lambda: kept.update({name: part()})

        device = self.work.device
        found = {"generate": seconds_of(keep("tokens", self._generate), device)}
        tokens = kept["tokens"]
        reference = keep("old", lambda: self.reference_log_probs(tokens))
        found["reference forward"] = seconds_of(reference, device)
        score = keep("score", lambda: self._score(tokens))
        found["reward model forward"] = seconds_of(score, device)
        found["epochs"] = seconds_of(lambda: self._epochs(tokens, kept["old"]), device)
        for name, seconds in found.items():
            self.seconds[name].append(seconds)
        return sum(found.values())

    def _generate(self) -> torch.Tensor:
        mask = torch.ones_like(self.prompts)
        tokens = self.actor.generate(input_ids=self.prompts, attention_mask=mask)
        assert tokens.shape[1] == self.work.prompt + self.work.response
        return tokens

    @torch.no_grad()
    def reference_log_probs(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T) log-probabilities of the responses in (B, P+T) tokens, by one plain forward."""
        return self._log_probs(
            self.reference, self._states(self.reference.base_model, tokens), tokens
        )

    @torch.no_grad()
    def _score(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.reward_model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        return self.reward_model.score(hidden[:, -1])

    def _states(self, trunk: Any, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T, h) hidden states of the states in which the response tokens were chosen."""
        hidden = trunk(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
        return hidden[:, self.work.prompt - 1 :]

    def _log_probs(self, model: Any, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        logits = model.get_output_embeddings()(hidden).float()
        chosen = logits.gather(-1, tokens[:, self.work.prompt :, None]).squeeze(-1)
        return chosen - torch.logsumexp(logits, dim=-1)

    def _epochs(self, tokens: torch.Tensor, old: torch.Tensor) -> None:
        for _ in range(self.work.epochs):
            self.epoch(tokens, old)

    def epoch(self, tokens: torch.Tensor, old: torch.Tensor) -> None:
        """Forward, backward and a step of Adam, in micro-batches where the update has them.

        Args:
            tokens: (B, P+T).
            old: (B, T) log-probabilities of the responses when they were sampled.
        """
        self.optimizer.zero_grad()
        rows = len(tokens)
        if self.work.micro_batch_tokens is not None:
            rows = max(1, self.work.micro_batch_tokens // (tokens.shape[1] - 1))
        for part, old_part in zip(tokens.split(rows), old.split(rows), strict=True):
            with torch.autocast(
                torch.device(self.work.device).type, torch.bfloat16, self._autocasts
            ):
                loss = self._loss(part, old_part) * len(part) / len(tokens)
            loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()

    def _loss(self, tokens: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        """PPO's, with 1 for every advantage and return."""
        hidden = self._states(self.trunk, tokens)
        ratio = torch.exp(self._log_probs(self.actor, hidden, tokens) - old)
        policy = -torch.min(ratio, ratio.clamp(0.8, 1.2)).mean()
        if self.critic is not self.trunk:
            hidden = self._states(self.critic, tokens)
        return policy + 0.1 * (self.head(hidden).float() - 1).square().mean()


def _load(kind: Any, work: Workload, name: str) -> Any:
    return kind.from_pretrained(work.models / name, dtype=torch.float32).eval().to(work.device)
