"""The global random generators of Python, NumPy and torch, as JSON values and arrays."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["generators_state", "load_generators"]


def generators_state() -> dict[str, Any]:
    """Where the global generators are, on every GPU as well where torch has used one."""
    version, numbers, gauss = random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "python": {
            "version": version,
            "numbers": np.array(numbers, dtype=np.int64),
            "gauss": gauss,
        },
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def load_generators(state: Mapping[str, Any]) -> None:
    """Let the global generators go on from where `generators_state` was called.

    States of more GPUs than there are here are left out.
    """
    python = state["python"]
    numbers = tuple(np.asarray(python["numbers"]).tolist())
    random.setstate((python["version"], numbers, python["gauss"]))
    numpy_state: Any = dict(state["numpy"])
    np.random.set_state(numpy_state)
    torch.set_rng_state(state["torch"])
    count = torch.cuda.device_count() if state["cuda"] else 0
    for device, of_device in zip(range(count), state["cuda"], strict=False):
        torch.cuda.set_rng_state(of_device, device)
