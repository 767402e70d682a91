"""What the tests of the page in a browser share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.token_files import make_header, make_response, make_responses, make_run

from agents.credit import write_tokens
from agents.report.page import write_report


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser, started once."""
    from support.browser import Browser

    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium) -> Iterator[Any]:
    """The browser; whatever a test does in it, the console stays empty."""
    chromium.errors()
    yield chromium
    assert chromium.errors() == []


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """Three steps of a run, with true advantages, a bootstrap value and rewards on a scale."""
    root = make_run(tmp_path_factory.mktemp("report") / "run", is_exact=True)
    header = make_header(4096, reward_scale={"factor": 0.5, "shift": 0.1})
    responses = make_responses(header, {"fresh": 6, "fixed": 4, "rollout": 6}, is_exact=True)
    rng = np.random.default_rng(0)
    responses.append(make_response(rng, header, "rollout", 6, is_exact=True, bootstrap_value=0.7))
    write_tokens(root / "tokens" / "4096.jsonl", header, responses)
    return root


@pytest.fixture(scope="session")
def page(run) -> Path:
    """Its page."""
    return write_report(run)


@pytest.fixture(scope="session")
def large_page(tmp_path_factory) -> Path:
    """The page of 200 responses of 128 tokens, every column known."""
    root = make_run(tmp_path_factory.mktemp("large") / "run", steps=())
    header, rng = make_header(1024), np.random.default_rng(0)
    responses = [
        make_response(rng, header, "rollout", index, 128, is_exact=True) for index in range(200)
    ]
    for response in responses:
        for name in ("exact_strength", "exact_share", "kl_loss", "entropy_bonus"):
            response["columns"][name] = rng.random(128)
    write_tokens(root / "tokens" / "1024.jsonl", header, responses)
    return write_report(root)
