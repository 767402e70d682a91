"""Comparing what two environments gave."""

from __future__ import annotations

import numpy as np

__all__ = ["assert_equal"]


def assert_equal(expected, found, where=""):
    """Same structure; ids, texts and masks exactly, floats to 1e-5."""
    assert type(expected) is type(found), (where, type(expected), type(found))
    if isinstance(expected, dict):
        assert expected.keys() == found.keys(), where
        for key in expected:
            assert_equal(expected[key], found[key], f"{where}/{key}")
    elif isinstance(expected, tuple):
        assert len(expected) == len(found), where
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            assert_equal(one, other, f"{where}/{index}")
    elif isinstance(expected, np.ndarray):
        assert expected.dtype == found.dtype and expected.shape == found.shape, where
        if expected.dtype == object:
            for index, (one, other) in enumerate(zip(expected, found, strict=True)):
                assert_equal(one, other, f"{where}/{index}")
        elif np.issubdtype(expected.dtype, np.floating):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5, err_msg=where)
        else:
            np.testing.assert_array_equal(found, expected, err_msg=where)
    else:
        assert expected == found, where
