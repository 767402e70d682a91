"""Texts and messages as rows hold them, in the form that prompts and responses have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from tokenenv.data.messages import Message

__all__ = [
    "Turns",
    "as_messages",
    "as_turns",
    "is_list",
    "join_turns",
    "parse_cell",
    "response_of",
    "text_fault",
]

Turns = str | tuple[Message, ...]
"""A text, or messages."""

_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "system": "system"}
"""ShareGPT's names of roles → those of chat templates."""

_LISTS = frozenset(
    ["messages", "conversations", "responses", "completions", "ratings", "scores", "rewards"]
)
"""Columns that hold lists, whatever is in these."""

_EXAMPLE = '{"role": "user", "content": "…"}'


def is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether a value is a list, as messages and responses are."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def as_turns(value: Any, name: str) -> Turns:
    """The text or the messages in a column.

    Raises:
        ValueError: it is neither; the message names the column, without place and full stop.
    """
    if is_list(value):
        return as_messages(value, name)
    if isinstance(value, str):
        fault = text_fault(value)
        if fault:
            raise ValueError(f"the field {name!r} {fault}")
        return value
    if value is None:
        raise ValueError(f"the field {name!r} is null, it must be text or a list of messages")
    kind = type(value).__name__
    raise ValueError(f"the field {name!r} is a {kind}, it must be a string or a list of messages")


def text_fault(text: str) -> str:
    """What is wrong with a text: half of a surrogate pair; "" where nothing is."""
    if text.isascii():
        return ""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which is no character"
    return ""


def as_messages(value: Sequence[Any], name: str) -> tuple[Message, ...]:
    """A conversation, in the form that chat templates take.

    A message is `{"role", "content"}`, or `{"from", "value"}` as ShareGPT has them. Content that is
    a list of parts must be of texts, which are joined. Further fields stay where they are texts.

    Raises:
        ValueError: there is no message, or one is of another form; without place and full stop.
    """
    if not value:
        raise ValueError(f"the field {name!r} is a list without a message")
    return tuple(_message(item, name, number) for number, item in enumerate(value, 1))


def _message(item: Any, name: str, number: int) -> Message:
    where = f"message {number} of {name!r}"
    if not isinstance(item, Mapping):
        raise ValueError(f"{where} is {item!r:.60}, it must be an object such as {_EXAMPLE}")
    if "from" in item and "value" in item and item.get("role") is None:
        item = {"role": _ROLES.get(item["from"], item["from"]), "content": item["value"]}
    role, content = item.get("role"), item.get("content")
    if not isinstance(role, str) or not role.strip():
        raise ValueError(f"{where} has the role {role!r:.60}, it must be a string such as 'user'")
    if is_list(content):
        content = _joined(content, where)
    if not isinstance(content, str):
        raise ValueError(f"{where} has the content {content!r:.60}, it must be a string")
    if item.get("tool_calls"):
        raise ValueError(f"{where} calls tools, which are not supported: leave such rows out")
    fault = text_fault(content) or text_fault(role)
    if fault:
        raise ValueError(f"{where} {fault}")
    more = {k: v for k, v in item.items() if isinstance(v, str) and k not in ("role", "content")}
    return {"role": role, "content": content, **more}


def _joined(parts: Sequence[Any], where: str) -> str:
    texts = []
    for part in parts:
        if not (isinstance(part, Mapping) and isinstance(part.get("text"), str)):
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise ValueError(f"{where} has a part of the kind {kind!r:.40}: only text is read")
        texts.append(part["text"])
    return "".join(texts)


def response_of(messages: tuple[Message, ...], name: str) -> Turns:
    """Messages that answer a prompt: the text of one assistant turn, or several turns.

    Raises:
        ValueError: the first is not the assistant's; without place and full stop.
    """
    if messages[0]["role"] != "assistant":
        raise ValueError(
            f"{name!r} goes on with a {messages[0]['role']!r:.40} turn, where the assistant's is "
            "due"
        )
    if len(messages) == 1:
        return messages[0]["content"]
    if messages[-1]["role"] != "assistant":
        raise ValueError(
            f"{name!r} ends with a {messages[-1]['role']!r:.40} turn, which nobody answers"
        )
    return messages


def join_turns(prompt: Turns, responses: Mapping[str, Turns]) -> tuple[Turns, list[Turns]]:
    """A prompt and responses to it in one form: all of them text, or in a conversation.

    A prompt of text with responses of messages becomes the user's turn; responses that repeat the
    prompt's messages go without them.

    Args:
        prompt: a text or messages.
        responses: by the name of their column.

    Raises:
        ValueError: they don't fit together; without place and full stop.
    """
    if not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
        raise ValueError("the prompt ends with an assistant turn: it belongs to the response")
    if isinstance(prompt, str) and all(isinstance(r, str) for r in responses.values()):
        return prompt, list(responses.values())
    before = _before(prompt, responses)
    answers: list[Turns] = []
    for name, response in responses.items():
        if isinstance(response, str):
            answers.append(response)
            continue
        if response[: len(before)] == before:
            response = response[len(before) :]
        if not response:
            raise ValueError(f"{name!r} holds the prompt and no response")
        answers.append(response_of(response, name))
    return before, answers


def _before(prompt: Turns, responses: Mapping[str, Turns]) -> tuple[Message, ...]:
    """The messages of a prompt; of one of text, with a system turn where the responses have one."""
    if not isinstance(prompt, str):
        return prompt
    user = {"role": "user", "content": prompt}
    listed = [response for response in responses.values() if not isinstance(response, str)]
    systems = {
        response[0]["content"]
        for response in listed
        if len(response) > 1 and response[0]["role"] == "system" and response[1] == user
    }
    if len(systems) == 1 and len(listed) == len(responses):
        return ({"role": "system", "content": systems.pop()}, user)
    return (user,)


def parse_cell(text: str, name: str) -> Any:
    """The list that a cell of CSV holds as JSON, or its text where it holds none.

    Raises:
        ValueError: it looks like Python's own way of writing lists; without place and full stop.
    """
    start = text.lstrip()
    if not start.startswith("["):
        return text
    try:
        value = json.loads(start)
    except (ValueError, RecursionError):
        if start[1:].lstrip().startswith(("{'", '{"')):
            raise ValueError(
                f"the field {name!r} looks like a list as Python prints it, and is no JSON: write "
                "it with json.dumps"
            ) from None
        return text
    is_messages = isinstance(value, list) and value and all(isinstance(v, dict) for v in value)
    return value if is_messages or name in _LISTS else text
