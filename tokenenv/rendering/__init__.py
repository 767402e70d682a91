"""An episode to look at: in the terminal (`text`) and as a picture (`image`), in one `palette`."""

from tokenenv.rendering.image import draw_episode
from tokenenv.rendering.palette import (
    FULL_COLOUR,
    Colour,
    diverging_colour,
    legend,
    on_ground,
    reward_colour,
    shows_colours,
    terminal_colours,
    text_colour,
)
from tokenenv.rendering.text import LiveEpisode, TokenTexts, render_episode, token_texts

__all__ = [
    "FULL_COLOUR",
    "Colour",
    "LiveEpisode",
    "TokenTexts",
    "diverging_colour",
    "draw_episode",
    "legend",
    "on_ground",
    "render_episode",
    "reward_colour",
    "shows_colours",
    "terminal_colours",
    "text_colour",
    "token_texts",
]
