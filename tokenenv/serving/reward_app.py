"""A reward as a web application: `GET /info`, `POST /score` and `GET /health`, with FastAPI.

One thread scores, request after request, so that a reward need not be safe for several; as many
requests as `max_waiting` wait for it, and further ones are told to come again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from tokenenv.remote import SCHEMA
from tokenenv.serving.replies import Replies
from tokenenv.serving.served import Served
from tokenenv.user_code import UserCodeError

__all__ = ["create_reward_app"]

MOST_BYTES = 64 * 2**20
"""Limit of the body of a request."""


class ScoredItem(BaseModel):
    """A prompt and a response."""

    prompt: str
    response: str
    stopped: bool = Field(True, description="Whether the response ended by itself (EOS).")
    messages: list[dict[str, Any]] | None = Field(
        None, description="The conversation that the prompt is."
    )
    columns: dict[str, Any] = Field({}, description="What else stood in the prompt's row.")
    prompt_ids: list[int] | None = Field(None, description="Where the vocabulary is the same.")
    response_ids: list[int] | None = Field(None, description="Likewise, without the final EOS.")


class ScoreRequest(BaseModel):
    """The body of `POST /score`."""

    model_config = ConfigDict(populate_by_name=True)

    spoken: Literal["tokenrlhf-reward/1"] = Field(alias="schema")
    request_id: str = Field(
        min_length=1, max_length=200, description="The same for all tries of one request."
    )
    items: list[ScoredItem]

    def digest(self) -> str:
        """The same for the same items."""
        text = json.dumps([item.model_dump() for item in self.items])
        return hashlib.sha256(text.encode("ascii")).hexdigest()


class RefusedError(Exception):
    """A request that is not answered with rewards.

    Attributes:
        status: of HTTP.
        headers: of the reply.
    """

    def __init__(self, status: int, said: str, **headers: str) -> None:
        super().__init__(said)
        self.status, self.headers = status, headers


class _Scoring:
    """Scores requests, each id once.

    Args:
        served: the reward.
        replies: those that were given.
        max_waiting: requests that may wait for their turn.
    """

    def __init__(self, served: Served, replies: Replies, max_waiting: int) -> None:
        self.served, self.replies, self.max_waiting = served, replies, max_waiting
        self.fingerprint = served.info(1).fingerprint
        self._running: dict[str, tuple[str, asyncio.Task[list[float | None]]]] = {}
        self._worker = ThreadPoolExecutor(1, "reward")

    async def rewards(self, request: ScoreRequest) -> list[float | None]:
        """The rewards of a request: known ones, those that are being computed, or new ones.

        Raises:
            RefusedError: too many are waiting, its id is another request's, or it can't be scored.
        """
        request_id, digest = request.request_id, request.digest()
        known = self.replies.get(request_id, self.fingerprint)
        if known is not None:
            _require_same(known[0], digest)
            return known[1]
        if request_id not in self._running:
            if len(self._running) > self.max_waiting:
                raise RefusedError(503, "too many requests are waiting", **{"Retry-After": "1"})
            task = asyncio.create_task(self._scored(request_id, digest, request.items))
            self._running[request_id] = digest, task
        before, task = self._running[request_id]
        _require_same(before, digest)
        return await asyncio.shield(task)  # a client that leaves comes back for it

    async def _scored(
        self, request_id: str, digest: str, items: list[ScoredItem]
    ) -> list[float | None]:
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._worker, self._score, request_id, digest, items)
        except UserCodeError as error:  # a service that it asks may be down for a while
            raise RefusedError(500, str(error)) from error
        except ValueError as error:
            raise RefusedError(422, str(error)) from error
        finally:
            del self._running[request_id]

    def _score(self, request_id: str, digest: str, items: list[ScoredItem]) -> list[float | None]:
        rewards = self.served.scores([item.model_dump() for item in items]) if items else []
        self.replies.put(request_id, self.fingerprint, digest, rewards)
        return rewards

    def close(self) -> None:
        """Finish what is being scored, and forget what waits."""
        self._worker.shutdown(wait=True, cancel_futures=True)
        self.replies.close()


def _require_same(before: str, digest: str) -> None:
    if before != digest:
        raise RefusedError(409, "this request id is of another request, with other items")


def create_reward_app(
    served: Served,
    replies: Replies | None = None,
    max_batch: int = 64,
    max_waiting: int = 64,
    token: str | None = None,
) -> FastAPI:
    """The web application of a reward.

    Args:
        served: the reward.
        replies: where replies are kept; None: memory.
        max_batch: the most items of a request.
        max_waiting: requests that may wait for their turn; further ones get a 503.
        token: that requests must bring (`Authorization: Bearer …`); None: none.
    """
    scoring = _Scoring(served, Replies() if replies is None else replies, max_waiting)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        scoring.close()

    app = FastAPI(title="reward server", version=SCHEMA, lifespan=lifespan)
    app.add_middleware(_BodyLimit)

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, error.status, error.headers)

    def allowed(request: Request) -> None:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if token is not None and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            raise RefusedError(401, "the token is missing or wrong")

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "schema": SCHEMA}

    @app.get("/info", dependencies=[Depends(allowed)])
    async def info() -> dict[str, Any]:
        return served.info(max_batch).as_json()

    @app.post("/score", dependencies=[Depends(allowed)])
    async def score(request: ScoreRequest) -> JSONResponse:
        if len(request.items) > max_batch:
            raise RefusedError(
                413, f"{len(request.items)} items, and at most {max_batch} are taken"
            )
        rewards = await scoring.rewards(request)
        said = {"request_id": request.request_id, "fingerprint": scoring.fingerprint}
        return JSONResponse({"schema": SCHEMA, **said, "rewards": rewards})

    return app


class _BodyLimit:
    """Refuses bodies of more than `MOST_BYTES`, before they are in memory."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        received = 0

        async def limited() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MOST_BYTES:
                raise HTTPException(413, f"a request has at most {MOST_BYTES:,} bytes")
            return message

        await self.app(scope, limited, send)
