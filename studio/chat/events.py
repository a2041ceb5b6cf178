"""The lines of the chat host's stream: one JSON object an event. The shape is a contract.

`status` (lane or null, text) · `delta` (lane, text, at, tokens when asked) · `done` (lane, reason,
figures, active) · `error` (lane or null, kind, text). Every lane ends with one `done` or `error`.
`at` is when the oldest token of the text existed, in seconds since 1970.
"""

from __future__ import annotations

import time
from typing import Any

from studio.chat.lanes import Delta, Scored
from studio.errors import StudioError

Event = dict[str, Any]


def status_event(text: str, *, lane: int | None = None) -> Event:
    """Something a person should know; no lane means all of them."""
    return {"type": "status", "lane": lane, "text": text}


def error_event(error: StudioError, *, lane: int | None = None) -> Event:
    """The end of a lane, or of the whole request."""
    return {"type": "error", "lane": lane, **error.as_dict()}


def events_of(delta: Delta) -> list[Event]:
    """Return what a delta says, in order."""
    events: list[Event] = []
    if delta.text or delta.scored:
        event: Event = {
            "type": "delta", "lane": delta.lane, "text": delta.text, "at": round(time.time(), 3)
        }  # fmt: skip
        if delta.scored:
            event["tokens"] = [_scored(token) for token in delta.scored]
        events.append(event)
    if delta.note:
        events.append(status_event(delta.note, lane=delta.lane))
    if delta.error is not None:
        events.append(error_event(delta.error, lane=delta.lane))
    elif delta.done:
        events.append(_done(delta))
    return events


def _done(delta: Delta) -> Event:
    stats = delta.stats
    return {
        "type": "done",
        "lane": delta.lane,
        "reason": delta.reason,
        "tokens": stats.tokens,
        "prompt_tokens": stats.prompt_tokens,
        "tokens_per_second": round(stats.tokens_per_second, 2),
        "first_token_seconds": round(stats.first_token_seconds, 4),
        "seconds": round(stats.seconds, 4),
        "active": delta.active.as_dict() if delta.active else None,
    }


def _scored(token: Scored) -> Event:
    return {
        "id": token.token_id,
        "text": token.text,
        "logprob": round(token.logprob, 5),
        "top": [
            {"id": other.token_id, "text": other.text, "logprob": round(other.logprob, 5)}
            for other in token.top
        ],
    }
