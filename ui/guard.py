"""The door of the web process: who may speak to it, and what a page of it may do.

Loopback is not a wall: any web page can make the browser send requests here. Gradio alone answers a
foreign `Host` (DNS rebinding), takes uploads and runs server functions from other origins. So every
request, gradio's own routes included, passes this pure ASGI guard first; streaming is untouched. It
knows headers only, nothing of routes or jobs.
"""

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

# Gradio's templates need inline scripts and eval; what the policy does stop is every other host.
POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"x-frame-options": b"DENY",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}


class Guard:
    """Refuse requests that another site may have sent; add the protective headers to the rest."""

    def __init__(self, app: App, *, hosts: Iterable[str] = LOOPBACK) -> None:
        self.app = app
        self.hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 in one sentence, or pass on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        why = self.refusal(scope)
        if why and scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": why})
        elif why:
            await _refuse(send, why)
        else:
            await self.app(scope, receive, _with_headers(send))

    def refusal(self, scope: Scope) -> str:
        """Say why this request is refused; empty when it may pass."""
        names = [name.lower() for name, _ in scope["headers"]]
        if any(names.count(name) > 1 for name in (b"host", b"origin", b"sec-fetch-site")):
            return "A header that may come once came twice."
        headers = {
            name.lower().decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        host = headers.get("host", "")
        if _hostname(host) not in self.hosts:
            return "This studio answers only to its own address."
        origin = headers.get("origin")
        if origin is not None and not _same_origin(origin, host):
            return "This request came from another site."
        site = headers.get("sec-fetch-site")
        if site not in (None, "same-origin", "none") and not _is_link(scope, headers):
            return "This request came from another site."
        return ""


def _hostname(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _same_origin(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and parts.netloc.lower() == host.lower()


def _is_link(scope: Scope, headers: dict[str, str]) -> bool:
    # A link or a typed address from elsewhere may open a page; it may not do anything.
    return (
        scope.get("method") == "GET"
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
        and not scope.get("path", "").startswith(("/api/", "/gradio_api/"))
    )


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = {name for name, _ in message.get("headers", [])}
            message["headers"] = [
                *(h for h in message.get("headers", []) if not h[0].startswith(b"access-control")),
                *((name, value) for name, value in HEADERS.items() if name not in own),
            ]
        await send(message)

    return wrapped


async def _refuse(send: Send, why: str) -> None:
    body = json.dumps({"error": {"kind": "refused", "text": why}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers.append((b"cache-control", b"no-store"))
    await send(
        {
            "type": "http.response.start",
            "status": 403,
            "headers": [*headers, *HEADERS.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})
