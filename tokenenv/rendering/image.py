"""An episode as a picture: prompt and response, every token on a ground coloured by its reward."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tokenenv.mdp import TokenMDP
from tokenenv.rendering.palette import (
    FULL_COLOUR,
    INK,
    PAPER,
    Colour,
    reward_colour,
    text_colour,
)

__all__ = ["draw_episode", "image_size", "printable"]

WIDTH = 800
"""Size of every picture, in pixels."""

_MARGIN, _GAP, _PAD = 24, 6, 7
_TOKEN_LINE, _REWARD_LINE = 26, 18
_TITLE, _TEXT, _SMALL = 20, 18, 14
_MAX_LINES = 12
_COLUMN = 84
"""Pixels that a token takes on average, its gap included: how many lines a picture plans for."""

_FAINT, _PROMPT = (95, 95, 95), (226, 229, 233)


@dataclass(frozen=True, slots=True)
class _Chip:
    """A token as it is drawn.

    Attributes:
        text: its text.
        ground: the colour that it stands on.
        note: a small line below the text, or "".
    """

    text: str
    ground: Colour
    note: str = ""

    @property
    def width(self) -> int:
        """In pixels."""
        widest = max(_font(_TEXT).getlength(self.text), _font(_SMALL).getlength(self.note))
        return max(24, math.ceil(widest) + 2 * _PAD)


def image_size(mdp: TokenMDP) -> tuple[int, int]:
    """Height and width in pixels: the same for all episodes of an environment."""
    prompt, response = _planned_lines(mdp)
    lines = prompt * (_TOKEN_LINE + _GAP) + response * (_TOKEN_LINE + _REWARD_LINE + _GAP)
    height = 2 * _MARGIN + 200 + lines
    return 16 * math.ceil(height / 16), WIDTH  # video encoders like multiples of 16


def draw_episode(mdp: TokenMDP, row: int) -> np.ndarray:
    """The episode in `row` as an image of `image_size(mdp)`.

    Where a text is longer than its place, its last lines are shown.

    Returns:
        (height, width, 3) uint8.
    """
    height, width = image_size(mdp)
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    prompt, response = mdp.episodes.prompt(row), mdp.episodes.response(row)
    rewards = mdp.token_rewards[row, : len(response)]
    prompt_lines, response_lines = _planned_lines(mdp)
    top = _title(draw, mdp, row, float(rewards.sum()))
    texts = [_token_text(mdp, token) for token in prompt.tolist()]
    chips = [_Chip(text, _PROMPT) for text in texts]
    top = _block(draw, "prompt", chips, top, prompt_lines, _TOKEN_LINE)
    chips = [
        _Chip(_token_text(mdp, token), reward_colour(reward), f"{reward:+.2f}")
        for token, reward in zip(response.tolist(), rewards.tolist(), strict=True)
    ]
    label = "response, with the reward that each step paid"
    _block(draw, label, chips, top, response_lines, _TOKEN_LINE + _REWARD_LINE)
    _legend(draw, height - _MARGIN - 34)
    return np.asarray(image, dtype=np.uint8).copy()


def printable(text: str) -> str:
    """`text` in characters of the font: a middle dot for a space, escapes for other scripts."""
    plain = unicodedata.normalize("NFKD", text)
    shown = "".join(c for c in plain if not unicodedata.combining(c))
    # As Python writes it: the ends of lines and the scripts that the font lacks become escapes.
    return ascii(shown)[1:-1].replace("\\'", "'").replace(" ", "·")


# Parts of the picture -----------------------------------------------------------------------------


def _title(draw: ImageDraw.ImageDraw, mdp: TokenMDP, row: int, total: float) -> int:
    """Task, position and return so far; the y below them."""
    length = int(mdp.episodes.response_lengths[row])
    state = f"token {length} of at most {mdp.max_new_tokens}"
    if length and not mdp.episodes.running[row]:
        state += f", ended: {mdp.episodes.finish_reason(row)}"
    name = printable(mdp.task.name).replace("·", " ")
    draw.text((_MARGIN, _MARGIN), f"{name}: {state}", INK, _font(_TITLE))
    right = WIDTH - _MARGIN
    draw.text((right, _MARGIN), f"return {total:+.2f}", INK, _font(_TITLE), anchor="ra")
    return _MARGIN + 40


def _block(
    draw: ImageDraw.ImageDraw,
    label: str,
    chips: Sequence[_Chip],
    top: int,
    max_lines: int,
    chip_height: int,
) -> int:
    """A label and chips in lines, the last `max_lines` of them; the y below their place."""
    lines = _wrapped(chips)
    shown = lines[-max_lines:]
    hidden = len(chips) - sum(map(len, shown))
    if hidden:
        label += f" ({hidden} tokens before these are not shown)"
    draw.text((_MARGIN, top), label, _FAINT, _font(_SMALL))
    top += 22
    for number, line in enumerate(shown):
        x, y = _MARGIN, top + number * (chip_height + _GAP)
        for chip in line:
            _draw_chip(draw, chip, x, y, chip_height)
            x += chip.width + _GAP
    return top + max_lines * (chip_height + _GAP) + 14


def _draw_chip(draw: ImageDraw.ImageDraw, chip: _Chip, x: int, y: int, height: int) -> None:
    box = (x, y, x + chip.width - 1, y + height - 1)
    draw.rounded_rectangle(box, 4, chip.ground, outline=(190, 190, 190))
    ink, middle = text_colour(chip.ground), x + chip.width / 2
    draw.text((middle, y + _TOKEN_LINE / 2), chip.text, ink, _font(_TEXT), anchor="mm")
    if chip.note:
        line = y + _TOKEN_LINE + _REWARD_LINE / 2 - 2
        draw.text((middle, line), chip.note, ink, _font(_SMALL), anchor="mm")


def _legend(draw: ImageDraw.ImageDraw, top: int) -> None:
    """The legend of the colours."""
    left, width, height = _MARGIN + 64, 360, 14
    draw.text((_MARGIN, top), "reward", _FAINT, _font(_SMALL))
    for x in range(width):
        reward = FULL_COLOUR * (2 * x / (width - 1) - 1)
        draw.line((left + x, top, left + x, top + height), reward_colour(reward))
    draw.rectangle((left, top, left + width - 1, top + height), outline=(150, 150, 150))
    for reward in (-FULL_COLOUR, -FULL_COLOUR / 2, 0.0, FULL_COLOUR / 2, FULL_COLOUR):
        place = left + (reward / FULL_COLOUR + 1) * (width - 1) / 2
        beyond = {-FULL_COLOUR: " or less", FULL_COLOUR: " or more"}.get(reward, "")
        text = f"{reward:+g}{beyond}" if reward else "0"
        draw.text((place, top + height + 4), text, _FAINT, _font(_SMALL), anchor="ma")


def _wrapped(chips: Sequence[_Chip]) -> list[list[_Chip]]:
    """Chips in lines that fit the picture."""
    lines: list[list[_Chip]] = []
    x = WIDTH
    for chip in chips:
        if x + chip.width > WIDTH - _MARGIN:
            lines.append([])
            x = _MARGIN
        lines[-1].append(chip)
        x += chip.width + _GAP
    return lines


def _planned_lines(mdp: TokenMDP) -> tuple[int, int]:
    """Lines that the pictures of an environment have for prompt and response."""
    per_line = (WIDTH - 2 * _MARGIN) / _COLUMN
    prompt, response = (
        min(_MAX_LINES, math.ceil(tokens / per_line))
        for tokens in (mdp.max_prompt_tokens, mdp.max_new_tokens)
    )
    return prompt, response


def _token_text(mdp: TokenMDP, token: int) -> str:
    text = printable(mdp.language_model.tokenizer.decode([token])) or f"#{token}"
    widest = WIDTH - 2 * _MARGIN - 2 * _PAD
    while _font(_TEXT).getlength(text) > widest:
        text = text[: 9 * len(text) // 10 - 1] + "…"
    return text


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font that ships with Pillow."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font
