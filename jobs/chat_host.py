"""The chat host: the process that keeps models in memory and answers lanes over HTTP.

The first page or command that needs it starts it; it shuts down after a while without requests.
It listens on the loopback address only, for the holder of the token in the state file, under its
own Host header (so that no web page reaches it through a rebound name) and for no other origin.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from jobs import openai_api
from jobs.chat_client import LEAVING_STATUS, state_path
from jobs.chat_worker import IDLE_SECONDS, ChatWorker, RunningRequest
from jobs.processes import FileLock, exit_now, me
from studio import atomic, gpus, offline
from studio.chat.lanes import ChatRequest, Event, NewWeights
from studio.errors import ChatError, StudioError
from studio.home import Home, open_home

logger = logging.getLogger(__name__)

PACE_SECONDS = 1 / 24  # text is sent about 24 times a second
GATHER_SECONDS = 0.005  # the first tokens of all lanes are sent together
MAX_BODY_BYTES = 32_000_000


class TokenGuard:
    """Refuse every request without the token, from another origin or for another host name."""

    def __init__(self, app: ASGIApp, worker: ChatWorker, port: int) -> None:
        self._app = app
        self._leaving = worker.leaving
        self._expected = f"Bearer {worker.token}".encode()
        self._hosts = {f"{name}:{port}".encode() for name in ("127.0.0.1", "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with a refusal, or pass the request on."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        if headers.get(b"host") not in self._hosts:
            refusal = _refusal(421, "Use the address 127.0.0.1.")
        elif b"origin" in headers:
            refusal = _refusal(403, "Requests of web pages are refused.")
        elif not secrets.compare_digest(headers.get(b"authorization", b""), self._expected):
            refusal = _refusal(401, "Missing or invalid token.")
        elif self._leaving.is_set():
            refusal = _refusal(LEAVING_STATUS, "This chat process is shutting down: send again.")
        else:
            await self._app(scope, receive, send)
            return
        await refusal(scope, receive, send)


def make_app(worker: ChatWorker, port: int) -> ASGIApp:
    """Return the chat host's web application, behind its guard."""

    async def generate(request: Request) -> Response:
        running = worker.submit(ChatRequest.parse(await read_json(request)))
        return StreamingResponse(lines(running), media_type="application/x-ndjson")

    async def status(request: Request) -> Response:
        return JSONResponse(worker.status())

    async def stop(request: Request) -> Response:
        return JSONResponse({"stopped": worker.stop(request.path_params["request"])})

    async def weigh(request: Request) -> Response:
        return JSONResponse({"moved": worker.weigh(NewWeights.parse(await read_json(request)))})

    async def release(request: Request) -> Response:
        await worker.release()
        return JSONResponse(worker.status())

    async def leave(request: Request) -> Response:
        worker.leaving.set()
        return JSONResponse({"leaving": True})

    async def models(request: Request) -> Response:
        return JSONResponse(openai_api.model_list(worker.home))

    async def completions(request: Request) -> Response:
        try:
            values = await read_json(request)
            running = worker.submit(openai_api.chat_request(values, worker.home))
        except StudioError as error:
            return JSONResponse(openai_api.error_body(error.as_dict()), 400)
        found = batches(running)
        if values.get("stream"):
            chunks = openai_api.chunks(found, running.request.id, values)
            return StreamingResponse(chunks, media_type="text/event-stream")
        leaves = asyncio.create_task(_stop_when_left(request, running))
        try:
            body = await openai_api.completion(found, running.request.id, values)
        finally:
            leaves.cancel()
        return JSONResponse(body, openai_api.status_of(body))

    async def stay(request: Request) -> Response:
        seconds = float((await read_json(request))["idle_seconds"])
        worker.idle_seconds = max(worker.idle_seconds, seconds)
        return JSONResponse({"idle_seconds": worker.idle_seconds})

    app = Starlette(
        routes=[
            Route("/generate", generate, methods=["POST"]),
            Route("/status", status),
            Route("/stop/{request}", stop, methods=["POST"]),
            Route("/weigh", weigh, methods=["POST"]),
            Route("/release", release, methods=["POST"]),
            Route("/quit", leave, methods=["POST"]),
            Route("/stay", stay, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/chat/completions", completions, methods=["POST"]),
        ],
        exception_handlers={StudioError: _explain},
    )
    return TokenGuard(app, worker, port)


async def read_json(request: Request) -> dict[str, Any]:
    """Read a JSON object of bounded size from a request to the chat host.

    Raises:
        ChatError: The request is too long or not a JSON object.
    """
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise ChatError(f"The request exceeds {MAX_BODY_BYTES:,} bytes: shorten it.")
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise ChatError("The request is not valid JSON.") from None
    if not isinstance(values, dict):
        raise ChatError("The request must be a JSON object.")
    return values


async def batches(running: RunningRequest) -> AsyncIterator[list[Event]]:
    """Yield the events of a request to the chat host in batches; stop if the reader disconnects."""
    buffer = running.events
    try:
        await buffer.wait()
        await buffer.rest(GATHER_SECONDS)
        while True:
            await buffer.wait()
            ended = buffer.ended.is_set()
            if events := buffer.take():
                yield events
            if ended:
                return
            await buffer.rest(PACE_SECONDS)
    finally:
        running.stop.set()


async def _stop_when_left(request: Request, running: RunningRequest) -> None:
    """Stop an answer that is not streamed when its reader disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    running.stop.set()


async def lines(running: RunningRequest) -> AsyncIterator[bytes]:
    """Yield the chat host's events as one JSON object per line."""
    async for events in batches(running):
        yield "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events).encode()


async def _explain(request: Request, error: Exception) -> Response:
    assert isinstance(error, StudioError)
    return JSONResponse({"error": error.as_dict()}, status_code=400)


def _refusal(code: int, text: str) -> JSONResponse:
    return JSONResponse({"error": {"kind": "refused", "text": text}}, status_code=code)


def main(arguments: list[str] | None = None) -> int:
    """Run the chat host until it is idle or told to quit; a second host exits at once."""
    parser = argparse.ArgumentParser(prog="python -m jobs.chat_host")
    parser.add_argument("--home", required=True)
    parser.add_argument("--idle-seconds", type=float, default=IDLE_SECONDS)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    home = open_home(options.home)
    offline.apply(home)
    gpus.fix_order()
    lock = FileLock(home.state / "chat_host.lock")
    if not lock.acquire(timeout_seconds=0.2):
        logger.info("another chat host is running")
        return 0
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        try:
            asyncio.run(_serve(home, listener, options.idle_seconds))
        finally:
            state_path(home).unlink(missing_ok=True)
            lock.close()
    return 0


async def _serve(home: Home, listener: socket.socket, idle_seconds: float) -> None:
    import uvicorn

    from jobs.http_server import Server

    worker = ChatWorker(home, idle_seconds=idle_seconds)
    port = listener.getsockname()[1]
    config = uvicorn.Config(
        make_app(worker, port),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
    )
    server = Server(config)
    state = {"identity": str(me()), "port": port, "token": worker.token}
    atomic.write(state_path(home), json.dumps(state), private=True)
    worker.announce(port)
    worker.warm_up()
    watchers = [
        asyncio.create_task(worker.watch()),
        asyncio.create_task(_leave_when_idle(worker)),
        asyncio.create_task(_leave(server, worker)),
    ]
    worker.last_used = time.monotonic()
    logger.info("answering on port %d", port)
    await server.serve(sockets=[listener])
    for watcher in watchers:
        watcher.cancel()
    worker.stop_all()
    worker.close()


async def _leave_when_idle(worker: ChatWorker) -> None:
    while not worker.leaving.is_set():
        await asyncio.sleep(min(5.0, max(0.05, worker.idle_seconds / 4)))
        idle = not worker.requests and time.monotonic() - worker.last_used > worker.idle_seconds
        if idle or not worker.home.state.is_dir():
            logger.info("idle: shutting down")
            worker.leaving.set()


async def _leave(server: Any, worker: ChatWorker) -> None:
    await worker.leaving.wait()
    worker.stop_all("The chat process is shutting down: the answer was stopped.")
    server.stop()


if __name__ == "__main__":
    exit_now(main())
