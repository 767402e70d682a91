"""Addresses of reward servers, as `reward_model` may give them: `http://HOST:PORT/PATH#timeout=60`.

What stands behind the # is for the client alone, and is sent to nobody. An address with a user name
or a password is refused, and no message shows one: settings go into files that are shared.

Importing this loads no torch and no HTTP: settings are checked with it before anything is.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from tokenenv.ranges import POSITIVE_FINITE

__all__ = ["TOKEN_VARIABLE", "Address", "check_addresses", "names_server", "parse_address"]

TOKEN_VARIABLE = "TOKENRLHF_REWARD_TOKEN"
"""The environment variable with the token that servers ask for and clients send."""

TIMEOUT = 60.0
PATIENCE = 300.0

_SETTINGS = ("timeout", "patience")
_BEGINNING = re.compile(r"https?://", re.IGNORECASE)
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_MOST_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a server, and how long its client waits.

    Attributes:
        scheme: `"http"` or `"https"`.
        host: a name or an IP address, without brackets.
        port: of the server.
        path: what comes before `/info` and `/score`; "" or `"/…"` without a slash at its end.
        timeout: seconds that one request may take.
        patience: seconds from the first failure of a request until it is given up.
    """

    scheme: str
    host: str
    port: int
    path: str = ""
    timeout: float = TIMEOUT
    patience: float = PATIENCE

    @property
    def place(self) -> str:
        """`HOST:PORT`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.place}{self.path}"


def names_server(value: Any) -> bool:
    """Whether a reward model is the address of a server."""
    return isinstance(value, str) and _BEGINNING.match(value) is not None


def check_addresses(reward_model: Any, role: str = "reward_model") -> None:
    """Check the addresses among rewards; nothing is asked of a server.

    Args:
        reward_model: a reward, a list of them, or None.
        role: the argument that named them, for messages.

    Raises:
        ValueError: one of them is no address.
    """
    several = reward_model if isinstance(reward_model, list | tuple) else [reward_model]
    for one in several:
        if names_server(one):
            parse_address(one, role)


def parse_address(text: str, role: str = "reward_model") -> Address:
    """The address that a text is.

    Args:
        text: the address.
        role: the argument that named it, for messages.

    Raises:
        ValueError: it is none, holds a user name, a password or a query, or a setting behind its #
            is unknown or out of its range.
    """
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(
            f"{role} is an address with spaces, controls or letters beyond ASCII: write it as "
            "http://HOST:PORT, a name of another alphabet in its xn--… form."
        )
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:  # of brackets, or of a port
        raise ValueError(
            f"{role} is an address that can't be read: write http://HOST:PORT, with a port from 1 "
            "to 65535, and an IPv6 address in brackets, http://[::1]:8000."
        ) from None
    _refuse_secrets(parts, role)
    said = f"{role}={text.partition('#')[0]!r:.200}"
    if not host or not _is_host(host) or port == 0:
        raise ValueError(
            f"{said} names no server: write http://HOST:PORT, such as http://127.0.0.1:8000."
        )
    default = 443 if parts.scheme == "https" else 80
    settings = _settings(parts.fragment, said)
    return Address(parts.scheme, host, port or default, parts.path.rstrip("/"), **settings)


def _refuse_secrets(parts: SplitResult, role: str) -> None:
    """Raise ValueError where an address may hold a secret; the message holds none of it."""
    what = "a query (?…)" * bool(parts.query)
    if "@" in parts.netloc:
        what = "a user name or a password"
    if what:
        raise ValueError(
            f"{role} is an address with {what}: it would be written into the files of runs. Leave "
            f"it out; a token goes into the environment variable {TOKEN_VARIABLE}, and is sent as "
            "'Authorization: Bearer …'."
        )


def _is_host(host: str) -> bool:
    if ":" not in host:
        return _HOST.fullmatch(host) is not None
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _settings(fragment: str, said: str) -> dict[str, float]:
    """What stands behind the #, such as `timeout=60&patience=300`."""
    found: dict[str, float] = {}
    for part in filter(None, fragment.split("&")):
        name, _, value = part.partition("=")
        if name not in _SETTINGS or name in found:
            raise ValueError(
                f"{said}: behind the # may stand {' and '.join(_SETTINGS)}, each once, in seconds: "
                "#timeout=60&patience=300."
            )
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = -1.0
        if not POSITIVE_FINITE.holds(found[name]) or found[name] > _MOST_SECONDS:
            raise ValueError(
                f"{said}: {name} must be a positive number of seconds, at most "
                f"{_MOST_SECONDS:,.0f}."
            )
    return found
