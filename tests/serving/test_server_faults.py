"""A thousand faults of a server: no request is lost, and no response is scored twice."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from support.hostile import time_limit
from support.reward_servers import Counted, Handler, free_port, reward_of, scripted

from tokenenv.addresses import parse_address
from tokenenv.remote import RewardClient
from tokenenv.remote import client as client_module

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from tokenenv.serving.replies import Replies
from tokenenv.serving.reward_app import create_reward_app

TIMEOUT = 0.25


class Restarting:
    """Our server, which can be ended at any moment and started again with the file of replies."""

    def __init__(self, file: Path) -> None:
        self.file, self.port, self.served = file, free_port(), Counted()
        self.lock = threading.RLock()
        self.restarts = 0
        self._ends: contextlib.ExitStack | None = None

    def start(self) -> None:
        from support.reward_servers import serving

        self._ends = contextlib.ExitStack()
        app = create_reward_app(self.served, Replies(self.file), max_batch=8)
        self._ends.enter_context(serving(app, self.port))

    def stop(self) -> None:
        assert self._ends is not None
        self._ends.close()

    def restart(self) -> None:
        with self.lock:
            self.stop()
            self.start()
            self.restarts += 1

    def ask(self, body: bytes | None) -> bytes | None:
        """The reply to a request; None where there is none, or it is an error."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            with self.lock if body is None else contextlib.nullcontext():
                connection.request(
                    "GET" if body is None else "POST",
                    "/info" if body is None else "/score",
                    body,
                    {"Content-Type": "application/json"},
                )
                reply = connection.getresponse()
                content = reply.read()
            return content if reply.status == 200 else None
        except OSError:
            return None
        finally:
            connection.close()


NONSENSE = ("HTML", "NaN", "too few", "another schema", "huge", "cut text")
FAULTS = (
    *("refused", "closed before", "closed after", "closed half-way", "late", "500", "503", "429"),
    *("500 after", "restart", *NONSENSE),
)
"""What stands between a client and the server does. "Before": the server has not seen the request;
"after": it has scored it, and its reply is lost."""


class Faulty:
    """A proxy that does harm to `count` requests, and lets the others through."""

    def __init__(self, server: Restarting, count: int, seed: int) -> None:
        self.server, self.left = server, count
        self.done: Counter[str] = Counter()
        self.nonsense: Counter[str] = Counter()
        self._rng, self._lock = random.Random(seed), threading.Lock()

    def fault(self, request_id: str) -> str:
        """What is done to a try; never nonsense so often in a row that a client gives up."""
        with self._lock:
            if not self.left or self._rng.random() < 0.2:
                return "none"
            kind = self._rng.choice(FAULTS)
            if kind == "restart" and self._rng.random() < 0.5:
                kind = "closed after"
            if kind in NONSENSE:
                if self.nonsense[request_id] == client_module.NONSENSE_TRIES - 1:
                    kind = "500"
                else:
                    self.nonsense[request_id] += 1
            if kind not in NONSENSE:
                self.nonsense[request_id] = 0
            self.left -= 1
            self.done[kind] += 1
            return kind

    def __call__(self, handler: Handler, request: dict[str, Any] | None) -> None:
        if request is None:
            reply = self.server.ask(None)
            assert reply is not None
            handler.say(200, reply)
            return
        body, kind = json.dumps(request).encode(), self.fault(request["request_id"])
        if kind in ("refused", "closed before"):
            handler.break_off()
            return
        if kind in ("500", "503", "429"):
            handler.say(int(kind), b"<h1>oh</h1>", Retry_After="0")
            return
        reply = self.server.ask(body)
        if kind == "restart":
            self.server.restart()
        if reply is None or kind in ("closed after", "restart"):
            handler.break_off()
        elif kind == "late":
            time.sleep(2 * TIMEOUT)
            handler.say(200, reply)
        elif kind == "500 after":
            handler.say(500, b"")
        elif kind == "closed half-way":
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(reply)))
            handler.end_headers()
            handler.wfile.write(reply[: len(reply) // 2])
            handler.break_off()
        else:
            handler.say(200, self.changed(kind, reply))

    @staticmethod
    def changed(kind: str, reply: bytes) -> bytes:
        content = json.loads(reply)
        if kind == "NaN":
            content["rewards"][-1] = float("nan")
        elif kind == "too few":
            content["rewards"].pop()
        elif kind == "another schema":
            content["schema"] = "tokenrlhf-reward/9"
        return {
            "HTML": b"<html>Be back soon</html>",
            "huge": b"9" * 2**21,
            "cut text": reply[: len(reply) // 2],
        }.get(kind, json.dumps(content).encode())


@contextlib.contextmanager
def faulty(file: Path, count: int, seed: int) -> Iterator[tuple[Faulty, RewardClient]]:
    server = Restarting(file)
    server.start()
    proxy = Faulty(server, count, seed)
    try:
        with scripted(proxy) as url:
            yield proxy, RewardClient(parse_address(f"{url}#timeout={TIMEOUT}&patience=120"))
    finally:
        server.stop()


def score_through(proxy: Faulty, client: RewardClient) -> int:
    """Score until all faults have happened, in rollouts of all sizes; how many responses."""
    rng, number = random.Random(1), 0
    while proxy.left:
        size = rng.choice((1, 8, 40, 150))
        items = [
            {"prompt": "p", "response": f"r{number + i}", "stopped": True} for i in range(size)
        ]
        assert client.scores(items) == [reward_of(item) for item in items]
        number += size
    return number


@pytest.mark.parametrize(
    "count", [100, pytest.param(1000, marks=pytest.mark.slow)], ids=["100", "1000"]
)
def test_no_request_is_lost_and_no_response_scored_twice(count, tmp_path, monkeypatch):
    """Every reward is the one of its response, and the server has scored each response once.

    Of 1,000 faults every kind comes; a restart ends the server between two requests, after it has
    kept its reply and before anybody has heard of it.
    """
    monkeypatch.setattr(client_module, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(client_module, "LONGEST_PAUSE", 0.05)
    with faulty(tmp_path / "replies", count, seed=count) as (proxy, client), time_limit(400):
        number = score_through(proxy, client)
    assert sum(proxy.done.values()) == count
    assert len(proxy.done) >= (len(FAULTS) if count == 1000 else 10)
    scored = proxy.server.served.scored
    assert len(scored) == number, "each was scored"
    assert set(scored.values()) == {1}, scored.most_common(5)
    assert proxy.server.restarts == proxy.done["restart"] > 0


def test_the_proxy_does_harm(tmp_path):
    """Without tries in plenty the first fault would be the end: the faults are real."""
    with faulty(tmp_path / "replies", 50, seed=1) as (proxy, client):
        with pytest.raises(Exception, match="can't be used"), pytest.MonkeyPatch.context() as patch:
            patch.setattr(client_module, "NONSENSE_TRIES", 1)
            patch.setattr(client_module, "_PASSING", ())
            score_through(proxy, client)
