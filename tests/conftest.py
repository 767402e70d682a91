"""Fixtures that several test files share: tiny models of several architectures."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The models of the tests are tiny: a second thread would wait more than it works.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import save_classifier, save_language_model

SHARED = Path(__file__).resolve().parents[2] / "shared"

NUMERIC = {
    "test_agreement",
    "test_architectures",
    "test_buffer",
    "test_callbacks",
    "test_decode_step",
    "test_deferred_scoring",
    "test_encoding",
    "test_env",
    "test_exact_optimum",
    "test_kl",
    "test_kl_loss_off_policy",
    "test_kl_training",
    "test_loss_options",
    "test_model_preparation",
    "test_optimum",
    "test_policy",
    "test_policy_attention",
    "test_ppo",
    "test_precision",
    "test_preferences",
    "test_rewards",
    "test_rlhf_details",
    "test_slot_cache",
    "test_token_sampling",
    "test_token_scores",
    "test_value_head",
    "test_vector_env",
    "test_vine",
    "test_wrappers",
}
"""Modules that compare what went through one kernel with what went through another, or by hand."""


APART = {f"tests/project/test_{name}.py" for name in ("docs", "examples", "benchmarks")}
"""Files whose tests share nothing and take long: each of their tests may run on any worker."""


WORDS = {"slow": ("mark.slow",), "long": ("mark.long", "seeds(")}
"""Marker → words, one of which is in every file that has tests with it."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Of a run of slow, long or numeric tests alone, the files without any: reading takes long."""
    expression = str(config.getoption("markexpr"))
    if " or " in expression:
        return None
    marker = expression.partition(" ")[0]
    if collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    if marker == "numeric":
        return None if collection_path.stem in NUMERIC else True
    if marker not in WORDS:
        return None
    text = collection_path.read_text(encoding="utf-8")
    return None if any(word in text for word in WORDS[marker]) else True


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`, a worker gets whole files, and of those in `APART` single tests."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFileOrTest(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return nodeid if file in APART else file

    return ByFileOrTest(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is `numeric`."""
    for item in items:
        takes_long = any(map(item.get_closest_marker, ("slow", "ecosystem")))
        if item.path.stem in NUMERIC and not takes_long:
            item.add_marker(pytest.mark.numeric)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """Signals as in a foreground process: the suite may have been started with some ignored."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in numbers[1:]:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def exact_tree() -> Any:
    """All states and responses of the bundled task `exact`."""
    from tokenenv.optimum import enumerate_task

    return enumerate_task("exact")


@pytest.fixture(scope="session")
def exact_solution(exact_tree: Any) -> Any:
    """Its optimum at its own β."""
    from tokenenv.optimum import solve

    return solve(exact_tree)


@pytest.fixture
def shared() -> Path:
    """The folder of real data beside the project; the test skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: this test uses its data")
    return SHARED


@pytest.fixture(scope="session")
def reference_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small Llama with the word tokenizer, pad apart from EOS."""
    return save_language_model(tmp_path_factory.mktemp("models") / "reference")


@pytest.fixture(scope="session")
def pad_is_eos_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small GPT-2 whose pad token is its EOS token, as GPT-2 users set it."""
    folder = tmp_path_factory.mktemp("models") / "pad-is-eos"
    return save_language_model(folder, "gpt2", seed=3, pad_token="<eos>")


@pytest.fixture(scope="session")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small reward model over the word tokenizer, with statistics in its config."""
    return save_classifier(
        tmp_path_factory.mktemp("models") / "reward", reward_mean=0.3, reward_std=2.0
    )


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny models of `tiny_task` are saved; each of them once per session."""
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture
def tiny_task_kwargs(tiny_folder: Path) -> dict[str, Any]:
    """Keyword arguments of a token MDP with tiny random models: P = 5, T = 8, V = 40."""
    from support.tiny_task import task_kwargs

    return task_kwargs(tiny_folder, "llama")


@pytest.fixture(scope="module")
def settings(reference_folder, reward_folder):
    """Of a small token MDP; modules with other needs have their own."""
    return {
        "reference": reference_folder,
        "reward_model": reward_folder,
        "prompts": ["w4 w5 w6", "w7", "w8 w9 w10 w11"],
        "max_prompt_tokens": 6,
        "max_new_tokens": 5,
        "kl_coef": 0.2,
        "device": "cpu",
    }
