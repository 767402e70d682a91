"""The client of reward servers: the schema of what is said, one exchange, and what is tried again.

* `schema`: what requests and replies hold, and the checks of replies; docs/reward-servers.md has it
  in words, for whoever writes a server.
* `exchange`: one HTTP request and its reply, within a time and a size.
* `client`: `RewardClient`, which tries again what may pass, and gives up with a sentence.
"""

from tokenenv.remote.client import RewardClient, RewardServerError, reward_client
from tokenenv.remote.schema import SCHEMA, Item, ServerInfo, vocabulary_hash

__all__ = [
    "SCHEMA",
    "Item",
    "RewardClient",
    "RewardServerError",
    "ServerInfo",
    "reward_client",
    "vocabulary_hash",
]
