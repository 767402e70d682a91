"""From texts to token ids, the same way wherever a prompt and a response are read as one sequence.

The environment, the training of a reward model and the scoring by one all take

    prompt ids · response ids · EOS where the response is complete.

Prompt and response are tokenised apart, as the environment does (together they may merge at the
seam into ids that no episode has; `seam_differences` counts where). Of the ids that a tokenizer
adds to a text, those before it (BOS) stay, and an EOS is dropped: nothing would follow it. An EOS
that stands in the *text* of a prompt, such as the end of a turn, is part of the prompt and stays,
wherever it stands.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from tokenenv.models.chat import end_of_turn_id
from tokenenv.notes import note_once

__all__ = [
    "decode_all",
    "eos_ids_of",
    "join_ids",
    "prompt_ids",
    "prompt_text",
    "seam_differences",
]


def eos_ids_of(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The ids that end a response: of the generation config, else the config, else the tokenizer.

    To these comes the token that the tokenizer's chat template writes after an assistant's message,
    with a note (`tokenenv.notes`) where it was not among them: a model that was trained on
    conversations ends its answers with it.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.

    Raises:
        ValueError: one of them is no token id.
    """
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        eos = getattr(source, "eos_token_id", None)
        if eos is not None:
            ids = tuple(eos) if isinstance(eos, list | tuple) else (eos,)
            if not all(type(i) is int and 0 <= i < 2**31 for i in ids):
                raise ValueError(f"eos_token_id={eos!r:.60} must be a token id, or several.")
            return _with_end_of_turn(ids, model, tokenizer)
    return _with_end_of_turn((), model, tokenizer)


def _with_end_of_turn(ids: tuple[int, ...], model: Any, tokenizer: Any) -> tuple[int, ...]:
    turn = end_of_turn_id(tokenizer)
    if turn is None or turn in ids or turn >= model.get_input_embeddings().weight.shape[0]:
        return ids
    name = getattr(model, "name_or_path", "") or type(model).__name__
    note_once(
        f"{name}: {tokenizer.convert_ids_to_tokens(turn)!r} (id {turn}), which its chat template "
        "writes after an assistant's message, ends a response too; its config does not name it "
        f"(eos_token_id: {', '.join(map(str, ids)) or 'none'})."
    )
    return (*ids, turn)


def prompt_ids(tokenizer: Any, text: str, eos_token_ids: Collection[int]) -> list[int]:
    """Token ids of a prompt: BOS once where the tokenizer has one, and no EOS that it adds.

    Args:
        tokenizer: a transformers tokenizer.
        text: the prompt.
        eos_token_ids: the ids that end a response.
    """
    whole = list(tokenizer(text)["input_ids"])
    plain = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    before, after = _added(whole, plain, getattr(tokenizer, "bos_token_id", None))
    if before and plain[: len(before)] == before:
        before = []  # the text begins with it already, as the text of a chat template does
    while after and after[-1] in eos_token_ids:
        after = after[:-1]
    return [*before, *plain, *after]


def _added(whole: list[int], plain: list[int], bos: int | None) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer has put before and behind the ids of the text alone.

    Where several readings are possible (a text of nothing but EOS), BOS is put before and the rest
    behind.
    """
    added = len(whole) - len(plain)
    for start in range(int(added > 0 and whole[0] == bos), added + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []  # the text is tokenised differently then: the added ids can't be separated


def seam_differences(
    tokenizer: Any, texts: Iterable[tuple[str, str]], eos_token_ids: Collection[int] = ()
) -> int:
    """How many prompts and responses have other ids when they are tokenised as one text.

    Episodes have them tokenised apart. A model that has read such texts as one has seen other ids
    at the seam, most often where a prompt ends with a space that the first word should begin with.

    Args:
        tokenizer: a transformers tokenizer.
        texts: pairs of prompt and response.
        eos_token_ids: the ids that end a response.
    """
    differences = 0
    for prompt, response in texts:
        apart = prompt_ids(tokenizer, prompt, eos_token_ids)
        apart += tokenizer(response, add_special_tokens=False)["input_ids"]
        differences += apart != prompt_ids(tokenizer, prompt + response, eos_token_ids)
    return differences


def join_ids(
    prompt: Sequence[int] | np.ndarray,
    response: Sequence[int] | np.ndarray,
    stopped: bool,
    eos_token_ids: Collection[int],
    eos: int | None,
) -> np.ndarray:
    """(n,) int64: a prompt and a response as one sequence, completed by one and the same EOS.

    Args:
        prompt: token ids.
        response: token ids, with or without an EOS at the end.
        stopped: whether the response is complete; otherwise it was broken off.
        eos_token_ids: the ids that end a response.
        eos: the one that the reader has learned to find at the end; None: it has learned none.
    """
    parts = [np.asarray(prompt, dtype=np.int64), np.asarray(response, dtype=np.int64)]
    if stopped:
        if len(parts[1]) and int(parts[1][-1]) in eos_token_ids:
            parts[1] = parts[1][:-1]
        parts.append(np.array([] if eos is None else [eos], dtype=np.int64))
    return np.concatenate(parts)


def prompt_text(tokenizer: Any, ids: np.ndarray) -> str:
    """The text of a prompt's ids, special tokens in it included, but not the BOS put before it.

    For a tokenizer that inverts its decoding, `prompt_ids` of it are `ids` again.
    """
    listed = ids.tolist()
    bos = getattr(tokenizer, "bos_token_id", None)
    if listed and listed[0] == bos and list(tokenizer("")["input_ids"])[:1] == [bos]:
        listed = listed[1:]
    return decode_all(tokenizer, listed)


def decode_all(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of token ids, special tokens included."""
    return tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
