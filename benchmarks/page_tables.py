"""The results of the steps of `page_steps.py` as tables in Markdown, and into the page."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench_hacking import BY_REMEDY, WATCHED
from bench_labels import CORRELATION, GROUPS
from hacking_runs import KL_TARGET, REMEDIES, TOKEN_COST
from page_steps import Step

__all__ = ["TABLES", "fill_page", "markdown", "tables_of"]

FIGURES = {
    **{name: name for name in ("best_of_n.png", "reward_audit.png", "gold_against_proxy.png")},
    "reward_models.png": "reward_models.png",
    "reward_refresh.png": "reward_refresh.png",
    "labels_curve.png": "labels/curve.png",
}
"""Figure of the page → file in the folder of the results."""


TABLES = (
    *("models-correlations", "models-groups", "hacking-alarms", "hacking-remedies"),
    *("labels-curve", "labels-select", "refresh", "best-of-n-exact", "best-of-n-reviews", "audit"),
)
"""Names of all tables: the page has a place for each."""

WORDS = {
    "length penalty": f"length penalty of {TOKEN_COST:g} a token",
    "KL target, adaptive": f"KL target of {KL_TARGET:g} nats, adaptive",
    "KL target, dual": f"KL target of {KL_TARGET:g} nats, dual",
    "score clipped": f"score clipped to ± {REMEDIES['score clipped'].settings['score_clip']:g}",
    "ensemble, mean": "three models, mean",
    "ensemble, min": "three models, the worst",
    "ensemble, uncertainty": "three models, mean − deviation",
    "monitor raises beta": "the monitor raises β",
}
"""Remedy of `hacking_runs.py` → what it is on the page; others are named as there."""


def tables_of(out: Path, steps: Sequence[Step]) -> dict[str, str]:
    """Name → table in Markdown, of the steps that are whole.

    Args:
        out: folder of the results.
        steps: those that are whole.
    """
    makers: dict[str, Callable[[Any], Mapping[str, str]]] = {
        "models": _of_models,
        "hacking-table": _of_hacking,
        "refresh": _of_refresh,
        "labels-curve": _of_curve,
        "labels-select": _of_selection,
        "best-of-n-exact": _of_exact,
        "best-of-n-reviews": _of_samples,
        "audit": _of_audit,
    }
    tables: dict[str, str] = {}
    for step in steps:
        if step.name in makers:
            (file,) = (name for name in step.makes if name.endswith(".json"))
            found = json.loads((out / file).read_text(encoding="utf-8"))
            tables |= makers[step.name](found)
    return {name: tables[name] for name in TABLES if name in tables}


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table.

    Args:
        headers: of its columns.
        rows: cells.
    """
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '∣') for cell in line)} |" for line in lines)


def fill_page(page: Path, tables: Mapping[str, str], out: Path) -> list[str]:
    """Put tables between their comments in a page, and the figures that it shows beside it.

    Args:
        page: with a line `<!-- table: NAME -->` and one `<!-- end of table: NAME -->` for each, and
            `<!-- figure: FILE: WORDS -->` where a figure is to come.
        tables: of `tables_of`.
        out: folder of the results.

    Returns:
        What was done, in sentences.
    """
    text, said = page.read_text(encoding="utf-8"), []
    for name, table in tables.items():
        ends = [f"<!-- {kind}: {name} -->" for kind in ("table", "end of table")]
        place = re.compile(f"(?<={re.escape(ends[0])}\n).*?(?={re.escape(ends[1])})", re.DOTALL)
        text, count = place.subn(lambda _, table=table: f"\n{table}\n\n", text, count=1)
        said.append(f"{page}: table {name}" if count else f"{page} has no place for {name}")
    for figure, file in FIGURES.items():
        if (out / file).is_file():
            place = re.compile(f"<!-- figure: {re.escape(figure)}: (.*?) -->")
            text = place.sub(rf"![\1]({figure})", text)
            if f"]({figure})" in text:
                shutil.copyfile(out / file, page.parent / figure)
                said.append(f"{page.parent / figure}: drawn")
    page.write_text(text, encoding="utf-8")
    return said


# Of each step -------------------------------------------------------------------------------------


def _of_models(found: Mapping[str, Any]) -> dict[str, str]:
    """What says how good a policy becomes: a row for each property of reward models; and groups."""
    by_cell: dict[str, dict[str, str]] = {}
    for row in _titled(found, CORRELATION):
        of_model, _, measured = str(row["what"]).partition(" and ")
        low, high = str(row["95 % interval"]).split(" to ")
        cell = _minus(f"{row['Spearman']} ({low} … {high})")
        by_cell.setdefault(of_model, {})[measured] = cell
    headers = list(next(iter(by_cell.values())))
    rows = [[name, *(cells[header] for header in headers)] for name, cells in by_cell.items()]
    groups = _titled(found, GROUPS)
    columns = [name for name in groups[0] if name not in ("table", "what")]
    return {
        "models-correlations": markdown(
            ["rank correlation of", *(f"with {h}" for h in headers)], rows
        ),
        "models-groups": markdown(
            ["reward models, by accuracy", *columns],
            [[row["what"], *(_cell(row[name]) for name in columns)] for row in groups],
        ),
    }


def _of_hacking(found: Mapping[str, Any]) -> dict[str, str]:
    """How many runs of each kind were noticed when; gold by remedy, the weak model's."""
    rows = []
    for model in ("weak", "middling", "good"):
        for remedy, words in WATCHED.items():
            runs = [row for row in _titled(found, words) if row["what"] == model]
            verdicts = [row["verdict"] for row in runs]
            lost = [v for v in verdicts if v in ("in time", "late", "missed")]
            if runs:
                name = model if remedy == "none" else f"{model}, three of them, their mean"
                counts = [str(verdicts.count(v)) for v in ("in time", "late", "missed")]
                alone = f"{verdicts.count('alarm, nothing lost')} of {len(runs) - len(lost)}"
                rows.append([name, f"{len(lost)} of {len(runs)}", *counts, alone])
    headers = ["reward model", "gold lost", "alarm by then", "later", "none"]
    tables = {"hacking-alarms": markdown([*headers, "alarm, and nothing lost"], rows)}
    remedies = [row for row in _titled(found, BY_REMEDY) if row["what"].startswith("weak: ")]
    if remedies:
        first, *others = remedies
        others.sort(key=lambda row: -float(str(row["final − none"]).split()[0]))
        rows = []
        for row in (first, *others):
            name = str(row["what"]).removeprefix("weak: ")
            cells = [row["best gold"], row["final gold"], row["final − none"], row["KL"]]
            rows.append([WORDS.get(name, name), str(row["seeds"]), *map(_cell, cells)])
        headers = ["remedy", "seeds", "best gold", "gold at the end", "more than without", "KL"]
        tables["hacking-remedies"] = markdown(headers, rows)
    return tables


def _titled(found: Mapping[str, Any], beginning: str) -> list[dict[str, Any]]:
    """The rows of a benchmark whose table's title begins so."""
    return [row for row in found["rows"] if row["table"].startswith(beginning)]


def _of_refresh(found: Mapping[str, Any]) -> dict[str, str]:
    """The means over seeds alone; of one seed, that."""
    means = [row for row in found["rows"] if str(row["seed"]).startswith("all ")]
    parts = [name for name in found["rows"][0] if name.startswith("part ")]
    headers = [
        "",
        *(f"accuracy, {name} of {len(parts)}" for name in parts),
        "gold at the end",
        "KL",
    ]
    rows = []
    for row in means or found["rows"]:
        labels = f", {row['fresh labels']} labels in all" if row["what"] == "refreshed" else ""
        numbers = [_cell(row[name]) for name in (*parts, "final gold", "KL")]
        rows.append([row["what"] + labels, *numbers])
    return {"refresh": markdown(headers, rows)}


def _of_curve(found: Mapping[str, Any]) -> dict[str, str]:
    headers = ["pairs", "accuracy", "95 %"]
    named = {"gold": "gold", "score": "score", "kl": "KL", "gold_objective": "J of gold"}
    rows = []
    for row in found["sizes"]:
        cells = [f"{row['size']:,}", _number(row["accuracy"]), _ends(row["accuracy_interval"])]
        if "policy" in row:
            of = row["policy"]
            cells += [_number(of["gold"]["mean"]), _ends(of["gold"]["interval"])]
            cells += [_number(of[name]["mean"]) for name in list(named)[1:]]
        rows.append(cells)
    if any("policy" in row for row in found["sizes"]):
        headers += ["gold after PPO", "95 %", *list(named.values())[1:]]
    return {"labels-curve": markdown(headers, rows)}


def _of_selection(found: Mapping[str, Any]) -> dict[str, str]:
    summary, rows = found["summary"], []
    for name, value in summary["accuracy"].items():
        less = summary["selected_less"].get(name)
        difference = ["", ""] if less is None else [_signed(less["mean"]), _ends(less["interval"])]
        rows.append(
            [
                name.replace("_", " "),
                _number(value["mean"]),
                _ends(value["interval"]),
                *difference,
            ]
        )
    headers = ["trained on", "accuracy", "95 %", "selected − this", "95 %"]
    return {"labels-select": f"{markdown(headers, rows)}\n\n{summary['verdict'].capitalize()}."}


def _of_exact(found: Mapping[str, Any]) -> dict[str, str]:
    headers = ["n", "E[R]", "gold", "KL", "log n − (n − 1)/n", "J", "of J\\*", "β′"]
    headers += ["E[R] of π\\*_β′", "J of π\\*_β′"]
    rows = []
    for row in _standings(found):
        tilted, share = row["tilted"], row["objective_fraction"]
        numbers = [row[n] for n in ("score", "gold_reward", "kl", "kl_upper_bound", "objective")]
        rows.append(
            [
                "PPO" if row["n"] is None else f"{row['n']:,}",
                *map(_number, numbers),
                "" if share is None else f"{100 * share:.1f}%".replace("-", "−"),
                "∞" if tilted["kl_coef"] is None else _number(tilted["kl_coef"]),
                *(_number(tilted[name]) for name in ("score", "objective")),
            ]
        )
    return {"best-of-n-exact": markdown(headers, rows)}


def _of_samples(found: Mapping[str, Any]) -> dict[str, str]:
    headers = ["n", "E[R]", "95 %", "gold", "95 %", "KL ≤", "J ≥", "E[R] of π\\*_β′ ≥"]
    rows = []
    for row in _standings(found):
        ends = row["intervals"]
        rows.append(
            [
                f"{row['n']:,}",
                *(_number(row["score"]), _ends(ends.get("score"))),
                *(_number(row["gold_reward"]), _ends(ends.get("gold_reward"))),
                _number(row["kl_upper_bound"] if row["kl"] is None else row["kl"]),
                *(_number(row["objective"]), _number(row["tilted"]["score"])),
            ]
        )
    return {"best-of-n-reviews": markdown(headers, rows)}


def _standings(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*found["rows"], *([found["policy"]] if found["policy"] else [])]


def _of_audit(found: Mapping[str, Any]) -> dict[str, str]:
    rows = [
        ["rank correlation of score and gold", _number(found["score"]["correlation_with_gold"])]
    ]
    for one in found["features"]:
        if one["correlation"] is not None:
            what = f"ρ with {one['feature'].replace('_', ' ')}, gold held fixed"
            rows.append([what, _band(one["correlation"])])
    still = [one["feature"] for one in found["features"] if one["correlation"] is None]
    if still:
        rows.append(["features that hardly vary", ", ".join(still).replace("_", " ")])
    rows += [[f"shift by {one['what']}", _band(one["shift"])] for one in found["probes"]]
    largest = max(one["in_deviations"] for one in found["invariances"])
    rows.append(["largest difference when scored again", f"{_power(largest)} deviations"])
    said = [verdict["said"] for verdict in found["verdicts"]] + found["faults"]
    rows.append(["verdicts, faults", "; ".join(said) or "none, none"])
    return {"audit": markdown(["asked", "found"], rows)}


# Numbers ------------------------------------------------------------------------------------------


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _minus(str(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}".replace("-", "−")


def _minus(text: str) -> str:
    """Numbers with a minus for a hyphen."""
    return re.sub(r"(?<![\w.])-(?=\d)", "−", text)


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else _minus(f"{round(value, 3) + 0.0:.3f}")


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _ends(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{_number(interval[0])} … {_number(interval[1])}"


def _power(value: float) -> str:
    """One digit and a power of ten: 4·10⁻⁷."""
    digit, exponent = f"{value:.0e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{digit}·10{raised}" if value else "0"


def _band(band: Mapping[str, float] | None) -> str:
    if band is None:
        return "too few"
    low, high = (f"{band[name]:+.2f}".replace("-", "−") for name in ("low", "high"))
    return f"{band['value']:+.2f} ({low} … {high})".replace("-", "−")
