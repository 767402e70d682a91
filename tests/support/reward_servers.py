"""Reward servers on this machine: ours, and ones that answer as a test says."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tokenenv.remote import SCHEMA, ServerInfo

INFO = ServerInfo(
    "counted", "one-model", max_batch=8, reward_mean=0.0, reward_std=1.0, columns=None
)


def reward_of(item: dict[str, Any]) -> float:
    """A number that only the texts of an item determine."""
    text = f"{item['prompt']}\n{item['response']}".encode()
    return int(hashlib.sha256(text).hexdigest()[:6], 16) / 2**24


class Counted:
    """A reward to serve that counts how often each response is scored."""

    def __init__(self, info: ServerInfo = INFO, seconds: float = 0.0) -> None:
        self.told, self.seconds = info, seconds
        self.scored: Counter[str] = Counter()

    def info(self, max_batch: int) -> ServerInfo:
        return self.told

    def scores(self, items: Sequence[dict[str, Any]]) -> list[float | None]:
        time.sleep(self.seconds)
        self.scored.update(item["response"] for item in items)
        return [reward_of(item) for item in items]


def good_reply(request: dict[str, Any] | None, info: ServerInfo = INFO) -> bytes:
    """What a server in order says: to `GET /info`, or to a request to score."""
    if request is None:
        return json.dumps(info.as_json()).encode()
    rewards = [reward_of(item) for item in request["items"]]
    said = {"request_id": request["request_id"], "fingerprint": info.fingerprint}
    return json.dumps({"schema": SCHEMA, **said, "rewards": rewards}).encode()


Answer = Callable[["Handler", dict[str, Any] | None], None]


class Handler(BaseHTTPRequestHandler):
    """Answers as the server's `answer` says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        with contextlib.suppress(OSError):  # of a client that did not wait
            self.server.answer(self, None)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with contextlib.suppress(OSError):
            self.server.answer(self, json.loads(body))

    def say(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def break_off(self) -> None:
        """Close the connection here and now."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    answer: Answer

    def handle_error(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def scripted(answer: Answer, port: int = 0, tls: Any = None) -> Iterator[str]:
    """The address of a server that answers so; `tls` is a context of it, or None."""
    with _Server(("127.0.0.1", port), Handler) as server:
        server.answer = answer
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def serving(app: Any, port: int = 0) -> Iterator[str]:
    """The address at which uvicorn serves an application."""
    import uvicorn

    listening = socket.create_server(("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]
