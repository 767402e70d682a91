"""Files that a figure may be drawn into."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["FIGURE_FORMATS", "check_figure"]

FIGURE_FORMATS = (".png", ".pdf", ".svg")
"""What the name of a figure may end in."""


def check_figure(path: Path | None) -> None:
    """Raise ValueError where no figure can be written, before the work.

    Args:
        path: the setting `figure`; None: no figure is asked for.
    """
    if path is None:
        return
    said = f"figure={str(path)!r:.80}"
    if "\0" in str(path) or os.path.isdir(path):
        raise ValueError(
            f"{said} is no place for a file: give a name that ends in one of "
            f"{', '.join(FIGURE_FORMATS)}."
        )
    if path.suffix.lower() not in FIGURE_FORMATS:
        raise ValueError(f"{said} must end in one of {', '.join(FIGURE_FORMATS)}.")
    if not os.path.isdir(path.parent):
        raise ValueError(
            f"{said}: there is no folder {str(path.parent)!r}; make it, or give another place."
        )
