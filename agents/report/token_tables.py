"""Which of a run's token tables fit into a page: first, last, and evenly what is between."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agents.credit import TokenFile, read_tokens, token_files

__all__ = ["evenly", "read_tables"]

PACKED = 0.45
"""Bytes in a page per byte of a file, at most: the longer the responses the less."""


def evenly(sizes: list[int], budget: float) -> list[int]:
    """The most places of a list, evenly spread, first and last among them, that a budget allows.

    Args:
        sizes: of what stands at each place.
        budget: most that the sizes may sum up to. The last place is taken in any case.

    Returns:
        The places, in order.
    """
    for count in range(len(sizes), 1, -1):
        places = sorted(set(np.linspace(0, len(sizes) - 1, count).round().astype(int).tolist()))
        if sum(sizes[place] for place in places) <= budget:
            return places
    return [len(sizes) - 1] if sizes else []


def read_tables(run: Path, budget: float) -> tuple[list[TokenFile], list[str]]:
    """Read as many of a run's token tables as a page has room for.

    Args:
        run: its folder.
        budget: bytes that they may take up in the page; 0 for none.

    Returns:
        The tables by step, and sentences about those that were left out.
    """
    files = token_files(run)
    if not files:
        return [], ["The run has no token tables, so there is no view of its tokens here."]
    if not budget:
        return [], [f"Token tables of {len(files)} steps were left out, as --megabytes 0 asks for."]
    steps = list(files)
    places = evenly([round(PACKED * files[step].stat().st_size) for step in steps], budget)
    notes = []
    if len(places) < len(steps):
        notes.append(
            f"Token tables of {len(places)} of {len(steps)} steps are shown, so that the page "
            f"stays small; --megabytes {max(1, round(3 * budget / 1e6))} makes room for more."
        )
    tables = []
    for place in places:
        try:
            tables.append(read_tokens(files[steps[place]]))
        except ValueError as error:
            notes.append(f"Token tables were left out: {error}")
    return tables, notes
