"""Seeds of a claim about learning: the first runs in CI, the others in `make test-long`."""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["seeds"]


def seeds(count: int = 3) -> list[Any]:
    """Parameters 0 … count − 1, all but the first of them marked `long`."""
    return [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, count))]
