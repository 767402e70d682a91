"""`report.html`: one run, or several beside each other, on a page that stands alone.

The page's policy of what may run (`Content-Security-Policy`) allows its own script and style, named
by their hashes, and nothing else: no network, and no script that a text could bring along.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from agents.atomic_files import whole_file
from agents.credit import COLUMNS, WHOLE_COLUMNS
from agents.report.charts import Group, charts, group_runs
from agents.report.config import MEGABYTES
from agents.report.embedding import Texts, packed_table, script_json
from agents.report.reward_section import reward_context
from agents.report.rules import RULES
from agents.report.run_files import RunFiles, read_run
from agents.report.samples import before_and_after, best_and_worst, score_against_length
from agents.report.verdict import evidence_of, judge
from agents.settings import run_name
from tokenenv.printable import printable

__all__ = ["GENERATOR", "make_page", "write_page", "write_report"]

GENERATOR = "tokenrlhf report"
"""Name that a page has in its head, by which it is known again."""

NAME = "report.html"
"""Of a page, unless another name is given."""

_PARTS = Path(__file__).parent / "page_parts"
_SCRIPTS = (
    *("format", "maths", "data", "chart", "curves", "state", "strips"),
    *("colours", "tokens", "details", "estimators", "strength", "credit", "main"),
)


def write_report(run_folder: Path, out: Path | None = None) -> Path:
    """Write the page of one run.

    Args:
        run_folder: of the run, finished or not.
        out: file to write; `report.html` in the run's folder unless given.

    Returns:
        The file.

    Raises:
        ValueError: there is no run, a file in it is broken, or `out` is a file of another kind.
        OSError: a file can't be read or written.
    """
    return write_page([read_run(run_folder, 1e6 * MEGABYTES)], out or run_folder / NAME)


def write_page(runs: Sequence[RunFiles], path: Path) -> Path:
    """Write the page of one run or several.

    Args:
        runs: their files.
        path: HTML to write; an earlier page is replaced, anything else is not.

    Returns:
        The file.

    Raises:
        ValueError: there is something else in its place.
        OSError: it can't be written.
    """
    _refuse_other_files(path)
    page = make_page(runs)
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _refuse_other_files(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"out={str(path)!r} is a folder: give a file, as {str(path / NAME)!r}.")
    if path.exists() and not path.is_file():
        raise ValueError(f"out={str(path)!r} is no file: give the name of one, as {NAME!r}.")
    if not path.parent.is_dir():
        raise ValueError(
            f"out={str(path)!r}: there is no folder {str(path.parent)!r}. Make it first."
        )
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if GENERATOR.encode() not in file.read(1000):
                raise ValueError(
                    f"out={str(path)!r} exists, and is no page of this command: nothing was "
                    "changed. Give another file."
                )


def make_page(runs: Sequence[RunFiles]) -> str:
    """The page of one run or several, as text.

    Args:
        runs: their files.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PARTS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    style = (_PARTS / "style.css").read_text(encoding="utf-8")
    script = _script()
    groups = group_runs(runs)
    return environment.get_template("page.html.j2").render(
        generator=GENERATOR,
        style=Markup(style),
        script=Markup(script),
        style_hash=Markup(_hash(style)),
        script_hash=Markup(_hash(script)),
        data=Markup(script_json(_data(runs, groups))),
        runs=[_run_context(run) for run in runs],
        groups=groups,
        comparison=_comparison(groups),
        settings=_settings(runs),
        title=_title(runs),
        rules=RULES,
        has_tokens=any(run.tables for run in runs),
    )


def _script() -> str:
    """The parts of the script as one, in a scope of their own."""
    parts = [(_PARTS / f"{name}.js").read_text(encoding="utf-8") for name in _SCRIPTS]
    return '(function () {\n"use strict";\n' + "\n".join(parts) + "\n})();\n"


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _shown(value: Any) -> Any:
    """Text of models and files with its control characters as escapes; markup of ours as it is."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value, keep="\n")
    return value


def _data(runs: Sequence[RunFiles], groups: Sequence[Group]) -> dict[str, Any]:
    """Everything that the script draws."""
    texts = Texts()
    tables = [
        {
            "name": run.name,
            "columns": run.tables[-1].header["columns"] if run.tables else {},
            "steps": [packed_table(table, texts) for table in run.tables],
        }
        for run in runs
    ]
    return {
        "charts": charts(groups),
        "groups": [{"label": group.label, "seeds": len(group.runs)} for group in groups],
        "lengths": [score_against_length(run) for run in runs],
        "runs": tables,
        "known_columns": [*COLUMNS, *WHOLE_COLUMNS],
        "texts": texts.all,
    }


def _title(runs: Sequence[RunFiles]) -> str:
    tasks = list(dict.fromkeys(run_name(run.config) for run in runs))
    if len(runs) == 1:
        return f"{tasks[0]}, seed {runs[0].config['seed']}"
    return f"{len(runs)} runs of {', '.join(tasks)}"


def _run_context(run: RunFiles) -> dict[str, Any]:
    """What the template shows of a run."""
    findings = judge(evidence_of(run), RULES)
    return {
        "run": run,
        "findings": findings,
        "met": [f for f in findings if f.answer is not None and f.answer.holds],
        "headline": _headline(run),
        "scale": _scale(run),
        "pairs": before_and_after(run.samples),
        "ranking": best_and_worst(run),
        "reward": reward_context(run),
    }


def _headline(run: RunFiles) -> list[dict[str, Any]]:
    """The numbers that stand above everything, where they are known."""
    of = run.summary
    items = [
        ("score", of.get("score"), of.get("score_reference"), "held-out prompts"),
        (
            "gold reward",
            of.get("gold_reward"),
            of.get("gold_reward_reference"),
            "unseen in training",
        ),
        ("KL", of.get("kl"), None, "nats per response"),
        ("length", of.get("response_length"), None, "tokens per response"),
        ("EOS rate", of.get("eos_rate"), None, "end by themselves"),
        ("trained on", run.tokens or None, None, "response tokens"),
        ("speed", of.get("tokens_per_second"), None, "tokens per second"),
    ]
    return [
        {"name": name, "value": value, "before": before, "unit": unit}
        for name, value, before, unit in items
        if value is not None
    ]


def _scale(run: RunFiles) -> dict[str, Any] | None:
    """Places on the scale from J of the untrained model to the optimum, in per cent of its width.

    The two ends of the drawn line lie a little beyond everything that stands on it.
    """
    of = run.summary
    optimum = of.get("optimum", of.get("optimum_lower_bound"))
    reference, reached = of.get("objective_reference"), of.get("objective")
    if optimum is None or reference is None or reached is None:
        return None
    marks = {"reference": reference, "J": reached, "optimum": optimum}
    interval = of.get("optimum_interval") or [optimum, optimum]
    low, high = min(*marks.values(), *interval), max(*marks.values(), *interval)
    if not high > low:
        return None

    def place(value: float) -> float:
        return round(4 + 92 * (value - low) / (high - low), 2)

    return {
        "marks": {name: {"value": value, "at": place(value)} for name, value in marks.items()},
        "interval": [place(value) for value in interval],
        "is_exact": of.get("optimum") is not None,
        "fraction": of.get("objective_fraction"),
        "fraction_interval": of.get("fraction_interval"),
    }


_COMPARED = ("objective", "objective_fraction", "score", "gold_reward", "kl")


def _comparison(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The numbers of every run, and of each group their mean and range."""
    compared = []
    for group in groups:
        rows = [
            {
                "run": run,
                "numbers": [run.summary.get(name) for name in _COMPARED],
                "met": [f for f in judge(evidence_of(run), RULES) if f.answer and f.answer.holds],
            }
            for run in group.runs
        ]
        columns = zip(*(row["numbers"] for row in rows), strict=True)
        ranges = [_range([v for v in column if v is not None]) for column in columns]
        compared.append({"label": group.label, "runs": rows, "ranges": ranges})
    return compared


def _range(values: list[float]) -> dict[str, float] | None:
    """Mean, least and greatest; None where there is none."""
    if not values:
        return None
    return {"mean": sum(values) / len(values), "low": min(values), "high": max(values)}


def _settings(runs: Sequence[RunFiles]) -> dict[str, list[tuple[str, list[str]]]]:
    """Settings that differ between the runs, and those that are the same in all."""
    names = list(dict.fromkeys(name for run in runs for name in run.config))
    rows = [(name, [_setting(run.config.get(name)) for run in runs]) for name in names]
    return {
        "differing": [row for row in rows if len(set(row[1])) > 1],
        "same": [row for row in rows if len(set(row[1])) == 1],
    }


def _setting(value: Any) -> str:
    return "—" if value is None else str(value)


def number(value: Any, digits: int = 3) -> str:
    """A number for a table: significant digits, a minus that is one, a dash for none."""
    if value is None:
        return "—"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:#.{digits}g}".rstrip(".").replace("-", "−")
