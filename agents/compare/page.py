"""`compare.html`: the whole comparison on one page that stands alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from agents.atomic_files import whole_file
from agents.compare.figures import embedded_figures
from tokenenv.printable import printable

__all__ = ["write_page"]


def write_page(report: dict[str, Any], path: Path) -> None:
    """Write the page, with the figures inside it.

    Args:
        report: as `compare.json` holds it.
        path: HTML to write.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if isinstance(value, str) else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    template = environment.get_template("page.html.j2")
    page = template.render(report=report, figures=embedded_figures(report))
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def number(value: Any, digits: int = 3) -> str:
    """A number for a table: three significant digits, a dash for none."""
    if value is None:
        return "—"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"
