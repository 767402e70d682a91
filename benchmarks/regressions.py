"""Comparing ratios with recorded ones: what has become slower, and what to say about it.

Every ratio is oriented so that higher is better. Nothing here measures: a ratio comes from a
function, which is asked a second time where the first answer falls short. Ratios differ between
processors by more than a loss that should be caught, so the file has a record for each processor
that was measured, and now is compared with that of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reporting import Row

__all__ = [
    "TOLERANCE",
    "Comparison",
    "compare",
    "failures",
    "load",
    "ratios_for",
    "rows",
    "write",
]

TOLERANCE = 0.25
"""How far below the recorded ratio the one of now may lie, as a share of it."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One ratio, now and as it was recorded.

    Attributes:
        what: its name.
        recorded: None where the file has none of this name.
        tries: what was measured now, one or two; none where the file has a ratio of this name and
            the benchmark has not.
    """

    what: str
    recorded: float | None
    tries: tuple[float, ...]

    @property
    def now(self) -> float | None:
        """The better of the tries: a busy machine makes a ratio worse more often than better."""
        return max(self.tries, default=None)

    @property
    def relative(self) -> float | None:
        """The ratio of now over the recorded one."""
        if self.now is None or self.recorded is None:
            return None
        return self.now / self.recorded

    @property
    def has_failed(self) -> bool:
        """Whether it falls more than `TOLERANCE` short, or has nothing to be compared with."""
        return self.relative is None or self.relative < 1 - TOLERANCE

    @property
    def verdict(self) -> str:
        """In a word or two, for a table."""
        if self.recorded is None:
            return "not recorded"
        if self.now is None:
            return "not measured"
        if self.has_failed:
            return f"too slow, in both of {len(self.tries)} tries"
        return "ok" if len(self.tries) == 1 else f"ok; the first try gave {self.tries[0]:.3g}"

    def sentence(self, look_at: str) -> str:
        """What is wrong and what to do; `look_at` is the command that shows where time goes."""
        anew = "record the ratios anew with `python benchmarks/bench_quick.py --record`"
        if self.recorded is None:
            return f"{self.what} is measured but not recorded, so nothing guards it: {anew}."
        if self.now is None:
            return (
                f"{self.what} is recorded but no longer measured: put its measurement back into "
                f"benchmarks/bench_quick.py, or, where it was dropped on purpose, {anew}."
            )
        assert self.relative is not None
        tries = " and ".join(f"{found:.3g}" for found in self.tries)
        return (
            f"{self.what} fell {1 - self.relative:.0%} short of the recorded {self.recorded:.3g}, "
            f"more than the {TOLERANCE:.0%} allowed (measured twice: {tries}). `{look_at}` shows "
            f"where the time goes; where the loss is the price of something wanted, {anew} and "
            "give the reason in the commit."
        )


def compare(
    recorded: Mapping[str, float], measures: Mapping[str, Callable[[], float]]
) -> list[Comparison]:
    """Measure every ratio, and a second time what falls short at the first.

    Args:
        recorded: name → ratio.
        measures: name → a function that measures it.

    Returns:
        One comparison per name of either, in the order of `measures`.
    """
    found = []
    for what, measure in measures.items():
        compared = Comparison(what, recorded.get(what), (measure(),))
        if compared.recorded is not None and compared.has_failed:
            compared = Comparison(what, compared.recorded, (*compared.tries, measure()))
        found.append(compared)
    gone = [what for what in recorded if what not in measures]
    return [*found, *(Comparison(what, recorded[what], ()) for what in gone)]


def failures(compared: Sequence[Comparison], look_at: Mapping[str, str]) -> list[str]:
    """A sentence for each comparison that has failed; `look_at` as in `Comparison.sentence`."""
    return [c.sentence(look_at.get(c.what, "make bench")) for c in compared if c.has_failed]


def rows(compared: Sequence[Comparison], table: str) -> list[Row]:
    """The table's rows."""
    return [
        {
            "table": table,
            "what": c.what,
            "recorded": "–" if c.recorded is None else c.recorded,
            "now": "–" if c.now is None else c.now,
            "now/recorded": "–" if c.relative is None else c.relative,
            "verdict": c.verdict,
        }
        for c in compared
    ]


# The file ----------------------------------------------------------------------------------------


def load(path: Path) -> dict[str, dict[str, float]]:
    """The records that `write` left in `path`: processor → name → ratio.

    Raises:
        ValueError: there is no such file, or no ratios in it.
    """
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist: write it with `python benchmarks/bench_quick.py --record`."
        )
    try:
        records = json.loads(path.read_text(encoding="utf-8"))["processors"]
        found = {
            str(processor): {str(w): _positive(r) for w, r in record["ratios"].items()}
            for processor, record in records.items()
        }
        return found or _refuse("no processor")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f'{path} holds no {{"processors": {{name: {{"setting": …, "ratios": {{name: positive '
            f"number}}}}}}}} ({error!r}): write it anew with `python benchmarks/bench_quick.py "
            "--record`."
        ) from error


def ratios_for(records: Mapping[str, Mapping[str, float]], processor: str) -> dict[str, float]:
    """What to compare with on `processor`: its own record; where that has no ratio, the lowest.

    A ratio that was never measured on a processor passes where any recorded one would; a loss
    between the records shows on those processors only.
    """
    names = dict.fromkeys(what for record in records.values() for what in record)
    lowest = {
        what: min(record[what] for record in records.values() if what in record) for what in names
    }
    return {**lowest, **records.get(processor, {})}


def _positive(ratio: Any) -> float:
    return float(ratio) if float(ratio) > 0 else _refuse(f"{ratio} is no positive number")


def _refuse(reason: str) -> Any:
    raise ValueError(reason)


def write(
    path: Path, ratios: Mapping[str, float], setting: Mapping[str, Any], processor: str
) -> None:
    """Write the record of `processor`, ratios to three digits; those of others stay.

    Args:
        path: of the file; it is made where it does not exist.
        ratios: name → ratio.
        setting: what they were measured with.
        processor: as `reporting.processor` names it.
    """
    records = {}
    if path.is_file():
        records = json.loads(path.read_text(encoding="utf-8")).get("processors", {})
    rounded = {what: float(f"{ratio:.3g}") for what, ratio in ratios.items()}
    records[processor] = {"setting": dict(setting), "ratios": rounded}
    text = json.dumps({"processors": records}, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
