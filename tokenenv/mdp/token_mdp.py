"""The batched core that both environments are a face of: prompts, transitions, rewards and infos.

`TokenEnv` is its N = 1 face and `TokenVectorEnv` the other, so the dynamics are written once.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenenv.data import Prompt
from tokenenv.episodes import EpisodeBatch
from tokenenv.maths import reference_half
from tokenenv.mdp.saved_state import load_state, state_of
from tokenenv.models import LanguageModel, ReferenceDecoder
from tokenenv.prompts import PromptBook, read_origins
from tokenenv.rewards import Episode, build_scorer
from tokenenv.settings import EnvSettings, check_kl_coef
from tokenenv.tasks import load_task

__all__ = ["StepResult", "TokenMDP"]


@dataclass(frozen=True, slots=True)
class StepResult:
    """The results of one step of some rows.

    Attributes:
        rows: (n,) int64, the rows that stepped.
        rewards: (n,) float64.
        ended: (n,) bool.
        ref_log_probs: (n,) float64, or None where scoring is deferred.
        endings: the end-of-episode info of each row that ended, in order.
    """

    rows: np.ndarray
    rewards: np.ndarray
    ended: np.ndarray
    ref_log_probs: np.ndarray | None
    endings: list[dict[str, Any]]


class TokenMDP:
    """N token MDPs side by side, without spaces, autoreset or seeding.

    Args:
        settings: the keyword arguments of the environment.
        num_envs: N.

    Attributes:
        book: the prompts, as they were given, as text and as ids.
        episodes: the states, and which of them are running.
        reference_decoder: the hidden states and distributions of the reference at them.
        token_rewards: (N, T) float64, the rewards of the tokens of running episodes.
        is_scored_by_caller: whether the caller has declared that it scores finished episodes itself
            (deferred scoring).
        is_next_scored_by_buffer: the same for the next step alone, which a buffer collects.

    Raises:
        ValueError: an invalid setting, model or prompt; the message says which and why.
    """

    def __init__(self, settings: EnvSettings, num_envs: int) -> None:
        self.task = load_task(settings.task)
        self.settings = settings.resolved(self.task)
        self.num_envs = num_envs
        self.max_prompt_tokens = self.settings.max_prompt_tokens
        self.max_new_tokens = self.settings.max_new_tokens
        self._connect()
        overrides = (settings.reference, settings.prompts, settings.max_prompt_tokens)
        self.book = PromptBook(
            read_origins(
                self.settings.prompts,
                self.task,
                self.settings.split,
                self.settings.prompt_columns,
                self.settings.skip_bad_prompts,
            ),
            self.language_model,
            self.max_prompt_tokens,
            self.settings.prompt_truncation,
            # The prompts of a task fit the limits of that task.
            encodes_all=any(setting is not None for setting in overrides),
        )
        self.scorer.check_prompts(self.book.origins)
        self._group, self._group_index, self._group_left = -1, 0, 0
        self._origins: list[Prompt | None] = [None] * num_envs
        self.episodes = EpisodeBatch(
            num_envs,
            self.max_prompt_tokens,
            self.max_new_tokens,
            self.language_model.vocabulary_size,
            self.language_model.eos_token_ids,
        )
        self.token_rewards = np.zeros((num_envs, self.max_new_tokens))
        self.is_scored_by_caller = self.is_next_scored_by_buffer = False

    def _connect(self) -> None:
        """Find the models in the process-level cache: called again after unpickling."""
        self.scorer = build_scorer(self.settings)
        self.language_model: LanguageModel = self.scorer.reference.language_model
        self.reference_decoder = ReferenceDecoder(
            self.scorer.reference, self.num_envs, self.max_prompt_tokens, self.max_new_tokens
        )

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the models and their caches, which are loaded again by name."""
        state = self.__dict__.copy()
        for name in ("language_model", "scorer", "reference_decoder", "task"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.task = load_task(self.settings.task)
        self._connect()
        self.book.language_model = self.language_model

    def fork(self) -> TokenMDP:
        """A copy in the same states, which goes on apart from this one.

        Episodes, rewards, β and the group of prompts are copied, and so are the reference's keys
        and values. Shared is what stays as it is: models, reward function, task and prompts. That a
        buffer collects the next step holds for the original alone.
        """
        twin = object.__new__(type(self))  # `copy.copy` would look the models up again
        twin.__dict__.update(self.__dict__)
        twin.episodes = copy.deepcopy(self.episodes)
        twin._origins = list(self._origins)
        twin.token_rewards = self.token_rewards.copy()
        twin.reference_decoder = self.reference_decoder.fork()
        twin.is_next_scored_by_buffer = False
        return twin

    def state_dict(self) -> dict[str, Any]:
        """Everything that steps change, as JSON values and arrays; see `saved_state`."""
        return state_of(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was called; ValueError where prompts or sizes differ."""
        load_state(self, state)

    @property
    def kl_coef(self) -> float:
        """β, as `settings` holds it."""
        return self.settings.kl_coef

    def set_kl_coef(self, kl_coef: float) -> None:
        """Change β; ValueError where it is negative."""
        self.settings = dataclasses.replace(self.settings, kl_coef=check_kl_coef(kl_coef))

    @property
    def is_deferred(self) -> bool:
        """Whether rewards are left to the trainer's buffer."""
        return self.settings.scoring == "deferred"

    # Prompts -------------------------------------------------------------------------------------

    @property
    def prompts(self) -> list[str]:
        """The texts of the split's prompts; of a conversation, what its chat template writes."""
        return self.book.texts

    @property
    def origins(self) -> list[Prompt]:
        """The same prompts as they were given, with the columns of their rows."""
        return self.book.origins

    def origin_of(self, prompt: Any) -> Prompt:
        """The `Prompt` that an episode from `prompt` starts from.

        Args:
            prompt: anything that `tokenenv.data.as_prompt` takes. A text or a conversation without
                columns that is one of `prompts` has the columns that it has there.

        Raises:
            ValueError: it is no prompt, or lacks a column that the reward asks for.
        """
        origin = self.book.origin_of(prompt)
        self.scorer.check_prompts([origin])
        return origin

    def encode_prompt(self, prompt: Any) -> np.ndarray:
        """(n,) int64 token ids of a prompt, 1 ≤ n ≤ P.

        Args:
            prompt: anything that `tokenenv.data.as_prompt` takes.

        Raises:
            ValueError: it is no prompt, is empty, or is longer than P tokens.
        """
        return self.book.encode(prompt)

    def checked_prompt(self, prompt: Any) -> Prompt | None:
        """The `Prompt` that `start` can begin an episode from; None for None.

        Raises:
            ValueError: as `origin_of` and `encode_prompt`.
        """
        if prompt is None:
            return None
        origin = self.origin_of(prompt)
        self.book.encode_text(self.book.text_of(origin))
        return origin

    def start(self, row: int, rng: np.random.Generator, prompt: Any) -> dict[str, Any]:
        """Begin an episode in `row`; give the reset's info.

        Args:
            row: which.
            rng: draws a prompt where a group begins.
            prompt: one for `origin_of`, outside of any group; None: the prompt of the group.
        """
        info: dict[str, Any] = {}
        if prompt is None:
            if self._group_left == 0:
                self._group += 1
                self._group_index = int(rng.integers(len(self.prompts)))
                self._group_left = int(self.settings.group_size)
            self._group_left -= 1
            text, origin = self.prompts[self._group_index], self.origins[self._group_index]
            if self.settings.group_size > 1:
                info["group"] = self._group
        else:
            origin = self.origin_of(prompt)
            text = self.book.text_of(origin)
        self.episodes.start(row, self.book.encode_text(text))
        self.token_rewards[row] = 0.0
        is_plain = isinstance(origin.content, str) and not origin.columns
        self._origins[row] = None if is_plain else origin
        return {"prompt": text, **({} if is_plain else {"origin": origin}), **info}

    def origin(self, row: int) -> Prompt | None:
        """The prompt of the episode in `row` as it was given; None for a text without columns."""
        return self._origins[row]

    def begin_group(self) -> None:
        """Let the next start draw a prompt, whether or not the group before it is complete."""
        self._group_left = 0

    # Steps ---------------------------------------------------------------------------------------

    def step(self, actions: np.ndarray, rows: np.ndarray) -> StepResult:
        """Let `rows` take `actions[rows]`: all of them, or none where this raises.

        Args:
            actions: (N,) token ids; entries outside `rows` are ignored.
            rows: (n,) int64.

        Raises:
            ResetNeeded: a row has no running episode.
            ValueError: an action is no token id; or an episode has ended and deferred scoring has
                no one to score it, or its reward function failed.
        """
        is_scored_later = self.is_scored_by_caller or self.is_next_scored_by_buffer
        self.is_next_scored_by_buffer = False
        before = self.episodes.observations.copy()
        ended = self.episodes.append(actions, rows)
        try:
            if self.is_deferred and not is_scored_later and ended.any():
                raise ValueError(UNSCORED)
            result = self._result(before, actions, rows, ended)
        except BaseException:  # an interruption too: the same step can be taken again
            self.episodes.take_back(rows)
            raise
        self.token_rewards[rows, self.episodes.response_lengths[rows] - 1] = result.rewards
        return result

    def _result(
        self, before: np.ndarray, actions: np.ndarray, rows: np.ndarray, ended: np.ndarray
    ) -> StepResult:
        """What is paid and told of actions that were taken in the observations `before`."""
        rewards = np.zeros(len(rows))
        ref_log_probs = None
        if not self.is_deferred:
            ref_log_probs = self._ref_log_probs(before, actions, rows)
            if self.settings.kl_shaping == "k1":
                rewards += reference_half(ref_log_probs, self.kl_coef)
        endings = self._endings(rows[ended]) if ended.any() else []
        if not self.is_deferred:
            rewards[ended] += [ending["score"] for ending in endings]
        return StepResult(rows, rewards, ended, ref_log_probs, endings)

    def _ref_log_probs(
        self, observations: np.ndarray, actions: np.ndarray, rows: np.ndarray
    ) -> np.ndarray:
        hidden = self.reference_decoder.hidden_states(observations)
        if len(rows) < self.num_envs:
            hidden = hidden[rows.tolist()]
        tokens = np.asarray(actions)[rows].astype(np.int64)  # torch indexes with no other
        return self.scorer.reference.step_log_probs(hidden, tokens)

    def _endings(self, rows: np.ndarray) -> list[dict[str, Any]]:
        responses = [self.episodes.response(row) for row in rows.tolist()]
        endings: list[dict[str, Any]] = [
            {
                "finish_reason": self.episodes.finish_reason(row),
                "response": self.language_model.decode(response),
                "response_length": len(response),
            }
            for row, response in zip(rows.tolist(), responses, strict=True)
        ]
        if self.is_deferred:
            return endings
        scores = self.scorer.score([self.episode(row) for row in rows])
        if scores.is_per_token:
            raise ValueError(
                "the reward function returned rewards per token, which exist only once a response "
                "is finished: use scoring='deferred', or return one float per response."
            )
        for i, ending in enumerate(endings):
            ending["rm_score"] = float(scores.rm_score[i])
            ending["score"] = float(scores.score[i])
            if scores.gold_reward is not None:
                ending["gold_reward"] = float(scores.gold_reward[i])
            if scores.parts:
                ending["rm_scores"] = scores.parts_of(i)
            if scores.disagreement is not None:
                ending["rm_disagreement"] = float(scores.disagreement[i])
        return endings

    def episode(self, row: int) -> Episode:
        """The episode in `row` so far."""
        return Episode(
            self.episodes.prompt(row),
            self.episodes.response(row),
            bool(self.episodes.stopped[row]),
            self._origins[row],
        )


UNSCORED = (
    "an episode has ended, and with scoring='deferred' its reward of 0 is no reward: only a "
    "rollout that EpisodeRolloutBuffer collects is scored, at its end. To evaluate, to record, or "
    "to train with anything else, make the environment with scoring='step'. If you score the "
    "episodes yourself (env.unwrapped.scorer), say so: env.unwrapped.leave_scoring_to_caller()."
)
"""Error of a deferred environment at the first finished episode without a scorer."""
