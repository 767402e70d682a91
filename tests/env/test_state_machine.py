"""Any sequence of steps, resets, forks and wrong calls, in all modes: what has to come out does.

Hypothesis draws the sequences and makes a failing one short. Everything that a call gives is
compared with `ExpectedBatch`, which knows the documentation and no line of the library, and with
single environments that get the same seeds and actions.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections import defaultdict
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from support.env_lanes import Lane, bits
from support.expected_mdp import Truth, World, break_rewards
from support.models import save_language_model
from support.tiny_task import V, save_actor, save_reward_model

from tokenenv.rewards import Episode
from tokenenv.wrappers import fork

MODES = ["NextStep", "SameStep", "Disabled"]
PROMPTS: list[tuple[Any, ...]] = [
    ("w4",),
    ("w4", "w6 w7", "w8 w10 w12"),
    ("w4 w6", {"prompt": "w7", "answer": "w8"}, {"prompt": "w8 w4", "answer": "x"}, "w39 w38"),
]
NEW_PROMPTS = ["w4", "w13 w14", "w7", {"prompt": "w6", "answer": 3}, {"prompt": "w9 w9"}]
"""Of `options`: some are prompts of the environment, with columns there, and some are not."""


@functools.cache
def worlds(folder: Any, is_remembered: bool) -> list[World]:
    """Two dozen settings, every value of each of them among them.

    A learned reward is a forward at every end: in most of the sequences it is one that is deferred.
    """
    rng = random.Random(0)
    tiny = save_actor(folder / "llama", "llama")
    with_bos = save_language_model(folder / "with-bos", "gpt2", seed=3, pad_token="<eos>")
    reward_model = save_reward_model(folder / "reward_model")
    made = []
    for scoring, shaping, has_bos, group_size in itertools.product(
        ("step", "deferred"), ("k1", "none"), (False, True), (1, 1, 3)
    ):
        made.append(
            World(
                has_bos,
                with_bos if has_bos else tiny,
                None if has_bos or (is_remembered and scoring == "step") else reward_model,
                rng.choice(PROMPTS),
                rng.randint(3 + has_bos, 5),
                rng.randint(1, 4),
                rng.choice([0.0, 0.3, 1.0]),
                shaping,
                scoring,
                group_size,
                rng.choice([0.5, 1.0, 2.0]),
                rng.choice([0.0, 0.5]),
                rng.choice([None, 0.8]),
            )
        )
    return made


TOKENS = st.sampled_from([4, 2, 7, 0])  # few, so that states come again
ACTIONS = st.tuples(TOKENS, TOKENS, TOKENS)
SEEDS = st.sampled_from([None, None, 7, 2**31, [1, None, 3], [None, None, 5], "list"])
MASKS = st.sampled_from([m for m in itertools.product((True, False), repeat=3) if any(m)])
GIVEN_PROMPTS = st.sampled_from([None, None, *NEW_PROMPTS, "list", "some"])

WRONG_ACTIONS: list[Any] = [
    *(-1, V, 10**9, -(2**63), 1.0, np.nan, True, "w4", None, np.uint64(2**63 + 5), 1j, b"1"),
]
WRONG_SHAPES: list[Any] = [0, [], [[0]], [0] * 4, [[0], [0], [0]], None, "x", {}]
LONG = " ".join(["w4"] * 9)
WRONG_RESETS: list[dict[str, Any]] = [
    *({"options": {"prompt": prompt}} for prompt in ("", " ", LONG, 1, b"w4", {"prompt": 1}, [])),
    *({"options": {"prompt": p}} for p in ({"a": 1}, [{"role": "user"}], "w4 \ud800", ["w4"] * 7)),
    *({"options": options} for options in ([], "prompt", 1, {"promt": "w4"}, {1: 2})),
    *({"seed": seed} for seed in (-1, 1.5, "x", {}, b"1", 1j, [1] * 7, float("nan"))),
]
LAST: list[tuple[str, Any]] = [
    *(("prompt", value) for value in ("", LONG, 1, {"prompt": LONG}, {"prompt": None})),
    *(("seed", value) for value in (-1, 1.5, "x", float("nan"))),
]
"""What stands last in a list whose other entries are right."""
WRONG_MASKS: list[Any] = [1, True, "x", [True], np.ones(9, bool), np.ones(3), np.zeros(1, bool)]


class EnvironmentMachine(RuleBasedStateMachine):
    """Calls of up to three environments that are forks of each other."""

    worlds: ClassVar[list[World]] = []
    is_remembered = True
    scored: ClassVar[defaultdict[World, set[Any]]] = defaultdict(set)
    examples = steps = 0

    @initialize(
        world=st.integers(0, 23),
        mode=st.sampled_from(MODES),
        n=st.sampled_from([2, 1, 3]),
        seed=st.integers(0, 9),
        is_late=st.booleans(),
        is_alone=st.booleans(),
    )
    def begin(
        self, world: int, mode: str, n: int, seed: int, is_late: bool, is_alone: bool
    ) -> None:
        type(self).examples += 1
        self.n, self.world = n, self.worlds[world]
        pristine = _pristine(self.world, mode, n, self.is_remembered, is_alone)
        self.lane = pristine.fork()
        self.lanes = [self.lane]
        if is_late:  # without a reset, or with that of a row alone, there is nothing to step
            self._refuse_steps()
            mask = [i == n - 1 for i in range(n)]
            self.lane.reset(mask, [seed] * n)
            if n > 1:
                self._refuse_steps()
        self.lane.reset(None, seed)

    def _refuse_steps(self) -> None:
        self.lane.refuses(lambda env: env.step(np.full(self.n, 4)), [self.lane.env])
        single = [s for s, row in zip(self.lane.singles, self.lane.expected.rows, strict=False)
                  if not row.is_running]  # fmt: skip
        self.lane.refuses(lambda env: env.step(4), single)

    # What is right -------------------------------------------------------------------------------

    @rule(actions=ACTIONS, again=ACTIONS)
    def step(self, actions: tuple[int, ...], again: tuple[int, ...]) -> None:
        for chosen in (actions, again):
            self._step(list(chosen[: self.n]))

    @rule(actions=ACTIONS, again=ACTIONS)
    def step_on(self, actions: tuple[int, ...], again: tuple[int, ...]) -> None:
        """The same, twice as often as anything else."""
        self.step(actions, again)

    def _step(self, actions: list[int]) -> None:
        type(self).steps += 1
        waiting = [row.is_waiting for row in self.lane.expected.rows]
        if any(waiting) and self.lane.expected.mode == "Disabled":
            self._refuse_steps()
            self.lane.reset(waiting)
        elif any(waiting):  # their actions are ignored, whatever they are
            actions = [
                V + 3 if row.is_waiting else action
                for row, action in zip(self.lane.expected.rows, actions, strict=True)
            ]
        self.lane.step(actions)

    @rule(mask=MASKS, seed=SEEDS, prompt=GIVEN_PROMPTS, is_whole=st.booleans())
    def reset(self, mask: tuple[bool, ...], seed: Any, prompt: Any, is_whole: bool) -> None:
        rows = list(mask[: self.n])
        if isinstance(seed, list):
            seed = seed[: self.n]
        elif seed == "list":
            seed = [11 + i for i in range(self.n)]
        if prompt == "list":
            prompt = NEW_PROMPTS[: self.n]
        elif prompt == "some":
            prompt = ["w4", None, "w6"][: self.n]
        self.lane.reset(None if is_whole or not any(rows) else rows, seed, prompt)

    @rule(beta=st.sampled_from([0.0, 0.25, 2.0]))
    def set_beta(self, beta: float) -> None:
        for env in self.lane.envs:
            env.set_kl_coef(beta)
        self.lane.expected.kl_coef = beta

    @rule()
    def begin_group(self) -> None:
        for env in self.lane.envs:
            env.begin_group()
        self.lane.expected.group_left = 0

    @rule(goes_on=st.booleans())
    def fork(self, goes_on: bool) -> None:
        """Two go on from here, each by what is called of it from now on."""
        if len(self.lanes) == 3:
            self.lanes.remove(self.lane)
            self.lane = self.lanes[0]
        self.lanes.append(self.lane.fork())
        if goes_on:
            self.lane = self.lanes[-1]

    @rule(number=st.integers(0, 2))
    def switch(self, number: int) -> None:
        self.lane = self.lanes[number % len(self.lanes)]

    @rule(actions=ACTIONS)
    def look_ahead(self, actions: tuple[int, ...]) -> None:
        """Two forks that are treated alike give the same to the bit; the original stays."""
        env = self.lane.env
        if self.lane.expected.mode == "Disabled" and not env.mdp.episodes.running.all():
            return
        twin, other = env.fork(), fork(env)
        chosen = np.array(actions[: self.n])
        assert bits(twin.step(chosen)) == bits(other.step(chosen))
        assert bits(twin.reset()) == bits(other.reset())
        assert bits(twin.step(chosen)) == bits(other.step(chosen))

    # What is wrong -------------------------------------------------------------------------------

    @rule(value=st.sampled_from(WRONG_ACTIONS), row=st.integers(0, 2))
    def step_with_a_wrong_action(self, value: Any, row: int) -> None:
        stepping = [i for i in range(self.n) if not self.lane.expected.rows[i].is_waiting]
        self.lane.refuses(lambda env: env.step(value), self.lane.singles)
        actions: list[Any] = [4] * self.n
        if stepping:
            actions[stepping[row % len(stepping)]] = value
            actions = [True] * self.n if value is True else actions  # numpy makes ints of a mixture
            self.lane.refuses(lambda env: env.step(_array(actions)), [self.lane.env])

    @rule(value=st.sampled_from(WRONG_SHAPES))
    def step_with_another_shape(self, value: Any) -> None:
        self.lane.refuses(lambda env: env.step(_array(value)), [self.lane.env])

    @rule(arguments=st.sampled_from(WRONG_RESETS), mask=MASKS)
    def reset_wrongly(self, arguments: dict[str, Any], mask: tuple[bool, ...]) -> None:
        self.lane.refuses(lambda env: env.reset(**arguments))
        options, rows = arguments.get("options", {}), np.array(mask[: self.n])
        if isinstance(options, dict) and rows.any():  # or no wrong seed might be looked at
            rows[-1] = True
            partial = {**arguments, "options": {**options, "reset_mask": rows}}
            self.lane.refuses(lambda env: env.reset(**partial), [self.lane.env])

    @rule(last=st.sampled_from(LAST), seed=st.sampled_from([None, 5]))
    def reset_with_a_wrong_row(self, last: tuple[str, Any], seed: Any) -> None:
        """The last row can't be reset: the first ones are not either."""
        name, value = last
        whole: dict[str, Any] = {"seed": seed}
        if name == "prompt":
            whole["options"] = {"prompt": ["w4"] * (self.n - 1) + [value]}
        else:
            whole["seed"] = [*range(self.n - 1), value]
        self.lane.refuses(lambda env: env.reset(**whole), [self.lane.env])

    @rule(mask=st.sampled_from(WRONG_MASKS))
    def reset_with_a_wrong_mask(self, mask: Any) -> None:
        options = {"reset_mask": mask}
        self.lane.refuses(lambda env: env.reset(options=options))
        self.lane.refuses(lambda env: env.reset(seed=3, options=options))

    @rule(beta=st.sampled_from([-1, float("nan"), float("inf"), "x", None, [], True]))
    def set_a_wrong_beta(self, beta: Any) -> None:
        self.lane.refuses(lambda env: env.set_kl_coef(beta))

    @rule(row=st.integers(0, 2))
    def end_without_a_score(self, row: int) -> None:
        """Nobody scores what ends, or the reward function fails; the same step goes well later."""
        running = [i for i in range(self.n) if self.lane.expected.rows[i].is_running]
        if not running or (len(running) < self.n and self.lane.expected.mode == "Disabled"):
            return
        actions = np.full(self.n, 4)
        actions[running[row % len(running)]] = 2
        ending = [s for i, s in enumerate(self.lane.singles) if i in running]
        if self.world.is_deferred:
            for env in self.lane.envs:
                env.leave_scoring_to_caller(False)
            self._refuse_end(actions, ending)
            for env in self.lane.envs:
                env.leave_scoring_to_caller()
        elif self.world.reward_model is None:
            with break_rewards():
                self._refuse_end(actions, ending)
        self._step(actions.tolist())

    def _refuse_end(self, actions: np.ndarray, singles: list[Any]) -> None:
        self.lane.refuses(lambda env: env.step(actions), [self.lane.env])
        self.lane.refuses(lambda env: env.step(2), singles)

    # What always holds ---------------------------------------------------------------------------

    @invariant()
    def everything_is_as_expected(self) -> None:
        for lane in getattr(self, "lanes", []):
            lane.check()

    def teardown(self) -> None:
        """What deferred scoring gives for the episodes that ended is what steps would have paid."""
        for lane in getattr(self, "lanes", []) if self.world.is_deferred else []:
            rows = {(row.prompt, tuple(row.response)): row for row, _ in lane.expected.finished}
            if not set(rows) - self.scored[self.world] or len(self.scored[self.world]) > 40:
                continue
            episodes = [
                Episode(np.array(x), np.array(y), y[-1] in self.world.eos, row.origin)
                for (x, y), row in rows.items()
            ]
            scores, truth = lane.env.scorer.score(episodes), Truth(self.world)
            log_probs = lane.env.scorer.ref_log_probs(episodes)
            for i, (x, y) in enumerate(rows):
                raw, score = truth.scores(x, list(y))
                expected = [truth.ref_log_prob((*x, *y[:t]), y[t]) for t in range(len(y))]
                np.testing.assert_allclose(log_probs[i], expected, rtol=0, atol=1e-6)
                assert abs(scores.rm_score[i] - raw) < 1e-6 and abs(scores.score[i] - score) < 1e-6
                assert abs(scores.token_rewards[i].sum() - score) < 1e-6
                self.scored[self.world].add((x, y))


class DecodingMachine(EnvironmentMachine):
    """The same with the reference's own decoder, its cached keys and values, and pickled copies."""

    is_remembered = False
    scored: ClassVar[defaultdict[World, set[Any]]] = defaultdict(set)
    examples = steps = 0

    @rule()
    def go_on_with_what_was_pickled(self) -> None:
        self.lane.repickle()


@functools.cache
def _pristine(world: World, mode: str, n: int, is_remembered: bool, is_alone: bool) -> Lane:
    return Lane.new(world, mode, n, is_remembered, is_alone)


def _array(value: Any) -> Any:
    try:
        return np.array(value)
    except ValueError:
        return np.array(value, dtype=object)


def run(machine: type[EnvironmentMachine], folder: Any, examples: int, length: int) -> None:
    """Let Hypothesis run sequences, the same ones every time."""
    machine.worlds = worlds(folder, machine.is_remembered)
    before = machine.examples
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=length,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert machine.examples - before >= examples


def test_sequences_of_calls(tiny_folder):
    run(EnvironmentMachine, tiny_folder, 30, 8)


def test_sequences_of_calls_with_the_decoder(tiny_folder):
    run(DecodingMachine, tiny_folder, 10, 8)


@pytest.mark.slow
def test_thousands_of_sequences_of_calls(tiny_folder):
    run(EnvironmentMachine, tiny_folder, 2_500, 7)


@pytest.mark.long
def test_further_sequences_of_calls(tiny_folder):
    run(EnvironmentMachine, tiny_folder, 7_500, 20)


@pytest.mark.slow
def test_dozens_of_sequences_of_calls_with_the_decoder(tiny_folder):
    run(DecodingMachine, tiny_folder, 60, 8)
