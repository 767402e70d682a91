"""The vector face of `TokenRLHF-v0`: N episodes, one forward of each model per step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from tokenenv.data import Prompt, is_messages
from tokenenv.env import token_spaces
from tokenenv.mdp import StepResult, TokenMDP, TokenMDPMixin, add_infos, check_options
from tokenenv.ranges import check_ranges, count
from tokenenv.rendering import draw_episode, render_episode
from tokenenv.settings import EnvSettings

__all__ = ["TokenVectorEnv"]


class TokenVectorEnv(TokenMDPMixin, VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """N token MDPs in one process, row by row equal to N `TokenEnv`s.

    Args:
        num_envs: N.
        autoreset_mode: Gymnasium's `AutoresetMode`, or its value: `"NextStep"`, `"SameStep"`,
            `"Disabled"`.
        max_episode_steps: nothing but a check: a limit below `max_new_tokens`, which would cut
            episodes unnoticed, is refused.
        **settings: the arguments of `TokenEnv`.

    Raises:
        ValueError: an invalid argument; the message names the allowed values.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["ansi", "rgb_array"],
        "render_fps": 4,
    }

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        **settings: Any,
    ) -> None:
        check_ranges({"num_envs": num_envs}, {"num_envs": count(high=2**20)})
        self.num_envs = num_envs
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        made = EnvSettings(**settings)
        if made.render_mode == "human":
            raise ValueError(
                "render_mode='human' shows one episode; a vector environment offers 'ansi' and "
                "'rgb_array', whose render() gives the text or the picture of every row."
            )
        self.render_mode = made.render_mode
        self.mdp = TokenMDP(made, num_envs)
        if max_episode_steps is not None and max_episode_steps < self.mdp.max_new_tokens:
            raise ValueError(
                f"max_episode_steps={max_episode_steps} is below max_new_tokens="
                f"{self.mdp.max_new_tokens}: that limit ends an episode already, so lower "
                "max_new_tokens instead."
            )
        self.single_observation_space, self.single_action_space = token_spaces(self.mdp)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rngs: list[np.random.Generator | None] = [None] * num_envs
        self._seeds: list[int] = [-1] * num_envs
        self._waiting = np.zeros(num_envs, dtype=bool)
        self._all_rows = np.arange(num_envs)

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """One generator per environment, as `SyncVectorEnv` has them."""
        return tuple(self._rng(row) for row in range(self.num_envs))

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seed of each environment's generator."""
        return tuple(self._seeds) if all(self._rngs) else tuple(-1 for _ in self._seeds)

    def _rng(self, row: int, seed: int | None = None) -> np.random.Generator:
        known = self._rngs[row]
        if known is None or seed is not None:
            known, self._seeds[row] = seeding.np_random(seed)
            self._rngs[row] = known
        return known

    def state_dict(self) -> dict[str, Any]:
        """Everything that resets and steps change, as JSON values and arrays.

        With the models, which are arguments, it is all that the episodes go on from: prompts and
        responses, the generators that draw prompts, β, and what the reference has seen of them.
        """
        return {
            "mdp": self.mdp.state_dict(),
            "generators": [rng and rng.bit_generator.state for rng in self._rngs],
            "seeds": list(self._seeds),
            "waiting": self._waiting.copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was called, in an environment of the same arguments.

        Raises:
            ValueError: the stored state is of other prompts, another reference, or other sizes.
        """
        if len(state["generators"]) != self.num_envs:
            raise ValueError(
                f"the stored state is of {len(state['generators'])} environments, and these are "
                f"{self.num_envs}: make as many."
            )
        self.mdp.load_state_dict(state["mdp"])
        self._rngs = [None if known is None else _generator(known) for known in state["generators"]]
        self._seeds, self._waiting = list(state["seeds"]), np.array(state["waiting"])

    # Resets --------------------------------------------------------------------------------------

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start episodes in all rows, or in those of `options["reset_mask"]`.

        Args:
            seed: row i gets `seed + i`, or `seed[i]`.
            options: `"prompt"`, one prompt for all rows (a text, a list of messages, or an object
                with columns, as `TokenEnv` takes them) or a list with one for each;
                `"reset_mask"`, (N,) bool.

        Raises:
            ValueError: a prompt is empty or too long, an option is unknown or has another shape, or
                a seed is none; no row is reset then.
        """
        options = check_options(options, ("prompt", "reset_mask"))
        seeds = self._row_seeds(seed)
        rows = self._masked_rows(options.get("reset_mask"))
        prompts = self._row_prompts(options.get("prompt"))
        if options.get("prompt") is not None:
            for row in rows.tolist():
                prompts[row] = self.mdp.checked_prompt(prompts[row])
        if len(rows) == self.num_envs:
            self.mdp.reference_decoder.refill()
        infos: dict[str, Any] = {}
        if any(seeds[row] is not None for row in rows.tolist()):
            self.mdp.begin_group()
        started = [
            self.mdp.start(row, self._rng(row, seeds[row]), prompts[row]) for row in rows.tolist()
        ]
        add_infos(infos, rows.tolist(), started, self.num_envs)
        self._waiting[rows] = False
        return self._observations(), infos

    def _row_seeds(self, seed: Any) -> list[int | None]:
        """A seed for each row, or ValueError."""
        is_one = seed is None or isinstance(seed, int | np.integer)
        is_list = isinstance(seed, Sequence | np.ndarray) and not isinstance(seed, str | bytes)
        if not is_one and not is_list:
            raise ValueError(
                f"reset(seed={seed!r:.60}) must be a whole number, None, or a list of "
                f"{self.num_envs} of these, one per environment."
            )
        if not is_one and len(seed) != self.num_envs:
            raise ValueError(f"{len(seed)} seeds were given for {self.num_envs} environments.")
        for given in [seed] if is_one else list(seed):
            is_whole = isinstance(given, int | np.integer) and given >= 0
            if given is not None and not is_whole:
                raise ValueError(
                    f"reset(seed={seed!r:.60}): {given!r:.60} is no seed; allowed are None and "
                    "whole numbers of at least 0."
                )
        if is_one:
            return [None if seed is None else int(seed) + row for row in range(self.num_envs)]
        return [None if given is None else int(given) for given in seed]

    def _masked_rows(self, mask: Any) -> np.ndarray:
        if mask is None:
            return self._all_rows
        is_mask = isinstance(mask, np.ndarray) and mask.dtype == np.bool_
        if not is_mask or mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(
                f"options['reset_mask'] must be a bool array of shape ({self.num_envs},) with at "
                f"least one true entry, got {mask!r}."
            )
        return np.flatnonzero(mask)

    def _row_prompts(self, prompt: Any) -> list[Any]:
        is_one = prompt is None or isinstance(prompt, str | Mapping | Prompt)
        if is_one or is_messages(prompt):
            return [prompt] * self.num_envs
        if not isinstance(prompt, list | tuple) or len(prompt) != self.num_envs:
            raise ValueError(
                f"options['prompt'] must be one prompt, or a list of {self.num_envs} (one per "
                f"environment), got {prompt!r:.200}."
            )
        return list(prompt)

    # Steps ---------------------------------------------------------------------------------------

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Append one token in every row; rows that ended are treated as the autoreset mode says.

        Raises:
            gymnasium.error.ResetNeeded: a row has no running episode.
            ValueError: an action is no token id.
        """
        waiting = np.flatnonzero(self._waiting)
        stepping = self._all_rows
        if len(waiting):
            if self.autoreset_mode is AutoresetMode.DISABLED:
                raise ResetNeeded(
                    f"environment {waiting[0]} has ended its episode: call reset(options="
                    "{'reset_mask': mask}) first, or choose another autoreset_mode."
                )
            stepping = np.flatnonzero(~self._waiting)
        result = self.mdp.step(np.asarray(actions), stepping)
        rewards = np.zeros(self.num_envs)
        terminations = np.zeros(self.num_envs, dtype=bool)
        rewards[stepping] = result.rewards
        terminations[stepping] = result.ended
        infos = self._step_infos(result)
        self._waiting = terminations.copy()
        starting = waiting.tolist()  # NEXT_STEP: this step was the reset of these rows
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            starting = stepping[result.ended].tolist()
            self._waiting[:] = False
        started = [self.mdp.start(row, self._rng(row), None) for row in starting]
        add_infos(infos, starting, started, self.num_envs)
        truncations = np.zeros(self.num_envs, dtype=bool)
        return self._observations(), rewards, terminations, truncations, infos

    def _step_infos(self, result: StepResult) -> dict[str, Any]:
        """Gymnasium's vector infos, an array and a mask per key; ends nested where rows reset."""
        same_step = self.autoreset_mode is AutoresetMode.SAME_STEP
        infos: dict[str, Any] = {}
        last_steps: list[dict[str, Any]] = [{} for _ in result.endings]
        ended = result.rows[result.ended].tolist()
        if result.ref_log_probs is not None:
            going = ~result.ended if same_step else np.ones(len(result.rows), dtype=bool)
            if going.any():
                rows = result.rows[going]
                self._set_info(infos, "ref_logprob", rows, result.ref_log_probs[going])
                self._set_info(infos, "kl_coef", rows, self.kl_coef)
            last_steps = [
                {"ref_logprob": float(log_prob), "kl_coef": self.kl_coef}
                for log_prob in result.ref_log_probs[result.ended]
            ]
        endings = [{**step, **end} for step, end in zip(last_steps, result.endings, strict=True)]
        if same_step:
            observations = self.mdp.episodes.observations[ended]
            endings = [
                {"final_obs": observation, "final_info": info}
                for observation, info in zip(observations, endings, strict=True)
            ]
        add_infos(infos, ended, endings, self.num_envs)
        return infos

    def _set_info(self, infos: dict[str, Any], key: str, rows: np.ndarray, values: Any) -> None:
        array, mask = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=bool)
        array[rows], mask[rows] = values, True
        infos[key], infos[f"_{key}"] = array, mask

    def _observations(self) -> np.ndarray:
        return self.mdp.episodes.observations.copy()

    def render(self) -> tuple[str, ...] | tuple[np.ndarray, ...] | None:
        """Every row's episode, as text or as a picture, as `render_mode` says."""
        rows = range(self.num_envs)
        if self.render_mode == "rgb_array":
            return tuple(draw_episode(self.mdp, row) for row in rows)
        return (
            None if self.render_mode is None else tuple(render_episode(self.mdp, r) for r in rows)
        )


def _generator(state: Mapping[str, Any]) -> np.random.Generator:
    """A generator as Gymnasium seeds them, in a state of another."""
    rng, _ = seeding.np_random(0)
    rng.bit_generator.state = dict(state)
    return rng


def _autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError:
        allowed = ", ".join(repr(m.value) for m in AutoresetMode)
        raise ValueError(f"autoreset_mode={mode!r} is unknown: choose one of {allowed}.") from None
