"""A client of a reward server that waits, tries again what may pass, and then says what failed.

* A connection that is refused, breaks or takes too long, and the statuses 408, 425, 429, 500, 502,
  503 and 504, are tried again, with pauses that grow and by `Retry-After`, until the address's
  patience is over.
* A reply that is not of the schema is tried again twice: a proxy may have spoken.
* Anything else (another 4xx, a redirect, another schema's or another model's reply, a certificate)
  will not pass, and ends the request at once.

All tries of a request have one id, so that a server that knows it already answers from memory.
"""

from __future__ import annotations

import email.utils
import http.client
import itertools
import os
import random
import re
import ssl
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tokenenv.addresses import TOKEN_VARIABLE, Address, parse_address
from tokenenv.json_files import parse_json
from tokenenv.notes import note_once
from tokenenv.remote.exchange import Line, Reply, ReplyTooLong
from tokenenv.remote.schema import (
    Item,
    NonsenseError,
    OtherModelError,
    ServerInfo,
    read_info,
    read_rewards,
    request_body,
    shown,
)

__all__ = ["RewardClient", "RewardServerError", "reward_client"]

Answer = TypeVar("Answer")

REQUESTS = 4
"""Requests that are under way at the same time; further ones wait for one of them to end."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
"""Seconds before the second try, and before any other; each pause is twice the one before."""

START_PATIENCE = 5.0
"""Seconds for which a server that has never answered is waited for: it may just be starting."""

NONSENSE_TRIES = 3
"""Replies in a row that are not of the schema, after which a request is given up."""

_PASSING = (408, 425, 429, 500, 502, 503, 504)


class RewardServerError(ValueError):
    """A reward server could not be used; the message names it and says why."""


class _Fault(Exception):
    """One try that failed.

    Attributes:
        may_pass: whether another try may succeed.
        retry_after: seconds that the server asks to wait, 0 where it says nothing.
        is_nonsense: whether something answered that is not of the schema.
    """

    def __init__(
        self, said: str, may_pass: bool, retry_after: float = 0.0, is_nonsense: bool = False
    ) -> None:
        super().__init__(said)
        self.may_pass, self.retry_after, self.is_nonsense = may_pass, retry_after, is_nonsense


class RewardClient:
    """Rewards of items from the server at an address.

    Args:
        address: of the server.
        token: what the server asks for; None: that of the environment variable, if there is one.

    Attributes:
        address: as above.

    Raises:
        ValueError: the token can't be a header.
    """

    def __init__(self, address: Address, token: str | None = None) -> None:
        self.address = address
        self._token = os.environ.get(TOKEN_VARIABLE) or None if token is None else token
        if self._token is not None and not re.fullmatch(r"[!-~]+", self._token):
            raise ValueError(
                f"the token in {TOKEN_VARIABLE} holds spaces or characters beyond ASCII, which no "
                "header may: set another one."
            )
        self._info: ServerInfo | None = None
        self._has_said = False
        self._pauses = random.Random()  # of the system: it moves no seed of a training

    @property
    def info(self) -> ServerInfo:
        """What the server said of itself when it was first asked.

        Raises:
            RewardServerError: it could not be used.
        """
        if self._info is None:
            patience = min(START_PATIENCE, self.address.patience)
            self._info = self._asked(self._line(), "GET", "/info", None, 0, read_info, patience)
        return self._info

    def scores(self, items: Sequence[Item]) -> list[float | None]:
        """A reward for each item, in their order; None where the reward does not apply to it.

        At most `REQUESTS` requests of at most `max_batch` items are under way at a time.

        Raises:
            RewardServerError: the server could not be used; no reward of these items is kept.
        """
        size, line = self.info.max_batch, self._line()
        parts = [items[start : start + size] for start in range(0, len(items), size)]
        if len(parts) <= 1:
            return [reward for part in parts for reward in self._scored(line, part)]
        pool = ThreadPoolExecutor(min(REQUESTS, len(parts)), "reward-server")
        try:
            waiting: list[Future[list[float | None]]] = [
                pool.submit(self._scored, line, part) for part in parts
            ]
            return [reward for future in waiting for reward in future.result()]
        finally:
            line.cut()  # of what is under way, where one failed or a signal came
            pool.shutdown(wait=True, cancel_futures=True)

    def _line(self) -> Line:
        return Line(self.address, self._token)

    def _scored(self, line: Line, items: Sequence[Item]) -> list[float | None]:
        request_id, fingerprint = uuid.uuid4().hex, self.info.fingerprint
        return self._asked(
            line,
            "POST",
            "/score",
            request_body(request_id, items),
            len(items),
            lambda body: read_rewards(body, request_id, fingerprint, len(items)),
            self.address.patience,
        )

    def _asked(
        self,
        line: Line,
        method: str,
        path: str,
        body: bytes | None,
        items: int,
        read: Callable[[bytes], Answer],
        patience: float,
    ) -> Answer:
        """What `read` makes of the reply, after as many tries as it takes.

        Raises:
            RewardServerError: it will not pass, or has not within the patience.
        """
        first_failure, nonsense = 0.0, 0
        for tries in itertools.count(1):
            try:
                return _tried(line, method, path, body, items, read)
            except _Fault as failure:
                fault = failure
            now = time.monotonic()
            first_failure = first_failure or now
            nonsense = nonsense + 1 if fault.is_nonsense else 0
            left = patience - (now - first_failure)
            is_over = left <= 0 or nonsense >= NONSENSE_TRIES or not fault.may_pass
            if is_over or line.is_cut.is_set():
                raise self._given_up(fault, tries, now - first_failure)
            if tries > 1 and not self._has_said:
                self._has_said = True  # faults come in any number of wordings
                note_once(
                    f"the reward server {self.address} does not answer as it should ({fault}): it "
                    f"is asked again, for up to {patience:g} s."
                )
            line.is_cut.wait(min(max(self._pause(tries), fault.retry_after), left))
        raise AssertionError("the count never ends")

    def _pause(self, tries: int) -> float:
        """Seconds before the next try: between half and all of what has doubled each time."""
        longest = min(FIRST_PAUSE * 2 ** min(tries - 1, 30), LONGEST_PAUSE)
        return longest * self._pauses.uniform(0.5, 1.0)

    def _given_up(self, fault: _Fault, tries: int, seconds: float) -> RewardServerError:
        asked = f"asked {tries} times in {seconds:.0f} s" if tries > 1 else "asked once"
        what_now = (
            "Start it (tokenrlhf serve-reward), or let it be waited for longer: "
            f"{self.address}#patience=600."
            if fault.may_pass and not fault.is_nonsense
            else "docs/reward-servers.md says what a reward server answers."
        )
        said = str(fault).rstrip(".")
        return RewardServerError(
            f"reward_model={str(self.address)!r}, the reward server, can't be used: {said} "
            f"({asked}). {what_now}"
        )


def _tried(
    line: Line,
    method: str,
    path: str,
    body: bytes | None,
    items: int,
    read: Callable[[bytes], Answer],
) -> Answer:
    """One try.

    Raises:
        _Fault: it failed.
    """
    try:
        reply = line.exchange(method, path, body, items)
    except ssl.SSLError as error:
        raise _Fault(f"TLS fails ({shown(error.reason or str(error), 120)})", False) from None
    except ReplyTooLong as error:
        raise _Fault(f"its reply is too long: {error}", True, is_nonsense=True) from None
    except (OSError, http.client.HTTPException) as error:
        raise _Fault(_broken(error), True) from None
    if reply.status != 200:
        raise _refused(reply, f"{method} {path}")
    try:
        return read(reply.body)
    except OtherModelError as error:
        raise _Fault(f"{error}: start the training anew, or that model again", False) from None
    except NonsenseError as error:
        said = f"its reply to {method} {path} is none of the schema: {error}"
        raise _Fault(said, True, is_nonsense=True) from None


def _broken(error: Exception) -> str:
    """What is said of a connection that failed."""
    if isinstance(error, TimeoutError):
        return str(error) if "no reply" in str(error) else "no connection in time"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there (connection refused)"
    if isinstance(error, http.client.IncompleteRead | http.client.RemoteDisconnected):
        return "the connection ended before the reply did"
    if isinstance(error, http.client.HTTPException):
        return f"what answers speaks no HTTP ({type(error).__name__})"
    assert isinstance(error, OSError)
    return shown(error.strerror or str(error), 120).lower() or type(error).__name__


def _refused(reply: Reply, asked: str) -> _Fault:
    """What is said of a status other than 200."""
    status, said = reply.status, _said(reply.body)
    if 300 <= status < 400:
        place = f" to '{shown(reply.location, 120)}'" if reply.location else ""
        return _Fault(
            f"it sends elsewhere{place} (status {status} to {asked}), and redirects are not "
            "followed: give the address that it leads to",
            False,
        )
    if status in (401, 403):
        return _Fault(
            f"it asks for a token (status {status}){said}: set the environment variable "
            f"{TOKEN_VARIABLE} to the one that it has",
            False,
        )
    if status == 404:
        return _Fault(f"it knows no {asked} (status 404){said}: is it a reward server?", False)
    return _Fault(
        f"it answers {asked} with status {status}{said}",
        status in _PASSING,
        _seconds(reply.retry_after) if status in (429, 503) else 0.0,
    )


def _said(body: bytes) -> str:
    """The reason that the body of an error gives, to be put behind its status."""
    text = body[:4000].decode("utf-8", "replace")
    try:
        content = parse_json(text, "it")
    except ValueError:
        content = text
    if isinstance(content, dict):
        content = content.get("error", content.get("detail", content))
    said = shown(content, 200)
    return f", saying '{said}'" if said else ""


def _seconds(retry_after: str) -> float:
    """Seconds that a `Retry-After` asks to wait: a number, or a date; 0 for anything else."""
    if re.fullmatch(r"\d{1,9}", retry_after.strip()):
        return float(retry_after)
    try:
        date = email.utils.parsedate_to_datetime(retry_after)
        return max(0.0, date.timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def reward_client(text: str) -> RewardClient:
    """A client of the server at an address.

    Every client asks its server what it is, once, and holds that against all replies.

    Raises:
        ValueError: it is no address, or the token can't be used.
    """
    return RewardClient(parse_address(text))
