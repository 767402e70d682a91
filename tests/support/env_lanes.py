"""An environment beside what it has to do, and beside its rows as single environments."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from support.expected_mdp import ExpectedBatch, Truth, World
from support.hostile import is_an_answer

from tokenenv.env import TokenEnv
from tokenenv.models import ReferenceDecoder
from tokenenv.vector_env import TokenVectorEnv
from tokenenv.wrappers import fork

__all__ = ["Lane", "rows_of_infos", "snapshot"]

TOLERANCE = 1e-6  # everything is computed in float64


class RememberedReference:
    """The reference's hidden states from plain forwards, each of which is done once.

    It stands where `ReferenceDecoder` does, so that thousands of sequences cost no forwards; a
    smaller number of them runs with the decoder itself.
    """

    _hidden: dict[tuple[int, tuple[int, ...]], torch.Tensor] = {}  # noqa: RUF012

    def __init__(self, decoder: ReferenceDecoder) -> None:
        self.reference = decoder.reference

    @torch.no_grad()
    def hidden_states(self, observations: np.ndarray) -> torch.Tensor:
        return torch.stack([self._of(tuple(row[row >= 0].tolist())) for row in observations])

    def _of(self, ids: tuple[int, ...]) -> torch.Tensor:
        model = self.reference.language_model.model
        key = (id(model), ids)
        if key not in self._hidden:
            trunk = model.base_model(input_ids=torch.tensor([ids or (0,)]))
            self._hidden[key] = trunk.last_hidden_state[0, -1]
        return self._hidden[key]

    def refill(self) -> None:
        """Nothing is kept that a reset would change."""

    def fork(self) -> RememberedReference:
        return self


def snapshot(env: TokenEnv | TokenVectorEnv) -> dict[str, Any]:
    """All that an environment's future depends on, but for what its reference remembers."""
    mdp, generators = env.mdp, env.np_random
    if isinstance(generators, np.random.Generator):
        generators = (generators,)
    return {
        **{name: np.copy(value).tolist() for name, value in vars(mdp.episodes).items()},
        "token_rewards": mdp.token_rewards.tolist(),
        "group": (mdp._group, mdp._group_index, mdp._group_left),
        "origins": list(mdp._origins),
        "kl_coef": mdp.kl_coef,
        "scored": (mdp.is_scored_by_caller, mdp.is_next_scored_by_buffer),
        "generators": [generator.bit_generator.state for generator in generators],
        "seeds": env.np_random_seed,
        "waiting": getattr(env, "_waiting", np.zeros(1)).tolist(),
    }


def _prepared(env: Any, is_remembered: bool) -> Any:
    env.leave_scoring_to_caller()
    if is_remembered:
        env.mdp.reference_decoder = RememberedReference(env.mdp.reference_decoder)
    return env


@functools.cache
def _single(world: World, is_remembered: bool) -> TokenEnv:
    return _prepared(TokenEnv(**world.settings), is_remembered)


def rows_of_infos(infos: dict[str, Any], n: int) -> list[dict[str, Any]]:
    """Gymnasium's vector infos taken apart: what has a mask, and nothing where it is false."""
    rows: list[dict[str, Any]] = [{} for _ in range(n)]
    names = [name for name in infos if not name.startswith("_")]
    assert {f"_{name}" for name in names} == {name for name in infos if name.startswith("_")}
    for name in names:
        mask, values = infos[f"_{name}"], infos[name]
        assert mask.dtype == np.bool_ and mask.shape == (n,) and mask.any()
        nested = rows_of_infos(values, n) if isinstance(values, dict) else None
        for i in range(n):
            value = values[i] if nested is None else nested[i]
            if mask[i]:
                rows[i][name] = value.tolist() if isinstance(value, np.ndarray) else value
            else:
                assert value is None or value == {} or value == 0, (name, i, value)
    return rows


def assert_infos(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    """The same keys in every row; floats to `TOLERANCE`, everything else exactly."""
    for row, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.keys() == other.keys(), (row, one, other)
        for name, value in other.items():
            if isinstance(value, dict):
                assert_infos([one[name]], [value])
            elif isinstance(value, float):
                assert abs(one[name] - value) <= TOLERANCE, (row, name, one[name], value)
            else:
                assert one[name] == value, (row, name, one[name], value)


def are_close(found: Sequence[float], expected: Sequence[float]) -> bool:
    """Whether all numbers agree to `TOLERANCE`."""
    return all(abs(a - b) <= TOLERANCE for a, b in zip(found, expected, strict=True))


def bits(value: Any) -> Any:
    """What a call gave as Python's numbers, which compare to the bit."""
    if isinstance(value, dict):
        return {key: bits(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [bits(part) for part in value]
    return (str(value.dtype), bits(value.tolist())) if isinstance(value, np.ndarray) else value


class Lane:
    """A vector environment, what it has to do, and its rows as single environments.

    Args:
        env: which.
        singles: an environment for each row; none where rows share a group of prompts.
        expected: what comes out.
    """

    def __init__(
        self, env: TokenVectorEnv, singles: list[TokenEnv], expected: ExpectedBatch
    ) -> None:
        self.env, self.singles, self.expected = env, singles, expected
        n = len(expected.rows)
        self.paid: list[list[float]] = [[] for _ in range(n)]
        self.betas: list[list[float]] = [[] for _ in range(n)]

    @classmethod
    def new(
        cls, world: World, mode: str, n: int, is_remembered: bool, is_alone: bool = False
    ) -> Lane:
        """Environments that nobody has reset; without single ones where the batch is alone."""
        env = TokenVectorEnv(n, autoreset_mode=mode, **world.settings)
        is_apart = not is_alone and (world.group_size == 1 or n == 1)
        single = _single(world, is_remembered)
        return cls(
            _prepared(env, is_remembered),
            [single.fork() for _ in range(n * is_apart)],
            ExpectedBatch.new(world, mode, n),
        )

    @property
    def envs(self) -> tuple[Any, ...]:
        return (self.env, *self.singles)

    def fork(self) -> Lane:
        twin = Lane(fork(self.env), [fork(s) for s in self.singles], self.expected.fork())
        twin.paid, twin.betas = copy.deepcopy((self.paid, self.betas))
        return twin

    def repickle(self) -> None:
        """Go on with what `pickle` makes of the environments."""
        self.env, *self.singles = (pickle.loads(pickle.dumps(one)) for one in self.envs)

    # Calls ---------------------------------------------------------------------------------------

    def reset(
        self,
        mask: list[bool] | None = None,
        seed: int | list[int | None] | None = None,
        prompt: Any = None,
    ) -> None:
        """Reset the rows in `mask`, and compare what comes."""
        n = len(self.expected.rows)
        options: dict[str, Any] = {} if prompt is None else {"prompt": prompt}
        if mask is not None:
            options["reset_mask"] = np.array(mask)
        observations, infos = self.env.reset(seed=seed, options=options or None)
        rows = [True] * n if mask is None else mask
        seeds = seed if isinstance(seed, list) else [seed] * n
        if isinstance(seed, int):
            seeds = [seed + i for i in range(n)]
        prompts = prompt if isinstance(prompt, list) else [prompt] * n
        expected = self.expected.reset(rows, seeds, prompts)
        assert observations.tolist() == self.expected.observations()
        assert_infos(rows_of_infos(infos, n), expected)
        for i in np.flatnonzero(rows).tolist():
            self.paid[i], self.betas[i] = [], []
            if self.singles:
                options = None if prompts[i] is None else {"prompt": prompts[i]}
                observation, info = self.singles[i].reset(seed=seeds[i], options=options)
                assert observation.tolist() == self.expected.observations()[i]
                assert_infos([info], [expected[i]])

    def step(self, actions: list[int]) -> None:
        """Take valid actions, and compare what comes."""
        n = len(self.expected.rows)
        stepping = [i for i in range(n) if not self.expected.rows[i].is_waiting]
        beta = self.expected.kl_coef
        before = len(self.expected.finished)
        observations, rewards, ends, truncations, infos = self.env.step(np.array(actions))
        paid, ended, expected = self.expected.step(actions)
        assert observations.tolist() == self.expected.observations()
        assert observations.dtype == np.int64 and rewards.dtype == np.float64
        assert are_close(rewards.tolist(), paid)
        assert ends.tolist() == ended and not truncations.any()
        assert ends.dtype == truncations.dtype == np.bool_
        assert_infos(rows_of_infos(infos, n), expected)
        for i in stepping:
            self.paid[i].append(float(rewards[i]))
            self.betas[i].append(beta)
        for (row, _), i in zip(self.expected.finished[before:], np.flatnonzero(ends), strict=True):
            self._check_sum(row, i)
        self._step_singles(actions, stepping, ended, paid, expected)

    def _check_sum(self, row: Any, index: int) -> None:
        """What an episode was paid in all: the score and the reference's half of the KL."""
        world, truth = self.expected.world, Truth(self.expected.world)
        total = 0.0
        if not world.is_deferred:
            total = truth.scores(row.prompt, row.response)[1]
        if not world.is_deferred and world.kl_shaping == "k1":
            for t, (beta, token) in enumerate(zip(self.betas[index], row.response, strict=True)):
                total += beta * truth.ref_log_prob((*row.prompt, *row.response[:t]), token)
        assert abs(sum(self.paid[index]) - total) <= TOLERANCE * len(row.response)
        self.paid[index], self.betas[index] = [], []

    def _step_singles(
        self,
        actions: list[int],
        stepping: list[int],
        ended: list[bool],
        paid: list[float],
        expected: list[dict[str, Any]],
    ) -> None:
        observations = self.expected.observations()
        for i, single in enumerate(self.singles):
            info = expected[i]
            if i not in stepping:  # the vector's step was its reset
                observation, found = single.reset()
                assert observation.tolist() == observations[i]
                assert_infos([found], [info])
                continue
            observation, reward, is_end, is_cut, found = single.step(actions[i])
            assert (is_end, is_cut) == (ended[i], False) and abs(reward - paid[i]) <= TOLERANCE
            if "final_obs" in info:
                assert observation.tolist() == info["final_obs"]
                assert_infos([found], [info["final_info"]])
                observation, found = single.reset()
                started = set(info) - {"final_obs", "final_info"}
                info = {name: info[name] for name in started}
            assert observation.tolist() == observations[i]
            assert_infos([found], [info])

    def refuses(self, call: Callable[[Any], Any], only: Sequence[Any] | None = None) -> None:
        """A wrong call raises an error with a sentence, and changes nothing.

        Args:
            call: given one of the environments.
            only: which environments are called; None: all of them.
        """
        for env in self.envs if only is None else only:
            before = snapshot(env)
            try:
                call(env)
            except Exception as error:
                assert is_an_answer(error), repr(error)
            else:
                raise AssertionError("it was accepted")
            assert snapshot(env) == before, "the refused call has changed the state"

    def check(self) -> None:
        """The state is the expected one, in every environment."""
        rows, observations = self.expected.rows, self.expected.observations()
        places = [(self.env, slice(None))]
        places += [(single, slice(i, i + 1)) for i, single in enumerate(self.singles)]
        nothing = [-1] * len(observations[0])
        for env, place in places:
            episodes, expected, seen = env.mdp.episodes, rows[place], observations[place]
            running = [row.is_running for row in expected]
            assert episodes.observations.tolist() == seen
            assert episodes.running.tolist() == running
            assert episodes.prompt_lengths.tolist() == [len(row.prompt) for row in expected]
            assert episodes.response_lengths.tolist() == [len(row.response) for row in expected]
            assert env.is_at(np.array(seen)).tolist() == running
            states = [o if is_on else nothing for o, is_on in zip(seen, running, strict=True)]
            assert env.states.tolist() == states
            assert env.kl_coef == self.expected.kl_coef
            for found, row in zip(env.mdp.token_rewards.tolist(), expected, strict=True):
                assert are_close(found[: len(row.paid)], row.paid)
