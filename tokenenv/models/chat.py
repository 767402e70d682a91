"""Chat templates: conversations as the text that a model was trained to read and to answer.

The template is the tokenizer's own, and writes text; `tokenenv.models.encoding` makes ids of that
text as of any other, so that BOS is there once, whether template or tokenizer writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenenv.data import Message, Turns

__all__ = ["ChatTemplate", "as_turn_messages", "end_of_turn_id", "texts_at_the_seam"]

_PROBE = "Answer4711"
"""An answer that is looked for in what a template makes of it."""


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: a transformers tokenizer.
        name: of the model that it belongs to, for messages.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self.tokenizer, self.name = tokenizer, name
        self._checked: set[tuple[str, ...]] = set()

    @property
    def exists(self) -> bool:
        """Whether the tokenizer has one."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text that an answer to `messages` continues.

        The template writes the beginning of the assistant's turn (`add_generation_prompt`).

        Raises:
            ValueError: there is no template, it refuses these messages, or it does not begin the
                assistant's turn.
        """
        text = self._render(messages, add_generation_prompt=True)
        roles = tuple(message["role"] for message in messages)
        if roles not in self._checked:
            self._check_generation_prompt(messages, text)
            self._checked.add(roles)
        return text

    def whole(self, messages: Sequence[Message], answer: str | None = None) -> str:
        """The text of a conversation whose last turn is complete.

        Args:
            messages: the conversation.
            answer: the assistant's answer to it; None where `messages` hold it.

        Raises:
            ValueError: there is no template, or it refuses these messages.
        """
        turn = [] if answer is None else [{"role": "assistant", "content": answer}]
        return self._render([*messages, *turn])

    def _render(self, messages: Sequence[Message], **options: Any) -> str:
        if not self.exists:
            raise ValueError(
                f"the tokenizer of {self.name!r} has no chat template, so that nothing says how a "
                "list of messages reads: give prompts as text, take a model that was trained on "
                "conversations, or put its chat_template.jinja into the model's folder."
            )
        try:
            return self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, **options
            )
        except Exception as error:  # of the template's own code, or of transformers about it
            reason = " ".join(str(error).split()) or type(error).__name__
            roles = ", ".join(message["role"] for message in messages)
            raise ValueError(
                f"the chat template of {self.name!r} refuses messages of the roles {roles} "
                f"({reason:.300}): give messages in the roles and the order that it takes, or the "
                "prompt as text."
            ) from error

    def _check_generation_prompt(self, messages: Sequence[Message], text: str) -> None:
        """Refuse a template whose answers begin with a turn's head that it does not write.

        Templates such as Mistral's need no head: their answer follows on the user's turn at once.
        """
        if text != self._render(messages, add_generation_prompt=False):
            return
        try:
            whole = self.whole(messages, _PROBE)
        except ValueError:
            return  # it takes no answer at all; the generation prompt can't be looked for
        head, found, _ = whole[len(text) :].partition(_PROBE)
        if whole.startswith(text) and found and not head.strip():
            return
        raise ValueError(
            f"the chat template of {self.name!r} has no generation prompt: it writes the same "
            "whether or not the assistant is to answer, so that the model would go on in another "
            "role. Give its template an {% if add_generation_prompt %} part that begins the "
            "assistant's turn, or give prompts as text."
        )


def as_turn_messages(part: Turns, role: str) -> tuple[Message, ...]:
    """A part of a conversation as messages; a text is one turn.

    Args:
        part: a text or messages.
        role: whose turn a text is.
    """
    return ({"role": role, "content": part},) if isinstance(part, str) else part


def texts_at_the_seam(
    chat: ChatTemplate, prompt: Turns, answers: Sequence[Turns]
) -> list[tuple[str, str]]:
    """A prompt and its answers as texts of which the second follows on the first.

    Args:
        chat: what writes conversations; it is not asked where all are texts.
        prompt: a text or messages.
        answers: likewise, each of them. One whose conversation does not begin as its prompt does
            is left out.

    Raises:
        ValueError: there are messages, and no template that takes them.
    """
    if isinstance(prompt, str) and all(isinstance(answer, str) for answer in answers):
        return [(prompt, str(answer)) for answer in answers]
    before = as_turn_messages(prompt, "user")
    text = chat.prompt(before)
    wholes = [chat.whole([*before, *as_turn_messages(a, "assistant")]) for a in answers]
    return [(text, whole.removeprefix(text)) for whole in wholes if whole.startswith(text)]


def end_of_turn_id(tokenizer: Any) -> int | None:
    """The token that a tokenizer's chat template writes right after an assistant's message.

    It is found by rendering a conversation. None where there is no template, where it refuses a
    plain conversation, or writes no special token there.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # of the template's own code
        return None
    _, found, tail = text.rpartition(_PROBE)
    if not found:
        return None
    tail = tail.lstrip()
    added = {str(token): i for i, token in _added_tokens(tokenizer).items()}
    ends = [token for token in added if token and tail.startswith(token)]
    return added[max(ends, key=len)] if ends else None


def _added_tokens(tokenizer: Any) -> dict[int, str]:
    """Ids and texts of the tokens that are no part of ordinary text; not the unknown one."""
    added = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items()}
    special = {tokenizer.convert_tokens_to_ids(t): t for t in tokenizer.all_special_tokens}
    unknown = getattr(tokenizer, "unk_token_id", None)
    return {i: text for i, text in {**added, **special}.items() if i != unknown}
