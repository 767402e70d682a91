"""An episode to look at: `text` for the terminal, `image` for a picture."""

from tokenenv.rendering.image import draw_episode
from tokenenv.rendering.text import render_episode

__all__ = ["draw_episode", "render_episode"]
