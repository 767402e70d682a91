"""The token MDP as its documentation tells it, in lists and plain forwards: what has to come out.

Written apart from the library: no numpy state, no cache, no masks. A state is a tuple of token ids,
and what the reference says of it comes from one forward of the whole sequence.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium.utils import seeding
from support.tiny_task import EOS
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tokenenv.data import Prompt

__all__ = ["ExpectedBatch", "Row", "Truth", "World", "break_rewards", "pay"]

REWARD_MEAN, REWARD_STD = 0.4, 1.7  # as `save_reward_model` writes them


@dataclass(frozen=True, eq=False)
class World:
    """The arguments of an environment that a sequence of calls runs in.

    Attributes:
        has_bos: whether the reference's tokenizer is `word_tokenizer`, which puts BOS = 1 in front
            of a prompt and has one EOS and `<unk>` = 3; else it is the one of the tiny task.
    """

    has_bos: bool
    reference: str
    reward_model: str | None
    prompts: tuple[Any, ...]
    max_prompt_tokens: int
    max_new_tokens: int
    kl_coef: float
    kl_shaping: str
    scoring: str
    group_size: int
    temperature: float
    missing_eos_penalty: float
    score_clip: float | None

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of `TokenEnv`."""
        arguments = {name: value for name, value in self.__dict__.items() if name != "has_bos"}
        return {
            **arguments,
            "reward_model": pay if self.reward_model is None else self.reward_model,
            "prompts": list(self.prompts),
            "dtype": "float64",
            "device": "cpu",
        }

    @property
    def eos(self) -> tuple[int, ...]:
        """The token ids that end a response."""
        return (2,) if self.has_bos else tuple(EOS)

    def ids_of(self, text: str) -> tuple[int, ...]:
        """The token ids of a prompt."""
        return (*[1] * self.has_bos, *(int(word[1:]) for word in text.split()))

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out; where pad is EOS, `<pad>` is none."""
        words = {0: "<pad>"} if self.has_bos else {}
        words.update({i: f"w{i}" for i in ids if i > 2 + self.has_bos})
        return " ".join(words[i] for i in ids if i in words)

    @property
    def is_deferred(self) -> bool:
        return self.scoring == "deferred"


_failing = [False]


@contextlib.contextmanager
def break_rewards() -> Iterator[None]:
    """Let `pay` raise, as a reward from elsewhere may at any time."""
    _failing[0] = True
    try:
        yield
    finally:
        _failing[0] = False


def pay(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward function: a number that any other prompt or response would change."""
    if _failing[0]:
        raise ConnectionError("the judge does not answer")
    return [_payment(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def _payment(prompt: str, response: str) -> float:
    total = 0.0
    for place, word in enumerate([*prompt.split(), "|", *response.split()], 1):
        total += place * sum(map(ord, word))
    return total % 7.0 - 3.0


class Truth:
    """What the models of a world say of sequences: by plain forwards, each of them done once."""

    _models: dict[tuple[str, bool], Any] = {}  # noqa: RUF012
    _logits: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}  # noqa: RUF012

    def __init__(self, world: World) -> None:
        self.world = world

    @classmethod
    def _model(cls, folder: str, is_reward: bool) -> Any:
        if (folder, is_reward) not in cls._models:
            kind = AutoModelForSequenceClassification if is_reward else AutoModelForCausalLM
            cls._models[folder, is_reward] = kind.from_pretrained(folder).double().eval()
        return cls._models[folder, is_reward]

    def _forward(self, folder: str, ids: tuple[int, ...], is_reward: bool) -> np.ndarray:
        if (folder, ids) not in self._logits:
            with torch.no_grad():
                logits = self._model(folder, is_reward)(torch.tensor([ids])).logits[0]
            self._logits[folder, ids] = (logits if is_reward else logits[-1]).numpy()
        return self._logits[folder, ids]

    def ref_log_prob(self, state: tuple[int, ...], action: int) -> float:
        """Log π_ref(a | s)."""
        logits = self._forward(self.world.reference, state, False) / self.world.temperature
        return float(logits[action] - np.logaddexp.reduce(logits))

    def scores(self, prompt: tuple[int, ...], response: list[int]) -> tuple[float, float]:
        """The raw reward of a finished response, and its score R(x, y)."""
        if self.world.reward_model is None:
            raw = score = _payment(self.world.text_of(prompt), self.world.text_of(response))
        else:
            ids = (*prompt, *response)
            raw = float(self._forward(self.world.reward_model, ids, True)[0])
            score = (raw - REWARD_MEAN) / REWARD_STD
        if self.world.score_clip is not None:
            score = max(-self.world.score_clip, min(self.world.score_clip, score))
        return raw, score - self.world.missing_eos_penalty * (response[-1] not in self.world.eos)


@dataclass
class Row:
    """One episode: `origin` is what the prompt was given as, where that is more than a text."""

    prompt: tuple[int, ...] = ()
    response: list[int] = field(default_factory=list)
    origin: Prompt | None = None
    is_running: bool = False
    is_waiting: bool = False
    paid: list[float] = field(default_factory=list)

    @property
    def state(self) -> tuple[int, ...]:
        return (*self.prompt, *self.response)

    def observation(self, p: int, t: int) -> list[int]:
        """Prompt to the right of P columns, response to the left of T, −1 everywhere else."""
        left, right = p - len(self.prompt), t - len(self.response)
        return [-1] * (left if self.prompt else p) + [*self.state] + [-1] * right


@dataclass
class ExpectedBatch:
    """N episodes and what an environment has to answer about them.

    Attributes:
        finished: (prompt, response, rewards as paid) of all episodes that have ended.
    """

    world: World
    mode: str
    rows: list[Row]
    kl_coef: float
    generators: list[np.random.Generator | None]
    group: int = -1
    group_prompt: int = 0
    group_left: int = 0
    finished: list[tuple[Row, list[float]]] = field(default_factory=list)

    @classmethod
    def new(cls, world: World, mode: str, n: int) -> ExpectedBatch:
        return cls(world, mode, [Row() for _ in range(n)], world.kl_coef, [None] * n)

    def fork(self) -> ExpectedBatch:
        shared = {id(self.world): self.world}
        shared.update((id(row.origin), row.origin) for row in self.rows if row.origin is not None)
        return copy.deepcopy(self, shared)

    def observations(self) -> list[list[int]]:
        p, t = self.world.max_prompt_tokens, self.world.max_new_tokens
        return [row.observation(p, t) for row in self.rows]

    # Resets --------------------------------------------------------------------------------------

    def reset(
        self, mask: list[bool], seeds: list[int | None], prompts: list[Any]
    ) -> list[dict[str, Any]]:
        """The infos of a reset of the rows in `mask`, an empty one for each other row."""
        n = len(self.rows)
        if any(seeds[i] is not None for i in range(n) if mask[i]):
            self.group_left = 0
        return [self._start(i, seeds[i], prompts[i]) if mask[i] else {} for i in range(n)]

    def _start(self, index: int, seed: int | None = None, prompt: Any = None) -> dict[str, Any]:
        if seed is not None:
            self.generators[index] = seeding.np_random(seed)[0]
        info: dict[str, Any] = {}
        if prompt is None:
            if self.group_left == 0:
                self.group += 1
                self.group_left = self.world.group_size
                self.group_prompt = int(
                    self.generators[index].integers(len(self.world.prompts))  # type: ignore[union-attr]
                )
            self.group_left -= 1
            prompt = self.world.prompts[self.group_prompt]
            if self.world.group_size > 1:
                info["group"] = self.group
        text, columns = prompt, {}
        if isinstance(prompt, dict):
            columns = {key: value for key, value in prompt.items() if key != "prompt"}
            text = prompt["prompt"]
        for row in self.world.prompts:  # a text that is one of the prompts has its columns
            if isinstance(row, dict) and row["prompt"] == text and not columns:
                columns = {key: value for key, value in row.items() if key != "prompt"}
        origin = Prompt(text, columns) if columns else None
        self.rows[index] = Row(self.world.ids_of(text), [], origin, True)
        return {"prompt": text, **({"origin": origin} if origin else {}), **info}

    # Steps ---------------------------------------------------------------------------------------

    def step(self, actions: list[int]) -> tuple[list[float], list[bool], list[dict[str, Any]]]:
        """Rewards, ends and infos of a step that is valid."""
        n = len(self.rows)
        rewards, ended, infos = [0.0] * n, [False] * n, [{} for _ in range(n)]
        starting = [i for i in range(n) if self.rows[i].is_waiting]
        for i in (i for i in range(n) if i not in starting):
            rewards[i], ended[i], infos[i] = self._append(i, actions[i])
        if self.mode == "SameStep":
            starting = [i for i in range(n) if ended[i]]
            for i in starting:
                infos[i] = {"final_obs": self.observations()[i], "final_info": infos[i]}
        else:
            for i in range(n):
                self.rows[i].is_waiting = ended[i]
        for i in starting:
            infos[i] = {**infos[i], **self._start(i)}
        return rewards, ended, infos

    def _append(self, index: int, action: int) -> tuple[float, bool, dict[str, Any]]:
        row, world, truth = self.rows[index], self.world, Truth(self.world)
        info: dict[str, Any] = {}
        reward, state = 0.0, row.state
        row.response.append(action)
        is_end = action in world.eos or len(row.response) == world.max_new_tokens
        if not world.is_deferred:
            log_prob = truth.ref_log_prob(state, action)
            info = {"ref_logprob": log_prob, "kl_coef": self.kl_coef}
            reward = self.kl_coef * log_prob if world.kl_shaping == "k1" else 0.0
        if is_end:
            row.is_running = False
            info["finish_reason"] = "stop" if action in world.eos else "length"
            info["response"] = world.text_of(row.response)
            info["response_length"] = len(row.response)
            if not world.is_deferred:
                info["rm_score"], info["score"] = truth.scores(row.prompt, row.response)
                reward += info["score"]
        row.paid.append(reward)
        if is_end:
            self.finished.append((row, list(row.paid)))
        return reward, is_end, info
