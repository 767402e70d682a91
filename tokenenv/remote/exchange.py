"""One HTTP request and its reply, within a time and a size; nothing is tried again here.

`http.client`'s own timeout is of a single read: a server that sends a byte now and then would keep
a client for ever. So a timer shuts the connection when the time of the whole exchange is over.
Redirects are not followed, proxies of the environment not used: an address means what it says.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenenv.addresses import Address

__all__ = ["Line", "Reply", "ReplyTooLong"]

CONNECT_SECONDS = 10.0
"""Limit of the time until there is a connection, which nothing but a timeout ends."""

_BASE_SIZE, _SIZE_OF_ITEM = 2**20, 256
"""Bytes of a reply that are read at the most: a part for all, and one for each item."""


class ReplyTooLong(ValueError):
    """A reply has more bytes than any that the schema allows."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Status, headers that matter and body of a reply.

    Attributes:
        status: of HTTP.
        body: as bytes.
        retry_after: the header of that name, "" where there is none.
        location: where a redirect leads to, "" likewise.
    """

    status: int
    body: bytes
    retry_after: str = ""
    location: str = ""


class Line:
    """Exchanges with one server, from any thread, which `cut` ends together.

    Args:
        address: of the server.
        token: sent with every request; None: none.
    """

    def __init__(self, address: Address, token: str | None = None) -> None:
        self.address, self.token = address, token
        self.is_cut = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()

    def cut(self) -> None:
        """End what is under way; whoever waits for it gets an OSError."""
        self.is_cut.set()
        with self._lock:
            sockets = list(self._sockets)
        for one in sockets:
            _shut(one)

    def exchange(self, method: str, path: str, body: bytes | None, items: int = 0) -> Reply:
        """Send a request and read its reply.

        Args:
            method: `"GET"` or `"POST"`.
            path: below that of the address.
            body: JSON, or None.
            items: how many the reply answers.

        Raises:
            OSError: there is no connection, it broke, or the time is over (`TimeoutError`).
            http.client.HTTPException: what came back is no HTTP, or ends before its end.
            ReplyTooLong: it has more bytes than it may have.
        """
        connection = self._connection()
        is_late = threading.Event()
        try:
            connection.connect()
            connection.sock.settimeout(self.address.timeout + 5.0)  # the timer comes first
            with self._within_time(connection.sock, is_late):
                connection.request(method, f"{self.address.path}{path}", body, self._headers(body))
                return _read(connection.getresponse(), _BASE_SIZE + items * _SIZE_OF_ITEM)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if is_late.is_set() and not isinstance(error, ReplyTooLong):
                raise TimeoutError(f"no reply within {self.address.timeout:g} s") from error
            raise
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self.address.host, self.address.port
        timeout = min(self.address.timeout, CONNECT_SECONDS)
        if self.address.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=timeout)
        return http.client.HTTPSConnection(host, port, timeout=timeout, context=_context())

    def _headers(self, body: bytes | None) -> dict[str, str]:
        headers = {"Accept": "application/json", "Connection": "close", "User-Agent": "tokenrlhf"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        return headers

    @contextlib.contextmanager
    def _within_time(self, connected: Any, is_late: threading.Event) -> Iterator[None]:
        """Shut the socket when its time is over, or the line is cut."""

        def expire() -> None:
            is_late.set()
            _shut(connected)

        timer = threading.Timer(self.address.timeout, expire)
        timer.daemon = True
        with self._lock:
            self._sockets.add(connected)
        timer.start()
        try:
            if self.is_cut.is_set():
                raise ConnectionAbortedError("it was broken off")
            yield
        finally:
            timer.cancel()
            with self._lock:
                self._sockets.discard(connected)


@functools.cache
def _context() -> ssl.SSLContext:
    """With the system's certificates, which take longer to read than a request takes."""
    return ssl.create_default_context()


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError, ValueError):
        one.shutdown(socket.SHUT_RDWR)


def _read(response: http.client.HTTPResponse, most: int) -> Reply:
    if response.length is not None and response.length > most:
        raise ReplyTooLong(f"it has {response.length:,} bytes, and at most {most:,} are read")
    body = response.read(most + 1)
    if len(body) > most:
        raise ReplyTooLong(f"it has more than the {most:,} bytes that are read at the most")
    if response.length:  # a read of so many bytes does not complain by itself
        raise http.client.IncompleteRead(body, response.length)
    return Reply(
        response.status,
        body,
        response.getheader("Retry-After", "") or "",
        response.getheader("Location", "") or "",
    )
