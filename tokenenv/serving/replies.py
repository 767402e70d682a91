"""Replies that were given already, by the id of their request, in memory or in a file.

A client that lost a reply asks again with the same id, and gets the same reply: nothing is scored
twice. With a file this holds over a restart of the server as well.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from pathlib import Path

__all__ = ["MOST_REPLIES", "Replies"]

MOST_REPLIES = 10_000
"""Replies that are kept, the newest ones: a client gives up long before as many others came."""

_TABLE = """CREATE TABLE IF NOT EXISTS replies (
    number INTEGER PRIMARY KEY AUTOINCREMENT, request_id TEXT NOT NULL, fingerprint TEXT NOT NULL,
    digest TEXT NOT NULL, rewards TEXT NOT NULL, UNIQUE (request_id, fingerprint))"""


class Replies:
    """Rewards by request ids; its methods may be called from any thread.

    Args:
        file: SQLite's, made where it is missing; None: memory.
        most: how many are kept.

    Raises:
        ValueError: the file can't be used.
    """

    def __init__(self, file: Path | None = None, most: int = MOST_REPLIES) -> None:
        self._most, self._lock = most, threading.Lock()
        place = ":memory:" if file is None else str(file)
        try:
            self._database = sqlite3.connect(place, timeout=5.0, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            with self._database:
                self._database.execute(_TABLE)
                self._database.execute("SELECT rewards, digest, fingerprint FROM replies LIMIT 1")
        except (sqlite3.Error, ValueError) as error:
            raise ValueError(
                f"replies={str(file)!r:.200} can't be used ({error}): give a file that a reward "
                "server wrote, or one that is not there yet, in a folder that can be written to."
            ) from error

    def get(self, request_id: str, fingerprint: str) -> tuple[str, list[float | None]] | None:
        """Digest of the items and rewards of a request; None where it is not known.

        Args:
            request_id: of the request.
            fingerprint: of the model that is served: another one's replies are none.
        """
        with self._lock:
            found = self._database.execute(
                "SELECT digest, rewards FROM replies WHERE request_id = ? AND fingerprint = ?",
                (request_id, fingerprint),
            ).fetchone()
        return None if found is None else (found[0], json.loads(found[1]))

    def put(
        self, request_id: str, fingerprint: str, digest: str, rewards: list[float | None]
    ) -> None:
        """Keep the rewards of a request, before anybody is told of them."""
        with self._lock, self._database:
            self._database.execute(
                "INSERT OR IGNORE INTO replies (request_id, fingerprint, digest, rewards) "
                "VALUES (?, ?, ?, ?)",
                (request_id, fingerprint, digest, json.dumps(rewards, allow_nan=False)),
            )
            self._database.execute(
                "DELETE FROM replies WHERE number <= (SELECT MAX(number) FROM replies) - ?",
                (self._most,),
            )

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()
