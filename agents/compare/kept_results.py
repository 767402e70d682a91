"""Checks of a comparison's stored results, which may have been edited or truncated."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from agents.compare.fingerprints import Fingerprint
from agents.compare.policy_gradient import GradientNoise
from agents.compare.scales import Scale
from agents.settings import settings_from_json

__all__ = ["check_result"]

_RUN_NUMBERS = ("value", "steps", "train_seconds", "train_cpu_seconds", "steps_per_second")


def check_result(what: str, result: dict[str, Any]) -> None:
    """Raise ValueError where a result can't be that of a `"run"`, `"scale"` or `"fingerprint"`."""
    if what == "run":
        _check_run(result)
    elif what == "scale":
        scale = settings_from_json(Scale, result)
        _check_span(scale.baseline, scale.top)
    else:
        _check_fingerprint(result)


def _check_run(result: dict[str, Any]) -> None:
    if result.get("measure") not in ("J", "plain return"):
        raise ValueError(f"measure={result.get('measure')!r} must be 'J' or 'plain return'")
    _check_numbers(result, _RUN_NUMBERS)
    _check_numbers(result, ["explained_variance"], may_be_none=True)
    curve = result.get("curve")
    if not isinstance(curve, list) or not curve or not all(map(_is_point, curve)):
        raise ValueError(f"curve={curve!r:.60} must be a list of [steps, value]")
    taken = result.get("curve_cpu_seconds")
    if not isinstance(taken, list) or len(taken) != len(curve) or not all(map(_is_number, taken)):
        raise ValueError(f"curve_cpu_seconds={taken!r:.60} must be a number for each point")
    if result["measure"] == "J":
        _check_numbers(result, ["baseline", "top"])
        _check_span(result["baseline"], result["top"])
        if not isinstance(result.get("is_lower_bound"), bool):
            raise ValueError("is_lower_bound must be true or false")


def _check_fingerprint(result: dict[str, Any]) -> None:
    gradient = result.get("gradient")
    if not isinstance(gradient, dict):
        raise ValueError(f"gradient={gradient!r:.60} must be an object")
    # Numbers that were NaN are stored as null.
    names = {field.name for field in dataclasses.fields(Fingerprint)} - {"gradient"}
    _check_numbers(result, sorted(names), may_be_none=True)
    names = {field.name for field in dataclasses.fields(GradientNoise)}
    _check_numbers(gradient, sorted(names), may_be_none=True)


def _check_numbers(result: dict[str, Any], names: Iterable[str], may_be_none: bool = False) -> None:
    for name in names:
        if name not in result:
            raise ValueError(f"{name!r} is missing")
        value = result[name]
        if not (_is_number(value) or (may_be_none and value is None)):
            raise ValueError(f"{name}={value!r:.60} must be a number")


def _check_span(baseline: float, top: float) -> None:
    if not top > baseline:
        raise ValueError(f"top={top!r} must be above baseline={baseline!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))
