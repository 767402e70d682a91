"""The file of pairs: rows that are drawn, then labelled, in several calls if need be.

A row is `{"id", "prompt", "response_a", "response_b", "label", "finish_a", "finish_b", …}`. The
label is `"a"`, `"b"`, `"tie"`, or null where nobody has labelled it yet; `reward-model` reads the
rows as they are, and refuses those without a label.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.atomic_files import append_lines, json_text, whole_file
from tokenenv.data import Message, as_prompt, is_messages, preference_of
from tokenenv.json_files import parse_json

__all__ = ["LABELS", "PairFile", "PairRow"]

LABELS = ("a", "b", "tie")

_TEXTS = ("id", "response_a", "response_b")
_FINISHES = ("stop", "length")
_KINDS: dict[str, tuple[type, ...]] = {
    "skipped": (bool,),
    "labelled_by": (str,),
    **dict.fromkeys(("reward_a", "reward_b"), (int, float)),
    **dict.fromkeys(("drawn", "selected"), (dict,)),
}
"""Fields that need not be there → types of their values."""


@dataclass(frozen=True, slots=True)
class PairRow:
    """A pair, and its label if it has one.

    Attributes:
        id: number of the prompt, a hyphen, number of the pair.
        prompt: a text, or messages.
        response_a: text.
        response_b: text.
        finish_a: `"stop"` where it ended with EOS, `"length"` where it ran out of room.
        finish_b: likewise.
        label: one of `LABELS`, or None.
        labelled_by: `"reward"`, `"file"`, `"person"`, or `"identical"` for two equal texts.
        skipped: whether a person did not want to decide.
        reward_a: of response a, where a reward has labelled it.
        reward_b: likewise.
        drawn: by which model the responses were drawn, and how.
        selected: why `labels select` has chosen it for labelling, and among which.
    """

    id: str
    prompt: str | tuple[Message, ...]
    response_a: str
    response_b: str
    finish_a: str
    finish_b: str
    label: str | None = None
    labelled_by: str | None = None
    skipped: bool = False
    reward_a: float | None = None
    reward_b: float | None = None
    drawn: dict[str, Any] | None = None
    selected: dict[str, Any] | None = None

    @property
    def is_open(self) -> bool:
        """Whether it waits for a label."""
        return self.label is None and not self.skipped

    def labelled(self, label: str | None, by: str | None, **more: Any) -> PairRow:
        """The row with a label; None takes it away."""
        return dataclasses.replace(self, label=label, labelled_by=by, **more)

    def as_json(self) -> str:
        """Its line in the file; what is not known is left out, but for the label."""
        content = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if not isinstance(self.prompt, str):
            content["prompt"] = [dict(message) for message in self.prompt]
        is_said = {
            name for name, value in content.items() if value is not None and value is not False
        }
        return json_text({name: content[name] for name in content if name in is_said | {"label"}})


class PairFile:
    """A file of pairs; one process at a time writes into it, which `locked` sees to.

    Args:
        path: the file, which need not be there.
        replaces: whether what is in it is left alone until the first new rows take its place.
        option: the option that named it, for messages.

    Attributes:
        rows: the pairs.

    Raises:
        ValueError: the place is none for a file, or the file holds something else.
    """

    def __init__(self, path: str | Path, replaces: bool = False, option: str = "out") -> None:
        self.path = path = _checked(Path(path), option)
        self.rows = list(_read(path, option)) if path.exists() and not replaces else []

    @classmethod
    @contextlib.contextmanager
    def locked(
        cls, path: str | Path, replaces: bool = False, option: str = "out"
    ) -> Iterator[PairFile]:
        """The file, read when no other process can write into it any more.

        Args:
            path: as of the class.
            replaces: likewise.
            option: likewise.

        Raises:
            ValueError: another process has it, or as of the class.
        """
        path = _checked(Path(path), option)
        lock = path.with_name(f".{path.name}.lock")
        with lock.open("a") as descriptor:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"{option}={str(path)!r} is being written by another process: wait for its "
                    "end, or choose another file."
                ) from error
            except OSError:  # a file system without locks
                pass
            try:
                yield cls(path, replaces, option)
            finally:
                with contextlib.suppress(OSError):
                    lock.unlink()

    def append(self, rows: Sequence[PairRow]) -> None:
        """Add rows in one write: all of them or none."""
        if self.rows:
            append_lines(self.path, [row.as_json() for row in rows])
            self.rows.extend(rows)
        else:
            self.rows = list(rows)
            self.save()

    def save(self) -> None:
        """Write all rows, in the place of the old file."""
        with whole_file(self.path) as temporary:
            temporary.write_text("".join(f"{row.as_json()}\n" for row in self.rows), "utf-8")

    def label(self, index: int, row: PairRow) -> None:
        """Put a labelled row in the place of the one that was there, and write it at once."""
        self.rows[index] = row
        self.save()

    def counts(self) -> dict[str, int]:
        """What the labels are → how many: `a`, `b`, `tie`, `skipped`, `open`."""
        counts = {label: sum(row.label == label for row in self.rows) for label in LABELS}
        counts["skipped"] = sum(row.label is None and row.skipped for row in self.rows)
        counts["open"] = sum(row.is_open for row in self.rows)
        return counts


def _checked(path: Path, option: str) -> Path:
    """The path; ValueError where no file can be there."""
    if "\0" in str(path):
        raise ValueError(f"{option}={str(path)!r:.60} holds a NUL: give the name of a file.")
    if path.is_dir():
        raise ValueError(f"{option}={str(path)!r} is a folder: give the name of a file.")
    if path.exists() and not path.is_file():
        raise ValueError(f"{option}={str(path)!r} is no plain file: give the name of one.")
    return path


def _read(path: Path, option: str) -> Iterator[PairRow]:
    try:
        # Not `splitlines`: U+2028 and U+0085 end no line of JSON Lines, and texts may hold them.
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(_of_another_kind(path, option, 1, "it is no UTF-8")) from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield _row(parse_json(line, "the row"))
            except ValueError as error:
                raise ValueError(_of_another_kind(path, option, number, str(error))) from error


def _of_another_kind(path: Path, option: str, number: int, why: str) -> str:
    way_out = {
        "out": "choose another file, or pass --overwrite",
        "file": "choose another file",
    }.get(option, "mend that line, or take back what was changed")
    return (
        f"{option}={str(path)!r}, line {number}: {why.rstrip('.')[:200]}. It is no file that "
        f"sample-pairs wrote and can go on with: {way_out}."
    )


def _row(content: Any) -> PairRow:
    if not isinstance(content, dict):
        raise ValueError("it is no object")
    for name in _TEXTS:
        if not isinstance(content.get(name), str):
            raise ValueError(f"the field {name!r} is {content.get(name)!r:.60}, not a text")
    prompt = content.get("prompt")
    if not isinstance(prompt, str):
        prompt = as_prompt(prompt, "the field 'prompt'").content if is_messages(prompt) else None
    if prompt is None:
        raise ValueError(
            f"the field 'prompt' is {content.get('prompt')!r:.60}, neither text nor messages"
        )
    for name in ("finish_a", "finish_b"):
        if content.get(name) not in _FINISHES:
            raise ValueError(f"the field {name!r} is {content.get(name)!r:.60}")
    for name, kinds in _KINDS.items():
        value = content.get(name)
        is_bool = isinstance(value, bool) and bool not in kinds
        if value is not None and (is_bool or not isinstance(value, kinds)):
            raise ValueError(f"the field {name!r} is {value!r:.60}")
    known = {field.name for field in dataclasses.fields(PairRow)}
    values = {name: value for name, value in content.items() if name in known}
    label = content.get("label")
    return PairRow(**{**values, "prompt": prompt, "label": as_label(label)})


def as_label(value: Any) -> str | None:
    """`"a"`, `"b"` or `"tie"` for what stands for it in any case; None for nothing or a blank.

    Raises:
        ValueError: it stands for none of them.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return {1.0: "a", 0.0: "b", 0.5: "tie"}[preference_of(value, "label")]
