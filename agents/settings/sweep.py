"""`--sweep NAME=VALUE,VALUE`: which settings take several values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["NOT_SWEPT", "parse_sweep"]

NOT_SWEPT = (
    *("config", "out", "resume", "trust_code", "overwrite", "seed", "seeds", "sweep"),
    *("launcher", "workers", "tracker", "tracker_project", "num_threads"),
)
"""Settings of the call, not of what is learned."""


def parse_sweep(sweep: Sequence[str], names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Setting → its values, as texts.

    Args:
        sweep: `"learning_rate=1e-3,3e-4"`, one per setting.
        names: the settings that there are.

    Raises:
        ValueError: one of them is of another form, names no setting, or names a value twice.
    """
    known = set(names) - set(NOT_SWEPT)
    found: dict[str, tuple[str, ...]] = {}
    for text in sweep:
        option, is_given, listed = text.partition("=")
        name = option.strip().removeprefix("--").replace("-", "_")
        values = tuple(value.strip() for value in listed.split(","))
        if not is_given or not all(values):
            raise ValueError(
                f"sweep={text!r:.80} must be NAME=VALUE,VALUE,…: learning_rate=1e-3,3e-4."
            )
        if name not in known:
            raise ValueError(
                f"sweep={text!r:.80}: {name!r:.40} is no setting that can be swept: take one of "
                "`tokenrlhf train --help` (for seeds there is --seeds)."
            )
        if name in found or len(set(values)) < len(values):
            raise ValueError(f"sweep={text!r:.80} says a setting or a value twice: once is enough.")
        found[name] = values
    return found
