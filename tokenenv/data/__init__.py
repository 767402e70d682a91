"""What people bring: files of prompts and of preference pairs.

- `prompts`: prompts, as text or as messages, with the columns that rewards ask for.
- `pairs`: preference pairs.
"""

from __future__ import annotations

from tokenenv.data.messages import Message
from tokenenv.data.pairs import MOST_MARGIN, PreferencePair, read_pairs
from tokenenv.data.prompts import Prompt, read_prompts

__all__ = ["MOST_MARGIN", "Message", "PreferencePair", "Prompt", "read_pairs", "read_prompts"]
