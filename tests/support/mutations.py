"""Files that were cut, flipped or edited, and whether a reader's answer to them is right."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from support.hostile import is_an_answer, time_limit

__all__ = [
    "Kind",
    "Mutation",
    "NonsenseError",
    "check",
    "edited",
    "failures",
    "mutations",
    "require",
]

HARM = "harm-was-done"
"""A file or folder of this name is what payloads would make."""

PAYLOADS = [
    *("<script>alert(1)</script>", "</script><!--", "\x1b]0;x\x07\x1b[2J", "\u202egnp.exe"),
    *("../../../../etc/passwd", f"/tmp/../{HARM}", "file:///etc/passwd", "{{ 7*7 }}", "%s%n", "\0"),
    *(f"!!python/object/apply:os.mkdir [{HARM}]", f"$(mkdir {HARM})", "&a [*a, *a]", "<<: *x"),
    *(f"__import__('os').mkdir('{HARM}')", f"os:mkdir {HARM}", "\u2028", "\ufeff", "=1+1", "'"),
    *("1e999", "-inf", "nan", ".nan", ".inf", "0x7f", "0o17", "1_000", "~", "yes", "9" * 400),
    *("1:30", "2001-01-01", "[" * 400, "{a: " * 200, "- " * 300, "\t", "|", ">", "?", ": :", "---"),
]
"""What takes the place of a word: texts that do harm where they are believed."""

VALUES = [
    *(None, True, False, 0, -1, 1.5, 1e308, 10**20, "", "x", "\x1b[31m\u202e", [], {}, [[]]),
    *([None], {"a": {}}, -0.0, 2**63, "nan", "None"),
]
"""What takes the place of a value in a JSON file."""

RAW = [b"", b"\0" * 64, b"{", b"}", b"null", b"[]", b"\xff\xfe{}", b"[" * 100_000, b"NaN", b"1e999"]
"""What takes the place of a whole file."""

TEXTS = ["\\ud800", "\\ud83d", "\\u0000", "1e999", "NaN", "-Infinity", "9" * 400, "[" * 3000]
"""What takes the place of a value in the text of a JSON file."""

Mutation = tuple[str, Callable[[Path], None]]
"""What was done, and how to do it to a file."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


def edited(value: Any, path: tuple[Any, ...], new: Any = None, delete: bool = False) -> Any:
    """A JSON value with another value at a path, or none."""
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if delete:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return value


def writing(content: bytes) -> Callable[[Path], None]:
    """To write something else into a file."""
    return lambda file: _replace(file, content)


def _replace(file: Path, content: bytes) -> None:
    file.unlink()
    file.write_bytes(content)


def _as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def byte_mutations(original: bytes, rng: random.Random, count: int) -> list[Mutation]:
    """Bits flipped, ends cut off, pieces doubled: of any file."""
    found: list[Mutation] = [("a folder", _as_folder), ("gone", lambda file: file.unlink())]
    found += [(f"raw {raw[:8]!r}", writing(raw)) for raw in RAW]
    for _ in range(count):
        at = rng.randrange(len(original))
        kind = rng.choice(("flip", "cut", "double", "junk"))
        if kind == "flip":
            bit = 1 << rng.randrange(8)
            changed = original[:at] + bytes([original[at] ^ bit]) + original[at + 1 :]
        elif kind == "cut":
            changed = original[:at]
        elif kind == "double":
            changed = original[:at] + original[max(0, at - 20) :]
        else:
            changed = original[:at] + rng.randbytes(8) + original[at + 8 :]
        found.append((f"{kind} at {at}", writing(changed)))
    return found


def json_mutations(original: bytes, rng: random.Random, count: int) -> list[Mutation]:
    """Values of other types, keys deleted, doubled or added: of a JSON file."""
    value = json.loads(original)
    paths = list(places(value))
    found: list[Mutation] = []
    for _ in range(count):
        path = rng.choice(paths)
        kind = rng.choice(("value", "value", "value", "delete", "text", "twice"))
        if kind == "value":
            new = rng.choice(VALUES)
            content = json.dumps(edited(value, path, new))
            name = f"{path} = {new!r:.30}"
        elif kind == "delete":
            content, name = json.dumps(edited(value, path, delete=True)), f"{path} deleted"
        elif kind == "text":
            text = rng.choice(TEXTS)
            content = json.dumps(edited(value, path, "@@")).replace(
                '"@@"', f'"{text}"' if text.startswith("\\") else text
            )
            name = f"{path} = {text[:12]}"
        else:
            content = '{"a": 1, "a": 2, ' + json.dumps(value)[1:]
            name = "a key twice"
        found.append((name, writing(content.encode())))
    return found


def word_mutations(original: bytes, rng: random.Random, count: int) -> list[Mutation]:
    """Lines left out, doubled or swapped, and words replaced by payloads: of a file of text."""
    found: list[Mutation] = []
    lines = original.decode("utf-8").split("\n")
    for _ in range(count):
        at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        kind = rng.choice(("word", "word", "word", "line", "out", "twice", "swap"))
        changed = list(lines)
        if kind == "word":
            words = changed[at].split(" ")
            words[rng.randrange(len(words))] = rng.choice(PAYLOADS)
            changed[at] = " ".join(words)
        elif kind == "line":
            changed[at] = rng.choice(PAYLOADS)
        elif kind == "out":
            del changed[at]
        elif kind == "twice":
            changed.insert(other, changed[at])
        else:
            changed[at], changed[other] = changed[other], changed[at]
        found.append((f"{kind} in line {at + 1}", writing("\n".join(changed).encode())))
    return found


def row_mutations(original: bytes, rng: random.Random, count: int) -> list[Mutation]:
    """Values of other types and payloads in one row: of a file of JSON Lines."""
    found: list[Mutation] = []
    lines = original.decode("utf-8").strip("\n").split("\n")
    for _ in range(count):
        at = rng.randrange(len(lines))
        value = json.loads(lines[at])
        path = rng.choice(list(places(value)))
        new = rng.choice([*VALUES, *PAYLOADS])
        is_deletion = rng.random() < 0.2
        changed = list(lines)
        changed[at] = json.dumps(edited(value, path, new, is_deletion))
        what = "deleted" if is_deletion else f"= {new!r:.30}"
        found.append((f"line {at + 1}, {path} {what}", writing("\n".join(changed).encode())))
    return found


@dataclasses.dataclass
class Kind:
    """A kind of file, and who reads it.

    Attributes:
        root: the folder that is copied for each mutation.
        file: the file in it that is changed.
        read: reads the folder; raises where what it gave would be nonsense.
        cases: how many are changed as bytes, and as JSON.
        words: how many are changed word by word.
        rows: how many are changed row by row, of JSON Lines.
    """

    root: Path
    file: str
    read: Callable[[Path], Any]
    cases: tuple[int, int]
    words: int = 0
    rows: int = 0


class NonsenseError(Exception):
    """A file was accepted, and what was read is not what it says."""


def require(condition: bool, what: str) -> None:
    """Raise `NonsenseError` unless the condition holds."""
    if not condition:
        raise NonsenseError(what)


def mutations(kind: Kind) -> list[Mutation]:
    """Everything that is done to files of a kind."""
    rng = random.Random(f"{kind.root.name}/{kind.file}")
    original = (kind.root / kind.file).read_bytes()
    found = byte_mutations(original, rng, kind.cases[0])
    found += json_mutations(original, rng, kind.cases[1]) if kind.cases[1] else []
    found += word_mutations(original, rng, kind.words) if kind.words else []
    return found + (row_mutations(original, rng, kind.rows) if kind.rows else [])


def check(kind: Kind, mutate: Callable[[Path], None], folder: Path) -> str | None:
    """What is wrong with the answer to a changed file; None where nothing is."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(kind.root, folder)
    mutate(folder / kind.file)
    try:
        with time_limit():
            kind.read(folder)
    except Exception as error:
        if not is_an_answer(error) or isinstance(error, TypeError):
            return f"{type(error).__name__}: {error!s:.300}"
        if str(folder) not in str(error) and str(folder) not in str(getattr(error, "filename", "")):
            return f"no file is named: {type(error).__name__}: {error!s:.300}"
    return None


def failures(cases: list[tuple[Kind, Mutation]], folder: Path) -> list[str]:
    """The changed files with a wrong answer, and why."""
    found = []
    for kind, (what, mutate) in cases:
        fault = check(kind, mutate, folder)
        if fault is not None:
            found.append(f"{kind.root.name}/{kind.file}, {what}: {fault}")
    return found
