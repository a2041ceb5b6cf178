"""How much a request may send: a bound for each route, checked before and while it arrives.

A length that is announced too large is refused at once; one that is not announced is counted. It
knows paths and sizes only.
"""

import contextlib
import json
from collections.abc import Mapping

from ui.guard import App, Message, Receive, Scope, Send

DEFAULT_BYTES = 16 << 20


class Bounded:
    """Refuse bodies that are larger than their route takes."""

    def __init__(self, app: App, *, larger: Mapping[str, int] = {}) -> None:
        self.app, self.larger = app, dict(larger)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 413 in one sentence, or pass on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = self.larger.get(str(scope.get("path", "")).rstrip("/"), DEFAULT_BYTES)
        announced = _announced(scope)
        if announced is None or announced > most:
            await refuse(send, 413 if announced else 400, "That is larger than this page takes.")
            return
        arrived, answered = 0, False

        async def counted() -> Message:
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > most:
                raise _TooLarge
            return message

        async def watched(message: Message) -> None:
            nonlocal answered
            if arrived <= most or answered:  # else it is ours to say what was wrong
                answered = True
                await send(message)

        with contextlib.suppress(_TooLarge):
            await self.app(scope, counted, watched)
        if arrived > most and not answered:
            await refuse(send, 413, "That is larger than this page takes.")


class _TooLarge(Exception):
    pass


def _announced(scope: Scope) -> int | None:
    """The announced length, 0 where there is none, None where it is no number."""
    lengths = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
    if not lengths:
        return 0
    if len(lengths) > 1 or not lengths[0].isdigit():
        return None
    return int(lengths[0])


async def refuse(
    send: Send, status: int, text: str, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    """Answer with one sentence as JSON."""
    body = json.dumps({"error": {"kind": "refused", "text": text}}).encode()
    own = [
        (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"), *(headers or []),
    ]  # fmt: skip
    await send({"type": "http.response.start", "status": status, "headers": own})
    await send({"type": "http.response.body", "body": body})
