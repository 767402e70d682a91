"""Wrong calls of the library, by the hundred: each is refused with its name, none breaks inside."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
from support.hostile import ESCAPES, SURROGATE, is_an_answer, time_limit

from agents import LMActorCriticPolicy, RLHFCallback, TokenPPO, make_vec_env
from agents.evaluation.held_out import HeldOut
from agents.labelling.drawing import draw_pairs
from agents.labelling.pair_file import PairFile
from agents.runs.folder import RunFolder
from agents.sft.config import SFTSettings
from agents.sft.encoding import encode_examples
from agents.sft.training import train_sft
from tokenenv import wrappers
from tokenenv.data import (
    Example,
    PreferencePair,
    find_format,
    iterate_pairs,
    parse_columns,
    read_examples,
    read_pairs,
    read_prompt_rows,
    read_prompts,
    read_rows,
)
from tokenenv.env import TokenEnv
from tokenenv.rewards.preferences import RewardTrainingSettings
from tokenenv.settings import EnvSettings
from tokenenv.tasks import load_task
from tokenenv.wrappers import vector

ID = "TokenRLHF-Exact-v0"
HUGE = 10**20
THING = object()

NO_NUMBERS: list[Any] = [
    *("x", "", b"1", [], {}, (1,), THING, True, math.nan, -1, 1j, ESCAPES, SURROGATE, print),
    *(np.array([1, 2]), -math.inf, "1"),
]
NO_COUNTS: list[Any] = [*NO_NUMBERS, HUGE, 1.5, math.inf, 0, -HUGE, 10**400, np.float32(2.5)]
NO_CHOICES: list[Any] = ["nope", "", 1, True, [], {}, THING, ESCAPES, SURROGATE, b"k1", math.nan]
NO_NAMES: list[Any] = [
    *(
        "/nowhere",
        "",
        1,
        True,
        {},
        THING,
        ESCAPES,
        "a" + SURROGATE,
        b"x",
        "no.module:x",
        "os:",
        ":",
    ),
    *("a\0b", "x" * 5000, "../..", math.nan, ":"),
]


class Call(NamedTuple):
    """A call that must be refused.

    Attributes:
        what: for the report.
        make: does it.
        named: what the answer must hold; "" where it may be anything.
    """

    what: str
    make: Callable[[], Any]
    named: str = ""


def each(
    what: str, function: Callable[..., Any], name: str, values: list[Any], named: str | None = None
) -> list[Call]:
    """Calls of a function with each value of one argument."""
    return [
        Call(
            f"{what}({name}={value!r:.60})",
            functools.partial(function, **{name: value}),
            name if named is None else named,
        )
        for value in values
    ]


def for_all(names: Sequence[str], values: list[Any]) -> dict[str, list[Any]]:
    """The same wrong values for several arguments."""
    return {name: values for name in names}


ENVIRONMENT = {
    "task": [*NO_NAMES, "review", "Exact"],
    "reference": NO_NAMES,
    "reward_model": [*NO_NAMES, [1], [[print]], ["exact", "os.path:sep"], "os.path:sep"],
    "reward_weights": [*NO_NUMBERS, [1.0], [1.0, 2.0], [math.nan], ["x"], {"exact": 1.0}, 10**400],
    "reward_combine": [*NO_CHOICES, ["min"], "Mean", "mean", "min", "uncertainty"],  # of one reward
    "uncertainty_coef": [*NO_NUMBERS, math.inf, 1.0],  # and no combination
    "prompt_truncation": [*NO_CHOICES, None, "keep", "Drop"],
    "prompt_columns": ["prompt=x", ["prompt"], {"prompt": 1}, {"a": "x", "b": "x"}, {"a": "x"}],
    "skip_bad_prompts": ["yes", 1, None, True],
    "prompts": [
        *NO_NAMES,
        [],
        [""],
        ["do", 1],
        [None],
        ["do" * 3000],
        [SURROGATE],
        [ESCAPES],
        iter([]),
        [{"role": "user", "content": "do"}],
        [[{"role": "user", "content": "do"}]],
        [[{"role": "user"}]],
        [{"answer": "do"}],
        [{"prompt": 1}],
    ],
    "split": NO_CHOICES,
    "max_prompt_tokens": NO_COUNTS,
    "max_new_tokens": NO_COUNTS,
    "kl_coef": NO_NUMBERS,
    "kl_shaping": NO_CHOICES,
    "temperature": [*NO_NUMBERS, 0, 0.0, math.inf, None],
    "score_clip": [*NO_NUMBERS, 0, math.inf],
    "missing_eos_penalty": [*NO_NUMBERS, math.inf, None],
    "scoring": NO_CHOICES,
    "group_size": [*NO_COUNTS, None],
    "device": ["quantum", "", 1.5, [], {}, THING, "cuda:99", ESCAPES, None],
    "dtype": [*NO_CHOICES, "int8", None, np.float32],
    "render_mode": NO_CHOICES,
}

AGENT = {
    **for_all(("n_steps", "batch_size", "n_epochs", "micro_batch_tokens"), NO_COUNTS),
    **for_all(("ent_coef", "vf_coef"), [*NO_NUMBERS, math.inf]),
    **for_all(("gamma", "gae_lambda"), [*NO_NUMBERS, 1.5, math.inf, HUGE]),
    **for_all(("max_grad_norm", "target_kl", "kl_target", "kl_horizon"), [*NO_NUMBERS, 0]),
    "kl_dual_rate": [*NO_NUMBERS, 0],
    **for_all(("kl_estimator", "kl_controller", "precision"), NO_CHOICES),
    "critic_warmup": [v for v in NO_COUNTS if not (isinstance(v, int) and v == 0)],
    "critic_warmup_lambda": [*NO_NUMBERS, 1.5, math.inf, HUGE],
    "clip_range_high": [*(v for v in NO_NUMBERS if not callable(v)), 0, math.inf],
    "loss_aggregation": NO_CHOICES,
    "loss_divisor": NO_COUNTS,
}

POLICY = {
    "value_head": NO_CHOICES,
    "temperature": [*NO_NUMBERS, 0, math.inf],
    "attention": NO_CHOICES,
    "dtype": [*NO_CHOICES, "int8"],
    "actor": NO_NAMES,
    "colour": [1],
    "config": ["x", 1, [], {"model_type": "nope"}, {"vocab_size": 3}],
}

BUFFER = {
    "advantage_estimator": NO_CHOICES,
    **for_all(("group_size", "vine_samples"), NO_COUNTS),
    "gae_lambda_value": [*NO_NUMBERS, 1.5, math.inf, HUGE],
    "gae_lambda_alpha": [*NO_NUMBERS, 0, math.inf],
    "cut": NO_CHOICES,
    "colour": [1],
}

TRAINING = {
    **for_all(("epochs", "batch_size", "evaluations_per_epoch", "patience"), NO_COUNTS),
    **for_all(("weight_decay", "centering_coef"), [*NO_NUMBERS, math.inf]),
    "learning_rate": [*NO_NUMBERS, 0, math.inf],
    "eval_fraction": [*NO_NUMBERS, 0, 1, 1.5, math.inf],
    "seed": [*NO_NUMBERS, HUGE, 1.5],
}

SFT = {
    **for_all(("epochs", "batch_tokens", "micro_batch_tokens"), NO_COUNTS),
    **for_all(("evaluations_per_epoch", "patience"), NO_COUNTS),
    **for_all(("schedule", "optimizer", "precision"), NO_CHOICES),
    **for_all(("early_stopping", "gradient_checkpointing"), [1, 0, "x", None, THING, "True"]),
    "learning_rate": [*NO_NUMBERS, 0, math.inf],
    "weight_decay": [*NO_NUMBERS, math.inf],
    "max_grad_norm": [*NO_NUMBERS, 0],
    "warmup_fraction": [*NO_NUMBERS, 1.5, math.inf],
    "eval_fraction": [*NO_NUMBERS, 0.95, 1, math.inf],
    "seed": [*NO_NUMBERS, HUGE, 1.5],
}

NO_ACTIONS: list[Any] = [
    *(-1, HUGE, 10**6, 1.5, math.nan, "x", None, [], {}, THING, True, 1j, b"1", SURROGATE),
    *(np.array([0.5]), np.array([[0, 0], [0, 0]]), np.array(["x"]), np.array([], dtype=int)),
]


@functools.cache
def env() -> Any:
    """One environment, in an episode."""
    made = gym.make(ID, disable_env_checker=True)
    made.reset(seed=0)
    return made


@functools.cache
def rows() -> Any:
    """Two of them in one."""
    made = gym.make_vec(ID, num_envs=2)
    made.reset(seed=0)
    return made


@functools.cache
def for_sb3() -> Any:
    """Two of them for SB3."""
    return make_vec_env(ID, n_envs=2, seed=0)


def agent(**settings: Any) -> TokenPPO:
    """An agent with small rollouts."""
    settings = {"n_steps": 8, "batch_size": 16, "device": "cpu", **settings}
    settings["policy_kwargs"] = {"actor": "exact", **settings.get("policy_kwargs", {})}
    return TokenPPO(LMActorCriticPolicy, for_sb3(), **settings)


def trained(**settings: Any) -> None:
    """What a buffer makes of its settings shows at the start of training at the latest."""
    agent(**settings).learn(1)


def all_calls() -> list[Call]:
    """Every wrong call that the suite knows."""
    calls: list[Call] = []
    for name, values in ENVIRONMENT.items():
        # Gymnasium itself looks at render_mode first, and breaks where it is no text.
        make = TokenEnv if name == "render_mode" else functools.partial(gym.make, ID)
        named = "prompt" if name == "prompts" else name
        calls += each("gym.make", make, name, values, named)
    for name, values in AGENT.items():
        calls += each("TokenPPO", agent, name, values)
    for name, values in POLICY.items():
        made = [{name: value} for value in values]
        calls += each("TokenPPO", agent, "policy_kwargs", made, name)
    for name, values in BUFFER.items():
        made = [{name: value} for value in values]
        calls += each("TokenPPO", trained, "rollout_buffer_kwargs", made, name)
    for name, values in TRAINING.items():
        calls += each("RewardTrainingSettings", RewardTrainingSettings, name, values)
    for name, values in SFT.items():
        calls += each("SFTSettings", SFTSettings, name, values)
    for name in ("kl_estimator", "kl_controller"):
        calls += each("RLHFCallback", RLHFCallback, name, NO_CHOICES)
    for name in ("kl_horizon", "kl_dual_rate"):
        calls += each("RLHFCallback", RLHFCallback, name, [*NO_NUMBERS, 0])
    calls += [*stepping_calls(), *making_calls(), *wrapping_calls(), *reading_calls()]
    return [*calls, *warm_start_calls()]


def stepping_calls() -> list[Call]:
    """Of environments under way."""
    calls = each("step", lambda action: env().step(action), "action", NO_ACTIONS, "")
    calls += each("vector step", lambda actions: rows().step(actions), "actions", NO_ACTIONS, "")
    seeds: list[Any] = [-1, 1.5, "x", math.nan, [], {}, THING, b"1", 1j]
    calls += each("reset", lambda seed: env().reset(seed=seed), "seed", seeds, "")
    seeds = [-1, 1.5, "x", [1], [1, 2, 3], ["a", "b"], [-1, 2], {}, THING, math.nan, [1.5, 2]]
    calls += each("vector reset", lambda seed: rows().reset(seed=seed), "seed", seeds, "")
    prompts: list[Any] = ["", "  ", 1, [], {}, b"do", THING, SURROGATE, "do " * 500, ESCAPES]
    user: dict[str, Any] = {"role": "user", "content": "do"}
    prompts += [user, [user], [{**user, "role": 1}], [{**user, "content": None}], [user, 1]]
    prompts += [[{**user, "content": SURROGATE}], {"prompt": 1}, {"prompt": [user]}, {"answer": 1}]
    for what, made in (("reset", env), ("vector reset", rows)):
        asked = [{"prompt": prompt} for prompt in prompts]
        reset = functools.partial(lambda made, options: made().reset(options=options), made)
        calls += each(what, reset, "options", asked, "")
    masks: list[Any] = [1, [True], np.array([1, 0]), np.array([True]), np.zeros(2, bool), "x"]
    asked = [{"reset_mask": mask} for mask in masks]
    return calls + each(
        "vector reset", lambda options: rows().reset(options=options), "options", asked, ""
    )


def making_calls() -> list[Call]:
    """Of what makes environments and evaluations."""
    make = functools.partial(make_vec_env, ID)
    calls = each(
        "make_vec_env", functools.partial(make_vec_env, ID), "n_envs", NO_COUNTS, "num_envs"
    )
    ids = ["", "Nope-v0", "CartPole-v1", "no.module:X-v0", ":", "a b", ESCAPES, 1, None, SURROGATE]
    calls += each("make_vec_env", make_vec_env, "env_id", ids, "")
    seeds = ["x", 1.5, -1, math.nan, [], THING]
    calls += each("make_vec_env", make, "seed", seeds, "seed")
    wrong = [1, "x", [], THING, print, int, gym.wrappers.TimeLimit]
    calls += each("make_vec_env", make, "wrapper_class", wrong, "")
    vector_make = functools.partial(gym.make_vec, ID, vectorization_mode="vector_entry_point")
    calls += each("gym.make_vec", vector_make, "autoreset_mode", ["x", 1, [], THING, True], "")
    calls += each("gym.make_vec", vector_make, "max_episode_steps", [-1, 0, 1, "x", 1.5], "")
    held_out = functools.partial(HeldOut.from_env_kwargs, {"task": "exact"})
    calls += each("HeldOut.from_env_kwargs", held_out, "count", NO_COUNTS, "count")
    tasks = [v for v in NO_NAMES if v not in (True, 1)]
    return calls + each("load_task", load_task, "name", tasks, "")


def wrapping_calls() -> list[Call]:
    """Of wrappers."""
    calls = []
    for module, base in ((wrappers, env), (vector, rows)):
        top_k = functools.partial(
            lambda module, base, k: module.TopKActions(base(), k), module, base
        )
        calls += each("TopKActions", top_k, "k", NO_COUNTS)
        for name, values in {
            "top_p": [*NO_NUMBERS, 0, 1.5, math.inf],
            "forbid": [-1, HUGE, [HUGE], [-1], ["x"], [1.5], "x", THING, [THING], True, math.nan],
            "force": [1, [1], {"x": 1}, {0: HUGE}, {-99: 0}, {0: "x"}, {HUGE: 0}, THING, "x"],
        }.items():
            mask = functools.partial(
                lambda module, base, **rules: module.ActionMask(base(), **rules), module, base
            )
            calls += each("ActionMask", mask, name, values, "")
    return calls


def readers() -> dict[str, Callable[..., Any]]:
    """What reads rows of files: to the end of them."""

    def to_the_end(read: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **settings: list(read(*args, **settings))

    return {
        "read_rows": to_the_end(read_rows),
        "find_format": find_format,
        "read_pairs": read_pairs,
        "iterate_pairs": to_the_end(iterate_pairs),
        "read_examples": to_the_end(read_examples),
        "read_prompt_rows": functools.partial(read_prompt_rows, split="train"),
    }


def warm_start_calls() -> list[Call]:
    """Of supervised fine-tuning, and of pairs for labelling."""
    of = env().unwrapped.mdp.language_model
    wrong: list[Any] = [["x"], [None], [1], [("do", "re")], [THING], [], "do", [Example("", "")]]
    wrong += [[Example("do", " re " + ESCAPES)], 1, None]
    encode = functools.partial(encode_examples, language_model=of)
    calls = each("encode_examples", encode, "examples", wrong, "")
    good = functools.partial(encode_examples, [Example("do", " re")], of)
    calls += each("encode_examples", good, "truncation", NO_CHOICES)
    calls += each("encode_examples", good, "max_tokens", [*NO_COUNTS, 1])
    train = functools.partial(train_sft, [Example("do", " re")])  # a shared, frozen model
    calls += each("train_sft", train, "language_model", [of], "load_trainable")
    trained = functools.partial(train_sft, [Example("do", " re")], of)
    calls += each("train_sft", trained, "settings", [1, "x", {}, THING], "settings")
    draw = functools.partial(draw_pairs, of, [of.encode("do")])
    for name in ("pairs_per_prompt", "max_new_tokens"):
        given = {"pairs_per_prompt": 1, "max_new_tokens": 1}
        del given[name]
        calls += each("draw_pairs", functools.partial(draw, **given), name, NO_COUNTS)
    plain = functools.partial(draw, 1, 1)
    calls += each("draw_pairs", plain, "temperature", [*NO_NUMBERS, 0, math.inf, None])
    calls += each("draw_pairs", plain, "seed", [*NO_NUMBERS, HUGE, 1.5, None])
    paths: list[Any] = ["/", "/dev/null", ".", __file__, "a\0b", "x" * 5000, 1, None, THING]
    return calls + each("PairFile", PairFile, "path", paths, "")


def reading_calls() -> list[Call]:
    """Of what reads files."""
    paths = ["", "/nowhere", "/dev/null", "/", ".", "a\0b", "x" * 5000, "a" + SURROGATE, ESCAPES]
    prompts = functools.partial(read_prompts, split="train")
    calls = each("read_prompts", prompts, "path", paths, "")
    calls += each("read_prompts", functools.partial(read_prompts, "x"), "split", NO_CHOICES)
    for name, read in readers().items():
        hub = ["owner/nowhere"] * (name != "find_format")  # asked for when it is read
        calls += each(name, read, "path", [*paths, 1, None, THING, b"x", *hub], "")
        whole = functools.partial(read, __file__)
        if name not in ("find_format", "read_rows"):
            columns = [1, "prompt=x", ["prompt"], {"prompt": 1}, {1: "x"}, {"a": ""}]
            calls += each(name, whole, "columns", columns, "column")
            calls += each(name, whole, "skip_bad", [1, "x", None, THING], "skip_bad")
    calls += each("iterate_pairs", functools.partial(iterate_pairs, "x"), "ratings", NO_CHOICES)
    marks = [v for v in NO_CHOICES if not isinstance(v, str)]
    calls += each("read_examples", functools.partial(read_examples, "x"), "documents", marks)
    texts: list[Any] = [["x"], ["="], ["a="], ["=a"], ["a=b", "a=c"], [ESCAPES]]
    calls += each("parse_columns", parse_columns, "texts", texts, "columns")
    calls += each("from_pretrained", LMActorCriticPolicy.from_pretrained, "folder", paths, "")
    from pathlib import Path

    opened = [Path(path) for path in paths]
    return calls + each("RunFolder.open", RunFolder.open, "root", opened, "")


CALLS = all_calls()


def check(wrong: Call) -> str | None:
    """What is wrong with the answer to a call; None where nothing is."""
    try:
        with time_limit():
            wrong.make()
    except BaseException as error:
        if not is_an_answer(error):
            return f"{type(error).__name__}: {error!s:.300}"
        if wrong.named not in str(error):
            return f"{wrong.named!r} is not named: {type(error).__name__}: {error!s:.300}"
        return None
    return "it was accepted"


def failures(calls: list[Call]) -> list[str]:
    """The calls whose answer is wrong, with why."""
    return [f"{call.what}: {fault}" for call in calls if (fault := check(call)) is not None]


def test_there_are_as_many_wrong_calls_as_promised():
    assert len({call.what for call in CALLS}) >= 500


def test_the_suite_knows_every_argument_of_the_environment():
    assert set(ENVIRONMENT) == set(inspect.signature(EnvSettings).parameters)


def test_wrong_calls_are_refused_by_name():
    found = failures(CALLS)
    assert not found, f"{len(found)} of {len(CALLS)}:\n" + "\n".join(found)


def test_pairs_of_another_kind_are_refused():
    from tokenenv.rewards.preferences import train_reward_model
    from tokenenv.rewards.reward_model import new_reward_model

    model = new_reward_model(load_task("exact").reference)
    pairs: list[Any] = [PreferencePair("do", " re", SURROGATE), PreferencePair("re", " do", " mi")]
    for wrong in (pairs, ["x", "y"], [1], None, [], 3):
        with pytest.raises((ValueError, TypeError)):
            train_reward_model(wrong, model)
