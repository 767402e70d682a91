"""Files of token tables: `runs/NAME/tokens/STEP.jsonl`, written whole and read with every check.

The first line is the header, each further line a response with one list per column, and the last
line says that the file is complete. Needs no torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.atomic_files import whole_file
from agents.credit.checks import check_header, check_response
from agents.credit.columns import COLUMNS, SCHEMA, TOP, WHOLE_COLUMNS
from tokenenv.json_files import parse_json, read_lines

__all__ = ["FOLDER", "TokenFile", "read_tokens", "token_files", "write_tokens"]

FOLDER = "tokens"
"""Folder of a run with its files."""

_DIGITS = 9
"""Significant digits of a number in a file: float32 comes back as it was."""

_EMPTY: dict[str, Any] = {"top_tokens": -1, "top_texts": "", "top_probs": math.nan}
"""What fills up rows with fewer than `TOP` alternatives."""


@dataclass(frozen=True)
class TokenFile:
    """The token tables of one step.

    Axes: `n` tokens of all responses, one response after another.

    Attributes:
        path: the file.
        header: its first line: step, estimator, γ, λ, β, whitening, meanings of the columns, ….
        responses: what belongs to a whole response, in the order of the file: kind, index, prompt,
            response, score, gold_reward, finish_reason, bootstrap_value, uniform; and `tokens`,
            how many it has.
        arrays: column → (n,) array: int64 for `position` and `token`, object for texts and `clip`
            (None: null), float64 for all others (NaN: null); (n, TOP) for `top_tokens` (−1),
            `top_texts` ("") and `top_probs` (NaN), with what fills up where there are fewer. And
            `response`: which of `responses` the token belongs to.
    """

    path: Path
    header: dict[str, Any]
    responses: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]

    @property
    def step(self) -> int:
        """Response tokens that were trained on before."""
        return int(self.header["step"])

    def columns_of(self, response: int) -> dict[str, np.ndarray]:
        """The columns of one response.

        Args:
            response: its place in `responses`.
        """
        is_of_it = self.arrays["response"] == response
        return {name: values[is_of_it] for name, values in self.arrays.items()}

    def to_pandas(self) -> Any:
        """The columns as a `pandas.DataFrame`, with kind, index and score of the response.

        Raises:
            ValueError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise ValueError(
                "to_pandas() needs pandas, which is not installed: pip install pandas, or use "
                "`arrays`, which has the same columns."
            ) from None
        whole = [self.responses[i] for i in self.arrays["response"]]
        about = {name: [of[name] for of in whole] for name in ("kind", "index", "score")}
        flat = {
            name: list(values) if values.ndim > 1 else values
            for name, values in self.arrays.items()
        }
        return pandas.DataFrame({**about, **flat})


def token_files(run: Path) -> dict[int, Path]:
    """Step → file, of all steps whose token tables a run has, in order; unread.

    Args:
        run: a run's folder.
    """
    folder = run / FOLDER
    paths = folder.iterdir() if folder.is_dir() else []
    steps = {int(path.stem): path for path in paths if re.fullmatch(r"\d{1,18}\.jsonl", path.name)}
    return dict(sorted(steps.items()))


def read_tokens(path: Path | str, step: int | None = None) -> TokenFile:
    """The token tables of one step of a run.

    Args:
        path: a run's folder, or one of the files in its `tokens/`.
        step: of a run's folder, which step: response tokens trained on; None for the last one.

    Raises:
        ValueError: there is no run, it has no token tables or none of that step; the file is of
            another version, incomplete, or not as `agents/credit/columns.py` says.
        OSError: it can't be read.
    """
    path = Path(path)
    if path.is_dir():
        return _read_file(_file_of(path, step))
    if step is not None:
        raise ValueError(
            f"step={step!r} chooses one of a run's files, and {str(path)!r} is no run's folder: "
            "leave step out, or give the folder."
        )
    if not path.exists():
        raise ValueError(
            f"{str(path)!r} does not exist: give a run's folder or one of the files in its "
            f"{FOLDER}/."
        )
    return _read_file(path)


def _file_of(run: Path, step: int | None) -> Path:
    files = token_files(run)
    if not files:
        if not (run / "config.json").is_file():
            raise ValueError(
                f"{str(run)!r} holds no run: config.json is missing. Give the folder that "
                "`tokenrlhf train` has written."
            )
        raise ValueError(
            f"the run in {str(run)!r} has no token tables: {FOLDER}/ is missing or empty. They "
            "are written during training: make the run again, with --explain-every 1 or more."
        )
    if step is None:
        return files[max(files)]
    if step not in files:
        raise ValueError(
            f"the run in {str(run)!r} has no token tables of step {step!r}; it has those of "
            f"{', '.join(map(str, files))}."
        )
    return files[step]


def _read_file(path: Path) -> TokenFile:
    lines = read_lines(path)
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise _incomplete(path)
    header = _object(lines[0], f"{path}, line 1", len(lines) == 1, path)
    check_header(header, f"{path}, line 1")
    end = _object(lines[-1], f"{path}, line {len(lines)}", True, path)
    if len(lines) == 1 or end.get("end") is not True:
        raise _incomplete(path)
    names = frozenset(header["columns"])
    responses, columns, lengths = [], [], []
    for number, line in enumerate(lines[1:-1], 2):
        where = f"{path}, line {number}"
        response = _object(line, where, False, path)
        lengths.append(check_response(response, names, where))
        columns.append(response.pop("columns"))
        responses.append({**response, "tokens": lengths[-1]})
    counted = {"responses": len(responses), "tokens": sum(lengths)}
    for name, count in counted.items():
        if end.get(name) != count:
            raise ValueError(
                f"{path}: the last line says {name}={end.get(name)!r:.40}, and there are {count}: "
                "lines were lost or added. Make the run again."
            )
    if not responses:
        raise ValueError(f"{path}: there is no response in it.")
    arrays = {name: _array(name, [of[name] for of in columns]) for name in header["columns"]}
    arrays["response"] = np.repeat(np.arange(len(responses)), lengths)
    return TokenFile(path, header, responses, arrays)


def _object(line: str, where: str, may_be_cut: bool, path: Path) -> dict[str, Any]:
    """The JSON object of a line; where a writer may have been stopped in it, broken is cut."""
    try:
        value = parse_json(line, where)
    except ValueError:
        if may_be_cut:
            raise _incomplete(path) from None
        raise
    if not isinstance(value, dict):
        raise ValueError(f"{where}: needs a JSON object, got {value!r:.80}.")
    return value


def _incomplete(path: Path) -> ValueError:
    return ValueError(
        f"{path} is incomplete: its last line, which says that it is whole, is missing. It was cut "
        "off while it was written or copied: copy it again, or make the run again."
    )


def _array(name: str, parts: list[list[Any]]) -> np.ndarray:
    """The entries of all responses under one another."""
    entries = [entry for part in parts for entry in part]
    if name in WHOLE_COLUMNS:
        filled = [entry + [_EMPTY[name]] * (TOP - len(entry)) for entry in entries]
        filled = [[_EMPTY[name] if v is None else v for v in entry] for entry in filled]
        kind: Any = {"top_tokens": np.int64, "top_texts": object}.get(name, np.float64)
        return np.array(filled, dtype=kind).reshape(-1, TOP)
    if name in ("position", "token"):
        return np.array(entries, dtype=np.int64)
    if name in ("text", "clip") or any(isinstance(entry, str) for entry in entries):
        return np.array(entries, dtype=object)
    return np.array(entries, dtype=np.float64)  # None becomes NaN


def write_tokens(
    path: Path, header: Mapping[str, Any], responses: Iterable[Mapping[str, Any]]
) -> None:
    """Write the token tables of one step, whole or not at all.

    Numbers get nine significant digits, with which float32 comes back as it was; NaN and infinities
    become null. What could not be read again is refused.

    Args:
        path: the file; folders above it are made.
        header: its fields; `schema`, `kind` and the meanings of the columns are added where they
            are missing.
        responses: their fields, with `columns`: name → list or array, one entry per token.

    Raises:
        ValueError: a column has another length than the others, or a field is wrong or missing.
        OSError: it can't be written.
    """
    meanings = {**COLUMNS, **WHOLE_COLUMNS}
    first = _plain({"schema": SCHEMA, "kind": "tokens", "columns": meanings, **header})
    check_header(first, f"{path}, header")
    names, lines, tokens = frozenset(first["columns"]), [json.dumps(first)], 0
    for number, response in enumerate(responses):
        plain = _plain(response)
        tokens += check_response(plain, names, f"{path}, response {number}")
        lines.append(json.dumps(plain))
    if len(lines) == 1:
        raise ValueError(f"{path}: a file of token tables needs at least one response, got none.")
    lines.append(json.dumps({"end": True, "responses": len(lines) - 1, "tokens": tokens}))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """`value` with Python's types, numbers rounded to `_DIGITS`, None for what is not finite."""
    if isinstance(value, float):  # the most frequent first: there may be a million of them
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return value
