"""The OpenAI-compatible part of the chat host: other local tools talk to a lane by its name.

A model's name is `base`, `base+adapter`, or `base+adapter:0.5+other`; an adapter's own name alone
means the base it was trained on. Fields that would change the answer and that we cannot honour are
refused by name, never ignored.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from studio.chat.lanes import Event, parse_request
from studio.chat.lanes import Request as ChatRequest
from studio.errors import ChatError, StudioError, nearest
from studio.home import Home
from studio.stack import StackItem

if TYPE_CHECKING:
    from jobs.chat_host import Host, Running

REASONS = {"stop": "stop", "length": "length", "stopped": "stop"}
IGNORED = {"model", "messages", "stream", "stream_options", "user", "metadata", "store", "n"}
MAPPED = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "seed": "seed",
    "stop": "stop",
    "top_k": "top_k",
    "repetition_penalty": "repetition_penalty",
}
NEUTRAL: dict[str, Any] = {
    "presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {}, "tools": [],
    "response_format": {"type": "text"}, "parallel_tool_calls": True, "tool_choice": "none",
    "modalities": ["text"],
}  # fmt: skip


def routes(host: Host) -> list[Route]:
    """Return the routes under /v1."""

    async def models(request: Request) -> Response:
        names = model_names(host.home)
        data = [{"id": n, "object": "model", "created": 0, "owned_by": "local"} for n in names]
        return JSONResponse({"object": "list", "data": data})

    async def completions(request: Request) -> Response:
        from jobs.chat_server import read_json

        try:
            values = await read_json(request)
            running = host.submit(chat_request(values, host.home))
        except StudioError as error:
            return _refused(error)
        name = str(values.get("model", ""))
        if values.get("stream"):
            options = values.get("stream_options") or {}
            pieces = _stream(running, name, usage=bool(options.get("include_usage")))
            return StreamingResponse(pieces, media_type="text/event-stream")
        return await _whole(running, name)

    return [
        Route("/v1/models", models),
        Route("/v1/chat/completions", completions, methods=["POST"]),
    ]


def model_names(home: Home) -> list[str]:
    """Return the names that can be asked for: every base, and every adapter of the library."""
    from studio.adapters.library import adapters
    from studio.models.sources import available

    return [*available(home), *(adapter.name for adapter in adapters(home))]


def chat_request(values: dict[str, Any], home: Home) -> ChatRequest:
    """Turn an OpenAI request into one of ours.

    Raises:
        ChatError: A field is unknown, wrong, or asks for what cannot be done.
    """
    sampling: dict[str, Any] = {}
    for key, value in values.items():
        if value is None or key in IGNORED or value == NEUTRAL.get(key, ...):
            continue
        if key in MAPPED:
            sampling[MAPPED[key]] = value
        elif key == "logprobs":
            sampling["logprobs"] = max(int(bool(value)) - 1, sampling.get("logprobs", -1))
        elif key == "top_logprobs":
            sampling["logprobs"] = value if values.get("logprobs") else -1
        else:
            known = {*MAPPED, *IGNORED, "logprobs", "top_logprobs"}
            raise ChatError(f'"{key}" is not supported here.{nearest(key, known)}')
    if values.get("n") not in (None, 1):
        raise ChatError("n must be 1: ask several times with other seeds.")
    if isinstance(sampling.get("stop"), str):
        sampling["stop"] = [sampling["stop"]]
    messages = values.get("messages")
    if not isinstance(messages, list):
        raise ChatError("messages must be a list of role and content.")
    lane = {
        **_who(values.get("model"), home),
        "messages": [_message(message) for message in messages],
        "sampling": sampling,
    }
    return parse_request({"lanes": [lane]})


def _who(name: Any, home: Home) -> dict[str, Any]:
    if not isinstance(name, str) or not name:
        raise ChatError("model is missing: name a base, or base+adapter.")
    base, *parts = name.split("+")
    stack = [StackItem.read(part).model_dump() for part in parts]
    from studio.adapters.library import adapters

    own = {adapter.name: adapter for adapter in adapters(home)}
    first = StackItem.read(base) if base.rpartition(":")[0] in own else StackItem(name=base)
    if first.name in own:
        if not own[first.name].base:
            raise ChatError(
                f'The adapter "{first.name}" does not say which base it was trained on: '
                f"name it as BASE+{first.name}."
            )
        return {"model": own[first.name].base, "stack": [first.model_dump(), *stack]}
    return {"model": base, "stack": stack}


def _message(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    content = message.get("content")
    if isinstance(content, list):
        if any(not isinstance(p, dict) or p.get("type") != "text" for p in content):
            raise ChatError("Only text can be read here, no images or sound.")
        content = "".join(str(part.get("text", "")) for part in content)
    role = "system" if message.get("role") == "developer" else message.get("role")
    return {"role": role, "content": content or ""}


async def _whole(running: Running, name: str) -> Response:
    from jobs.chat_server import batches

    text, tokens, end = "", [], None
    async for events in batches(running):
        for event in events:
            if event["type"] == "delta":
                text += event["text"]
                tokens += event.get("tokens", [])
            elif event["type"] in ("done", "error"):
                end = event
    if end is None or end["type"] == "error":
        return JSONResponse({"error": _error(end)}, status_code=400)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": _logprobs(tokens),
        "finish_reason": REASONS[end["reason"]],
    }
    return JSONResponse(
        _envelope(running, name, "chat.completion") | {"choices": [choice], "usage": _usage(end)}
        | {"active": end["active"]}
    )  # fmt: skip


async def _stream(running: Running, name: str, *, usage: bool) -> AsyncIterator[bytes]:
    from jobs.chat_server import batches

    head = _envelope(running, name, "chat.completion.chunk")

    def chunk(delta: dict[str, Any], reason: str | None = None, tokens: Any = ()) -> bytes:
        choice = {
            "index": 0, "delta": delta, "logprobs": _logprobs(tokens), "finish_reason": reason
        }  # fmt: skip
        return _sse(head | {"choices": [choice]})

    yield chunk({"role": "assistant", "content": ""})
    async for events in batches(running):
        for event in events:
            if event["type"] == "delta":
                yield chunk({"content": event["text"]}, tokens=event.get("tokens", ()))
            elif event["type"] == "error":
                yield _sse({"error": _error(event)})
                return
            elif event["type"] == "done":
                yield chunk({}, REASONS[event["reason"]])
                if usage:
                    yield _sse(head | {"choices": [], "usage": _usage(event)})
    yield b"data: [DONE]\n\n"


def _envelope(running: Running, name: str, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{running.request.id}", "object": kind, "created": int(time.time()),
        "model": name,
    }  # fmt: skip


def _usage(done: Event) -> dict[str, int]:
    prompt, answer = done["prompt_tokens"], done["tokens"]
    return {
        "prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer
    }  # fmt: skip


def _logprobs(tokens: Any) -> dict[str, Any] | None:
    if not tokens:
        return None

    def entry(token: Event) -> Event:
        raw = list(token["text"].encode())
        return {"token": token["text"], "logprob": token["logprob"], "bytes": raw}

    content = [entry(t) | {"top_logprobs": [entry(other) for other in t["top"]]} for t in tokens]
    return {"content": content, "refusal": None}


def _error(event: Event | None) -> dict[str, Any]:
    text = event["text"] if event else "The answer ended without a reason."
    kind = event["kind"] if event else "chat"
    return {"message": text, "type": "invalid_request_error", "code": kind, "param": None}


def _refused(error: StudioError) -> Response:
    return JSONResponse({"error": _error({"type": "error", **error.as_dict()})}, status_code=400)


def _sse(values: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(values, ensure_ascii=False)}\n\n".encode()
