"""The chat host's HTTP side: who may ask, and how events become a stream.

Only the loopback address, only with the token of the state file, only with our own Host header (so
that a web page cannot reach it by a rebound name), and never from a browser's other origin. Text is
sent about twenty-four times a second; the first piece at once.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from jobs.chat_host import LEAVING_STATUS, Host, Running
from studio.chat.lanes import Event, parse_request
from studio.errors import ChatError, StudioError

PACE_SECONDS = 1 / 24
GATHER_SECONDS = 0.005  # the first tokens of all lanes leave together
MAX_BODY_BYTES = 32_000_000


class Guard:
    """Refuse everybody but the holder of the token on this very machine."""

    def __init__(self, app: ASGIApp, host: Host, port: int) -> None:
        self._app = app
        self._leaving = host.leaving
        self._expected = f"Bearer {host.token}".encode()
        self._hosts = {f"{name}:{port}".encode() for name in ("127.0.0.1", "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on what is allowed."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        if headers.get(b"host") not in self._hosts:
            refusal = _refusal(421, "This host is reached as 127.0.0.1 only.")
        elif b"origin" in headers:
            refusal = _refusal(403, "Web pages of other origins are not answered.")
        elif not secrets.compare_digest(headers.get(b"authorization", b""), self._expected):
            refusal = _refusal(401, "The token is missing or wrong.")
        elif self._leaving.is_set():
            refusal = _refusal(LEAVING_STATUS, "This chat process is ending: ask again.")
        else:
            await self._app(scope, receive, send)
            return
        await refusal(scope, receive, send)


def make_app(host: Host, port: int) -> ASGIApp:
    """Return the guarded application."""
    from jobs.chat_openai import routes

    async def generate(request: Request) -> Response:
        running = host.submit(parse_request(await read_json(request)))
        return StreamingResponse(lines(running), media_type="application/x-ndjson")

    async def status(request: Request) -> Response:
        return JSONResponse(host.status())

    async def stop(request: Request) -> Response:
        return JSONResponse({"stopped": host.stop(request.path_params["request"])})

    async def weigh(request: Request) -> Response:
        moved = host.weigh(request.path_params["request"], await read_json(request))
        return JSONResponse({"moved": moved})

    async def release(request: Request) -> Response:
        await host.release()
        return JSONResponse(host.status())

    async def leave(request: Request) -> Response:
        host.leaving.set()
        return JSONResponse({"leaving": True})

    app = Starlette(
        routes=[
            Route("/generate", generate, methods=["POST"]),
            Route("/status", status),
            Route("/stop/{request}", stop, methods=["POST"]),
            Route("/weigh/{request}", weigh, methods=["POST"]),
            Route("/release", release, methods=["POST"]),
            Route("/quit", leave, methods=["POST"]),
            *routes(host),
        ],
        exception_handlers={StudioError: _explain},
    )
    return Guard(app, host, port)


async def read_json(request: Request) -> dict[str, Any]:
    """Read a bounded JSON object.

    Raises:
        ChatError: The body is too long or is none.
    """
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise ChatError(f"The request is longer than {MAX_BODY_BYTES:,} bytes: shorten it.")
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise ChatError("The request is not valid JSON.") from None
    if not isinstance(values, dict):
        raise ChatError("The request must be a JSON object.")
    return values


async def batches(running: Running) -> AsyncIterator[list[Event]]:
    """Yield a request's events as they gather; when the reader goes, the answer ends."""
    outbox = running.outbox
    try:
        await outbox.wait()
        await outbox.rest(GATHER_SECONDS)
        while True:
            await outbox.wait()
            ended = outbox.ended.is_set()
            if events := outbox.take():
                yield events
            if ended:
                return
            await outbox.rest(PACE_SECONDS)
    finally:
        running.stop.set()


async def lines(running: Running) -> AsyncIterator[bytes]:
    """Yield the events as one JSON object a line."""
    async for events in batches(running):
        yield "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events).encode()


async def _explain(request: Request, error: Exception) -> Response:
    assert isinstance(error, StudioError)
    return JSONResponse({"error": error.as_dict()}, status_code=400)


def _refusal(code: int, text: str) -> JSONResponse:
    return JSONResponse({"error": {"kind": "refused", "text": text}}, status_code=code)
