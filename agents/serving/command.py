"""Binds the port, loads the reward, and answers until a signal comes."""

from __future__ import annotations

import contextlib
import os
import re
import socket

import torch
from rich.console import Console
from rich.text import Text

from agents.console import literal
from agents.serving.config import ServeRewardConfig
from tokenenv.addresses import TOKEN_VARIABLE
from tokenenv.models import resolve_device
from tokenenv.serving.replies import Replies
from tokenenv.serving.served import served_reward

__all__ = ["serve_reward"]

_ANY = ("0.0.0.0", "::")
_LOOPBACK = re.compile(r"localhost|127\..*|::1")


def serve_reward(config: ServeRewardConfig, console: Console) -> None:
    """Serve `config.reward_model` until Ctrl-C or another signal.

    Raises:
        ValueError: a library is missing, the port is taken, or the reward can't be served.
    """
    try:
        import uvicorn

        from tokenenv.serving.reward_app import create_reward_app
    except ModuleNotFoundError as error:
        raise ValueError(
            f"serve-reward needs {error.name}: install it with pip install 'tokenrlhf[serve]'."
        ) from error
    token = os.environ.get(TOKEN_VARIABLE) or None
    with contextlib.closing(_bound(config.host, config.port)) as listening:
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        replies = Replies(config.replies)
        served = served_reward(config.reward_model, resolve_device(config.device), config.dtype)
        app = create_reward_app(served, replies, config.max_batch, config.max_waiting, token)
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
        )
        _announce(config, listening.getsockname()[1], token, console)
        server.run(sockets=[listening])


def _bound(host: str, port: int) -> socket.socket:
    """A socket at the address, before anything is loaded.

    Raises:
        ValueError: it can't be had.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError, ValueError) as error:
        raise ValueError(
            f"host={host!r:.100} is no address of this machine ({error}): give 127.0.0.1, or "
            "0.0.0.0 for all that it has."
        ) from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(place)
        bound.listen(2048)  # so that whoever asks while the reward is loaded waits
    except OSError as error:
        bound.close()
        raise ValueError(
            f"port={port} of host={host!r:.100} can't be listened at ({error.strerror}): choose "
            "another --port (0: any that is free), or stop what listens there."
        ) from error
    return bound


def _announce(config: ServeRewardConfig, port: int, token: str | None, console: Console) -> None:
    host = "127.0.0.1" if config.host in _ANY else config.host
    place = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    console.print(
        literal(
            f"serving {config.reward_model} at {place}; use it with: tokenrlhf train "
            f"--reward-model {place}"
        ),
        soft_wrap=True,
    )
    if token is None and not _LOOPBACK.fullmatch(config.host):
        console.print(
            Text.assemble(
                ("warning: ", "yellow"),
                "anybody who reaches this port may use it. Where that is not meant, set "
                f"{TOKEN_VARIABLE} here and where the training runs, and put a proxy with TLS in "
                "front.",
            ),
            soft_wrap=True,
        )
