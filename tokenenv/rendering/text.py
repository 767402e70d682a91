"""An episode as text, whole or as it goes: the prompt, the response, the reward of every token."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from tokenenv.data import messages_of
from tokenenv.mdp import TokenMDP
from tokenenv.models import decode_all
from tokenenv.printable import printable
from tokenenv.rendering.palette import (
    legend,
    on_ground,
    reward_colour,
    shows_colours,
    wants_colours,
)

__all__ = ["LiveEpisode", "TokenTexts", "render_episode", "token_texts"]

_INCOMPLETE = "\ufffd"


class TokenTexts:
    """What each token of a response adds to its text, token by token.

    A token may hold some of the bytes of a character: the token that completes it gets the
    character. Every call decodes the last few tokens alone.
    """

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._known = 0  # of `_ids`, how many have their text already

    def add(self, tokenizer: Any, token: int) -> str:
        """The text that one more token adds, special tokens included; "" within a character."""
        self._ids.append(int(token))
        added = self.unfinished(tokenizer)
        if not added or added.endswith(_INCOMPLETE):
            return ""
        self._ids, self._known = self._ids[self._known :], len(self._ids) - self._known
        return added

    def unfinished(self, tokenizer: Any) -> str:
        """The text of the tokens that have none yet: of a character that was never completed."""
        before = decode_all(tokenizer, self._ids[: self._known])
        return decode_all(tokenizer, self._ids)[len(before) :]


def token_texts(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """What each token of a response adds to its text; see `TokenTexts`."""
    texts = TokenTexts()
    added = [texts.add(tokenizer, token) for token in tokens]
    if added and not added[-1]:
        added[-1] = texts.unfinished(tokenizer)
    return added


def render_episode(mdp: TokenMDP, row: int, in_colours: bool | None = None) -> str:
    """Prompt, response so far and per-token reward of the episode in `row`, as lines of text.

    Args:
        mdp: the token MDP.
        row: which of its episodes.
        in_colours: colour tokens by reward, with escape codes, and add a legend; None: unless
            `NO_COLOR` is set.
    """
    in_colours = wants_colours() if in_colours is None else in_colours
    tokens = mdp.episodes.response(row).tolist()
    rewards = mdp.token_rewards[row, : len(tokens)].tolist()
    response = printable(mdp.language_model.decode(mdp.episodes.response(row)))
    if in_colours:
        texts = token_texts(mdp.language_model.tokenizer, tokens)
        response = "".join(map(_coloured, texts, rewards))
    lines = [_prompt_line(mdp, row), f"response  {response}"]
    if tokens:
        lines.append("reward    token")
        lines += [
            _token_line(mdp, token, reward, in_colours)
            for token, reward in zip(tokens, rewards, strict=True)
        ]
        lines.append(_sum_line(mdp, row))
        lines += [f"colours   {legend()}"] * in_colours
    return "\n".join(lines) + "\n"


class LiveEpisode:
    """Writes episodes to the standard output as they go.

    On a terminal the response grows in one paragraph, each token on a ground of its reward's
    colour. Elsewhere, and where `NO_COLOR` is set, every token has a line.
    """

    def __init__(self) -> None:
        self._texts = TokenTexts()
        self._is_in_paragraph = False
        self._has_legend = False

    def start(self, mdp: TokenMDP) -> None:
        """Write the prompt of the episode that begins."""
        in_colours = shows_colours(sys.stdout)
        lines = ["\n"] * self._is_in_paragraph  # the episode before was broken off
        if in_colours and not self._has_legend:
            lines.append(f"colours   {legend()}\n")
        lines.append(_prompt_line(mdp, 0) + "\n")
        lines.append("response  " if in_colours else "reward    token\n")
        self._texts, self._is_in_paragraph = TokenTexts(), in_colours
        self._has_legend |= in_colours
        self._write("".join(lines))

    def add(self, mdp: TokenMDP) -> None:
        """Write the token that the last step has appended, and where it ended, the sum."""
        token = int(mdp.episodes.response(0)[-1])
        reward = float(mdp.token_rewards[0, mdp.episodes.response_lengths[0] - 1])
        has_ended = not mdp.episodes.running[0]
        if not self._is_in_paragraph:
            text = _token_line(mdp, token, reward, in_colours=False) + "\n"
            if has_ended:
                response = printable(mdp.language_model.decode(mdp.episodes.response(0)))
                text += f"{_sum_line(mdp, 0)}\nresponse  {response}\n\n"
        else:
            tokenizer = mdp.language_model.tokenizer
            piece = self._texts.add(tokenizer, token)
            if has_ended and not piece:
                piece = self._texts.unfinished(tokenizer)
            text = _coloured(piece, reward) + (f"\n{_sum_line(mdp, 0)}\n\n" if has_ended else "")
            self._is_in_paragraph = not has_ended
        self._write(text)

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


# Parts --------------------------------------------------------------------------------------------


def _prompt_line(mdp: TokenMDP, row: int) -> str:
    """The prompt; of a conversation a line for each message, with its role."""
    prompt = mdp.episodes.prompt(row)
    messages = messages_of(mdp.origin(row))
    may_be_cut = mdp.settings.prompt_truncation != "error" and len(prompt) == mdp.max_prompt_tokens
    if messages is None or may_be_cut:
        return f"prompt    {printable(mdp.language_model.decode(prompt))}"
    lines = [printable(f"{message['role']}: {message['content']}") for message in messages]
    return "prompt    " + "\n          ".join(lines)


def _token_line(mdp: TokenMDP, token: int, reward: float, in_colours: bool) -> str:
    text = repr(mdp.language_model.tokenizer.decode([token]))  # spaces show, controls are escapes
    return f"{reward:+8.4f}  {on_ground(text, reward_colour(reward)) if in_colours else text}"


def _sum_line(mdp: TokenMDP, row: int) -> str:
    length = int(mdp.episodes.response_lengths[row])
    reason = "" if mdp.episodes.running[row] else f"  ({mdp.episodes.finish_reason(row)})"
    total = mdp.token_rewards[row, :length].sum()
    return f"{total:+8.4f}  sum of {length} tokens{reason}"


def _coloured(text: str, reward: float) -> str:
    return on_ground(printable(text), reward_colour(reward)) if text else ""
