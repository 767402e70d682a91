"""What a reward server and its client say to each other: version 1 of the schema.

`GET /info` answers with a `ServerInfo`; `POST /score` takes a request id and items, and answers
with one reward for each. A name that the schema does not know is passed over, so that servers may
say more; a known one with another kind of value is refused.
"""

from __future__ import annotations

import hashlib
import json
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenenv.json_files import parse_json
from tokenenv.printable import printable

__all__ = [
    "SCHEMA",
    "Item",
    "NonsenseError",
    "OtherModelError",
    "ServerInfo",
    "read_info",
    "read_rewards",
    "request_body",
    "shown",
    "vocabulary_hash",
]

SCHEMA = "tokenrlhf-reward/1"
"""Name and version of the schema; both sides say it, and neither goes on with another."""

MOST_ITEMS = 65_536
"""Limit of `max_batch`."""

Item = dict[str, Any]
"""A prompt and a response: `prompt`, `response` and `stopped`, and where there are any `messages`,
`columns`, `prompt_ids` and `response_ids`."""


class NonsenseError(ValueError):
    """A reply is not what the schema says; the message says in what."""


class OtherModelError(ValueError):
    """A reply comes from another model than the training began with."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server says of itself.

    Attributes:
        model: its name, for people.
        fingerprint: the same for as long as the rewards are the same.
        max_batch: the most items of a request.
        kind: `"model"`, whose rewards are estimates, or `"function"`.
        reward_mean: of the rewards on the reference's responses; None: the client measures it.
        reward_std: likewise; both or neither.
        special_tokens: whether texts come with special tokens written out.
        vocabulary: `vocabulary_hash` of its tokenizer; a client with the same also sends token ids.
        vocabulary_size: ids that it can read.
        max_tokens: the longest sequence that it can read.
        chat: whether it writes conversations by a template of its own.
        columns: names of the columns that it wants where prompts have them; None: all.
        required_columns: those that every prompt must have.
    """

    model: str
    fingerprint: str
    max_batch: int
    kind: str = "model"
    reward_mean: float | None = None
    reward_std: float | None = None
    special_tokens: bool = False
    vocabulary: str | None = None
    vocabulary_size: int | None = None
    max_tokens: int | None = None
    chat: bool = False
    columns: tuple[str, ...] | None = ()
    required_columns: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The content of the reply to `GET /info`."""
        content = {name: getattr(self, name) for name in self.__slots__}
        for name in ("columns", "required_columns"):
            content[name] = None if content[name] is None else list(content[name])
        return {"schema": SCHEMA, **content}


def vocabulary_hash(vocabulary: Mapping[str, int]) -> str:
    """SHA-256 of a tokenizer's tokens and their ids, in hexadecimal digits."""
    pairs = json.dumps(sorted(vocabulary.items()), separators=(",", ":"))
    return hashlib.sha256(pairs.encode("ascii")).hexdigest()


def request_body(request_id: str, items: Sequence[Item]) -> bytes:
    """The body of `POST /score`."""
    content = {"schema": SCHEMA, "request_id": request_id, "items": list(items)}
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def read_info(body: bytes) -> ServerInfo:
    """What a server says of itself.

    Raises:
        NonsenseError: it says something else.
    """
    content = _object(body)
    values: dict[str, Any] = {
        "model": _of(content, "model", str),
        "fingerprint": _of(content, "fingerprint", str),
        "max_batch": _count(content, "max_batch", MOST_ITEMS),
    }
    for name, kind in (("kind", str), ("special_tokens", bool), ("chat", bool)):
        if content.get(name) is not None:
            values[name] = _of(content, name, kind)
    if values.get("kind", "model") not in ("model", "function"):
        raise NonsenseError(f"'kind' is {shown(values['kind'])}, and not 'model' or 'function'")
    if content.get("vocabulary") is not None:
        values["vocabulary"] = _of(content, "vocabulary", str)
        values["vocabulary_size"] = _count(content, "vocabulary_size", 2**31)
    if content.get("max_tokens") is not None:
        values["max_tokens"] = _count(content, "max_tokens", 2**63)
    if "columns" in content:
        values["columns"] = None if content["columns"] is None else _names(content, "columns")
    if content.get("required_columns") is not None:
        values["required_columns"] = _names(content, "required_columns")
    return ServerInfo(**values, **_normalization(content))


def _normalization(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {name: content.get(name) for name in ("reward_mean", "reward_std")}
    if all(value is None for value in found.values()):
        return {}
    if not all(map(_is_number, found.values())) or not found["reward_std"] > 0:
        raise NonsenseError(
            "'reward_mean' and 'reward_std' must be two finite numbers, the second above 0, or both"
            f" null, and are {shown(found)}"
        )
    return {name: float(value) for name, value in found.items()}


def read_rewards(body: bytes, request_id: str, fingerprint: str, count: int) -> list[float | None]:
    """The rewards that a reply holds; None for an item to which the reward does not apply.

    Args:
        body: of the reply.
        request_id: of the request.
        fingerprint: of the model that is expected.
        count: how many items there were.

    Raises:
        NonsenseError: it holds something else.
        OtherModelError: another model has scored.
    """
    content = _object(body)
    if _of(content, "request_id", str) != request_id:
        raise NonsenseError("it answers another request ('request_id' is not the one asked about)")
    if _of(content, "fingerprint", str) != fingerprint:
        raise OtherModelError(
            "it scores with another model than it did before ('fingerprint' has changed)"
        )
    rewards = _of(content, "rewards", list)
    if len(rewards) != count:
        raise NonsenseError(f"it gives {len(rewards):,} rewards for {count:,} items")
    for index, reward in enumerate(rewards):
        if reward is not None and not _is_number(reward):
            raise NonsenseError(f"reward {index} is {shown(reward)}, and no number")
    return [None if reward is None else float(reward) for reward in rewards]


def shown(value: Any, most: int = 80) -> str:
    """A value from a server as a message may hold it: one line, printable, cut."""
    text = printable(" ".join((value if isinstance(value, str) else repr(value)).split()))
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body in this schema."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise NonsenseError(f"it is no text (it begins with {body[:16]!r})") from None
    try:
        content = parse_json(text, "it")
    except ValueError as error:
        beginning = shown(text[:400], 60)
        raise NonsenseError(f"{shown(str(error), 160)} It begins with '{beginning}'") from None
    if not isinstance(content, dict):
        raise NonsenseError(f"it is {type(content).__name__}, and no JSON object")
    if content.get("schema") != SCHEMA:
        raise NonsenseError(
            f"it is of the schema {shown(content.get('schema'))}, and {SCHEMA!r} is spoken here"
        )
    return content


def _of(content: dict[str, Any], name: str, kind: type) -> Any:
    value = content.get(name)
    if not isinstance(value, kind):
        raise NonsenseError(f"{name!r} is {shown(value)}, and must be {kind.__name__}")
    return value


def _count(content: dict[str, Any], name: str, most: int) -> int:
    value = content.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise NonsenseError(f"{name!r} is {shown(value)}, and must be 1, 2, …, {most:,}")
    return value


def _names(content: dict[str, Any], name: str) -> tuple[str, ...]:
    value = content[name]
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise NonsenseError(f"{name!r} is {shown(value)}, and must be a list of names")
    return tuple(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
