"""Infos of many environments at once are the same as Gymnasium's, added one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.vector import VectorEnv

from tokenenv.mdp.vector_infos import add_infos

N = 5


class Vector(VectorEnv):
    num_envs = N


def by_gymnasium(batches: list[tuple[list[int], list[dict[str, Any]]]]) -> dict[str, Any]:
    infos: dict[str, Any] = {}
    for rows, found in batches:
        for row, info in zip(rows, found, strict=True):
            infos = Vector()._add_info(infos, info, row)
    return infos


def assert_same(own: Any, expected: Any) -> None:
    assert type(own) is type(expected)
    if isinstance(own, dict):
        assert own.keys() == expected.keys()
        for key in own:
            assert_same(own[key], expected[key])
        return
    assert own.dtype == expected.dtype and own.shape == expected.shape
    for left, right in zip(own, expected, strict=True):
        assert np.array_equal(left, right)


def episode(value: int) -> dict[str, Any]:
    return {
        "response": f"text {value}",
        "response_length": value,
        "score": value / 3,
        "stopped": value % 2 == 0,
        "counted": np.float32(value),
        "mask": np.arange(3) == value % 3,
        "tokens": (value,),
    }


@pytest.mark.parametrize(
    "batches",
    [
        [([], [])],
        [([1, 3], [episode(1), episode(2)])],
        [([0], [{"prompt": "a"}]), ([2, 4], [{"prompt": "b", "group": 3}, {"prompt": "c"}])],
        [
            (
                [4, 0],
                [
                    {"final_obs": np.arange(4) + i, "final_info": {**episode(i), "in": {"x": i}}}
                    for i in (6, 7)
                ],
            ),
            ([4, 0], [{"prompt": "next"}, {"prompt": "other"}]),
        ],
        [([2], [episode(2)]), ([3], [episode(9)])],
    ],
)
def test_they_are_gymnasiums(batches):
    infos: dict[str, Any] = {}
    for rows, found in batches:
        add_infos(infos, rows, found, N)
    assert_same(infos, by_gymnasium(batches))
