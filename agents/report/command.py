"""`tokenrlhf report`: read runs, write their page, say what is missing."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from agents.console import literal
from agents.report.config import ReportConfig
from agents.report.page import NAME, write_page
from agents.report.run_files import RunFiles, read_run

__all__ = ["report"]


def report(config: ReportConfig, console: Console) -> Path:
    """Write the page of one run or several.

    Args:
        config: which runs, and where to.
        console: where it is said what was written, and what is missing.

    Returns:
        The file.

    Raises:
        ValueError: a folder holds no run, a file in it is broken, or the page would replace another
            file.
    """
    budget = 1e6 * config.megabytes / len(config.runs)
    runs = [read_run(root, budget) for root in config.runs]
    alone = runs[0].root / NAME if len(runs) == 1 else Path(NAME)
    path = write_page(runs, config.out or alone)
    for run in runs:
        for note in run.notes:
            console.print(Text.assemble(("note: ", "yellow"), literal(f"{run.name}: {note}")))
    if config.figures is not None:
        _draw(runs, config.figures, console)
    size = path.stat().st_size / 1e6
    console.print(
        Text.assemble("wrote ", literal(path, "bold"), f" ({size:.1f} MB): open it in a browser")
    )
    return path


def _draw(runs: list[RunFiles], folder: Path, console: Console) -> None:
    from agents.report.figures import draw_figures  # matplotlib takes a second

    names = ", ".join(sorted({path.stem for path in draw_figures(runs, folder)}))
    console.print(Text.assemble("drew ", names, " in ", literal(folder, "bold")))
