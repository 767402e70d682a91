"""A prompt as Python or JSON gives it: a text, messages, or a row with columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenenv.data.messages import Message, is_message, is_messages
from tokenenv.data.prompts import Prompt
from tokenenv.data.turns import as_messages

__all__ = ["as_prompt", "messages_of", "prompt_of_state", "prompt_state", "shown_prompt"]


def as_prompt(value: Any, what: str = "the prompt") -> Prompt:
    """The `Prompt` that a value stands for.

    Args:
        value: a text; a list of messages; an object with a `"prompt"`, which is one of these, and
            other fields, which become columns; or a `Prompt`.
        what: names it in the message of an error.

    Raises:
        ValueError: it is none of them, an empty text, or a conversation that ends with the
            assistant's turn.
    """
    if isinstance(value, Prompt):
        return value
    columns: dict[str, Any] = {}
    content = value
    if isinstance(value, Mapping) and "prompt" in value:
        columns = {str(name): column for name, column in value.items() if name != "prompt"}
        content = value["prompt"]
    if isinstance(content, str):
        if not content.strip():
            raise ValueError(f"{what} {content!r} is empty: it needs at least one token.")
        return Prompt(content, columns)
    if is_messages(content):
        return Prompt(_conversation(content, what), columns)
    raise ValueError(
        f"{what} {content!r:.80} is a {type(content).__name__}, it must be text, a list of "
        'messages ({"role": …, "content": …}), or an object with one of these as "prompt" and '
        "columns beside it." + " This is one message: give a list of them." * is_message(content)
    )


def _conversation(value: Any, what: str) -> tuple[Message, ...]:
    try:
        messages = as_messages(value, "prompt")
    except ValueError as error:
        raise ValueError(f"{what} is no conversation: {error}.") from None
    if messages[-1]["role"] == "assistant":
        raise ValueError(
            f"{what} ends with an assistant turn, and nothing is left to be answered: leave that "
            "turn out."
        )
    return messages


def prompt_state(prompt: Prompt | None) -> dict[str, Any] | None:
    """A prompt as JSON holds it, with its columns as they are; None for None."""
    if prompt is None:
        return None
    messages = messages_of(prompt)
    content = prompt.content if messages is None else [dict(message) for message in messages]
    return {"content": content, "columns": dict(prompt.columns)}


def prompt_of_state(state: Mapping[str, Any] | None) -> Prompt | None:
    """The prompt that `prompt_state` described."""
    if state is None:
        return None
    content = state["content"]
    return Prompt(content if isinstance(content, str) else tuple(content), state["columns"])


def shown_prompt(prompt: Prompt) -> str:
    """The beginning of a prompt for a message; of a conversation, of its last turn."""
    if isinstance(prompt.content, str):
        return repr(prompt.content[:60])
    last = prompt.content[-1]
    return f"of the {last['role']} turn {last['content'][:60]!r}"


def messages_of(prompt: Prompt | None) -> tuple[Message, ...] | None:
    """The messages of a prompt that is a conversation; None for one of text."""
    return None if prompt is None or isinstance(prompt.content, str) else prompt.content
