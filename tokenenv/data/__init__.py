"""What people bring: files of prompts and of preference pairs.

- `prompts`: prompts, as text or as messages, with the columns that rewards ask for;
  `prompt_values`: what may be given for one; `messages`: conversations.
- `pairs`: preference pairs.
"""

from __future__ import annotations

from tokenenv.data.messages import Message, check_messages, is_messages
from tokenenv.data.pairs import MOST_MARGIN, PreferencePair, read_pairs
from tokenenv.data.prompt_values import as_prompt, messages_of
from tokenenv.data.prompts import Prompt, read_prompts

__all__ = [
    "MOST_MARGIN",
    "Message",
    "PreferencePair",
    "Prompt",
    "as_prompt",
    "check_messages",
    "is_messages",
    "messages_of",
    "read_pairs",
    "read_prompts",
]
