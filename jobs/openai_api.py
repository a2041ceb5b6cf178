"""The OpenAI-compatible API of the chat host: its requests, answers and streams as plain values.

A model's name is `base`, `base+adapter`, or `base+adapter:0.5+other`; an adapter's own name alone
means the base it was trained on. Adapters' names may be percent-encoded. Without a limit an answer
may fill the context. Unsupported fields that would change the answer are refused by name, never
ignored. `chat_host` owns the routes and the models.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any
from urllib.parse import quote, unquote

from studio.adapter_stack import StackItem
from studio.adapters.library import adapters
from studio.chat.lanes import MAX_NEW_TOKENS, ChatRequest, Event
from studio.chat.thought_and_tool_parser import OpenAIMessage, Piece
from studio.data.template import read_settings
from studio.errors import ChatError, nearest
from studio.home import Home
from studio.models.model_list import usable

STOPPED = {
    "type": "error", "kind": "stopped",
    "text": "The answer was stopped before its end, because a job needs the device or the chat "
    "process shuts down: send again.",
}  # fmt: skip
IGNORED = {
    "model", "messages", "tools", "stream", "stream_options", "user", "metadata", "store", "n",
    "reasoning_effort", "service_tier", "logprobs", "top_logprobs",
}  # fmt: skip
SAMPLING = {
    **{name: name for name in ("temperature", "top_p", "seed", "stop", "top_k",
                               "repetition_penalty", "chat_template_kwargs")},
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
}  # fmt: skip
NEUTRAL: dict[str, Any] = {
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "min_p": 0,
    "logit_bias": {},
    "response_format": {"type": "text"},
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "modalities": ["text"],
}
MORE = ("reasoning_content", "tool_calls", "tool_call_id", "name")  # of a message
Batches = AsyncIterator[list[Event]]
Values = dict[str, Any]


def model_names(home: Home) -> list[str]:
    """Return all model names of the OpenAI API: all bases, and all adapters of the library."""
    return [*(model.path for model in usable(home)), *(adapter.name for adapter in adapters(home))]


def model_list(home: Home) -> Values:
    """Return the response of `/v1/models`."""
    names = model_names(home)
    data = [{"id": n, "object": "model", "created": 0, "owned_by": "local"} for n in names]
    return {"object": "list", "data": data}


def chat_request(values: Values, home: Home) -> ChatRequest:
    """Turn an OpenAI request into one of ours; absent sampling fields take our defaults.

    Raises:
        ChatError: A field is unknown, invalid or unsupported.
    """
    sampling: Values = {"max_new_tokens": MAX_NEW_TOKENS}
    tools = values.get("tools") if values.get("tool_choice") != "none" else None
    for key, value in values.items():
        if value is None or key in IGNORED or value == NEUTRAL.get(key, ...):
            continue
        if (key, value) == ("tool_choice", "none") or (key == "parallel_tool_calls" and not tools):
            continue
        if key not in SAMPLING:
            raise ChatError(f'"{key}" is not supported here.{nearest(key, {*SAMPLING, *IGNORED})}')
        sampling[SAMPLING[key]] = value
    if values.get("n") not in (None, 1):
        raise ChatError("n must be 1: send several requests with different seeds.")
    if not isinstance(values.get("stream_options") or {}, dict):
        raise ChatError("stream_options must be an object.")
    if values.get("logprobs"):
        sampling["logprobs"] = values.get("top_logprobs") or 0
    if effort := values.get("reasoning_effort"):
        try:
            own = read_settings(values.get("chat_template_kwargs") or {})
        except ValueError as error:
            raise ChatError(f"chat_template_kwargs: {error}.") from None
        sampling["chat_template_kwargs"] = own | {"reasoning_effort": effort}
    if isinstance(sampling.get("stop"), str):
        sampling["stop"] = [sampling["stop"]]
    messages = values.get("messages")
    if not isinstance(messages, list):
        raise ChatError("messages must be a list of role and content.")
    lane = {
        **_model_and_stack(values.get("model"), home),
        "messages": [_message(message) for message in messages],
        "tools": tools or (),
        "sampling": sampling,
    }
    return ChatRequest.parse({"lanes": [lane]})


def _model_and_stack(name: Any, home: Home) -> Values:
    if not isinstance(name, str) or not name:
        raise ChatError("model is missing: name a base, or base+adapter.")
    own = {adapter.name: adapter for adapter in reversed(adapters(home))}  # the newest of a name
    bases = [model.path for model in usable(home)]
    # Known names are read whole, the longest first, bases before adapters: they may hold "+".
    known = [one for one in (*bases, *own) if f"{name}+".startswith((f"{one}+", f"{one}:"))]
    first = max(known, key=len, default=name.partition("+")[0])
    weight, *parts = name[len(first) :].split("+")
    stack = [_item(part) for part in parts]
    if first in bases or first not in own:
        return {"model": first + weight, "stack": stack}
    if not own[first].base:
        raise ChatError(
            f'The adapter "{first}" does not say which base it was trained on: '
            f"name it as BASE+{first}."
        )
    return {"model": own[first].base, "stack": [_item(quote(first) + weight), *stack]}


def _item(part: str) -> Values:
    item = StackItem.read(part).model_dump()
    return item | {"name": unquote(item["name"])}


def _message(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    content = message.get("content")
    if isinstance(content, list):
        if any(not isinstance(p, dict) or p.get("type") != "text" for p in content):
            raise ChatError("Only text can be read here, no images or sound.")
        content = "".join(str(part.get("text", "")) for part in content)
    role = "system" if message.get("role") == "developer" else message.get("role")
    more = {key: message[key] for key in MORE if message.get(key)}
    return {"role": role, "content": content or "", **more}


async def completion(batches: Batches, request_id: str, values: Values) -> Values:
    """Return an OpenAI response that is not streamed: a completion or an error."""
    message, tokens, end = _gathered(request_id), [], None
    async for events in batches:
        for event in events:
            if event["type"] == "delta":
                message.take(Piece(event.get("part", "text"), event["text"]))
                tokens += event.get("tokens", [])
            elif event["type"] in ("done", "error"):
                end = event
    if end and end.get("reason") == "stopped":
        end = STOPPED
    if end is None or end["type"] == "error":
        return error_body(end or {"kind": "chat", "text": "The answer ended without a reason."})
    whole = message.finish()
    choice = {
        "index": 0,
        "message": whole,
        "logprobs": _logprobs(tokens),
        "finish_reason": _reason(end, message),
    }
    head = _head(request_id, values, "chat.completion")
    return head | {"choices": [choice], "usage": _usage(end), "active": end["active"]}


async def chunks(batches: Batches, request_id: str, values: Values) -> AsyncIterator[bytes]:
    """Yield a streamed OpenAI answer as server-sent events."""
    head, message = _head(request_id, values, "chat.completion.chunk"), _gathered(request_id)

    def chunk(delta: Values, reason: str | None = None, tokens: Iterable[Event] = ()) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": _logprobs(tokens)}
        return _sse(head | {"choices": [choice | {"finish_reason": reason}]})

    yield chunk({"role": "assistant", "content": ""})
    async for events in batches:
        for event in events:
            if event["type"] == "delta":
                piece = Piece(event.get("part", "text"), event["text"])
                if (added := message.take(piece)) or "tokens" in event:
                    yield chunk(added, tokens=event.get("tokens", ()))
            elif event["type"] == "error" or event.get("reason") == "stopped":
                yield _sse(error_body(event if event["type"] == "error" else STOPPED))
                return
            elif event["type"] == "done":
                if added := message.end_call():
                    yield chunk(added)
                yield chunk({}, _reason(event, message))
                if (values.get("stream_options") or {}).get("include_usage"):
                    yield _sse(head | {"choices": [], "usage": _usage(event)})
    yield b"data: [DONE]\n\n"


def _gathered(request_id: str) -> OpenAIMessage:
    return OpenAIMessage(lambda place: f"call_{request_id}_{place}")


def _reason(done: Event, message: OpenAIMessage) -> str:
    reason = done["reason"]
    return "tool_calls" if message.calls and reason == "stop" else str(reason)


def error_body(error: Event) -> Values:
    """Return OpenAI's form of an error that has `kind` and `text`."""
    code = error["kind"]
    kind = "server_error" if code == STOPPED["kind"] else "invalid_request_error"
    return {"error": {"message": error["text"], "type": kind, "code": code, "param": None}}


def status_of(body: Values) -> int:
    """Return the HTTP status of an OpenAI response: 503 of an answer that the host stopped."""
    if "error" not in body:
        return 200
    return 503 if body["error"]["code"] == STOPPED["kind"] else 400


def _head(request_id: str, values: Values, kind: str) -> Values:
    model, created = str(values.get("model", "")), int(time.time())
    return {"id": f"chatcmpl-{request_id}", "object": kind, "created": created, "model": model}


def _usage(done: Event) -> dict[str, int]:
    prompt, answer = done["prompt_tokens"], done["tokens"]
    total = prompt + answer
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": total}


def _logprobs(tokens: Iterable[Event]) -> Values | None:
    def entry(token: Event) -> Event:
        raw = list(token["text"].encode())
        return {"token": token["text"], "logprob": token["logprob"], "bytes": raw}

    content = [entry(t) | {"top_logprobs": [entry(other) for other in t["top"]]} for t in tokens]
    return {"content": content, "refusal": None} if content else None


def _sse(values: Values) -> bytes:
    return f"data: {json.dumps(values, ensure_ascii=False)}\n\n".encode()
