"""Check every request before anything else answers it: its host, origin, token and size.

Loopback is not a wall: any web page can make the browser send requests here. Gradio alone answers a
foreign `Host` (DNS rebinding), takes uploads and runs server functions from other origins. So every
request, gradio's own routes included, passes these pure ASGI layers; streaming is untouched. They
read headers, paths and sizes only.

`SizeLimit` refuses a length that is announced too large and counts one that is not announced. The
printed address holds the token once; `TokenCheck` puts a cookie in its place. Comparison takes the
same time for every guess, and an address with too many wrong guesses waits.
"""

import contextlib
import hashlib
import hmac
import json
import secrets as randomness
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import psutil

from jobs import secret_store
from studio.home import Home

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""All cards of this machine, and its own address among them."""


class HeldAnswer:
    """Hold an HTTP answer back until it is whole, then send it with another body.

    `begin` returns the start of an answer to hold, None lets it pass; `rewrite` returns its body.
    """

    def __init__(
        self, send: Send, begin: Callable[[Message], Message | None],
        rewrite: Callable[[bytes], Awaitable[bytes]],
    ) -> None:  # fmt: skip
        self._send, self._begin, self._rewrite = send, begin, rewrite
        self._start: Message | None = None
        self._body = bytearray()

    async def send(self, message: Message) -> None:
        """Take a part of the answer."""
        if message["type"] == "http.response.start":
            self._start = self._begin(message)
        if self._start is None:
            await self._send(message)
        elif message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if message.get("more_body"):
                return
            body = await self._rewrite(bytes(self._body))
            headers = [one for one in self._start["headers"] if one[0] != b"content-length"]
            headers.append((b"content-length", b"%d" % len(body)))
            await self._send({**self._start, "headers": headers})
            await self._send({"type": "http.response.body", "body": body})


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


class OriginCheck:
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
            await refuse(send, 403, why, list(HEADERS.items()))
        else:
            await self.app(scope, receive, _with_headers(send))

    def refusal(self, scope: Scope) -> str:
        """Return why this request is refused; empty if it may pass."""
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


DEFAULT_BYTES = 16 << 20


class SizeLimit:
    """Refuse bodies that are larger than their route takes."""

    def __init__(self, app: App, *, sizes: Mapping[str, int] = {}) -> None:
        self.app, self.sizes = app, sizes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 413 in one sentence, or pass on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = self.sizes.get(str(scope.get("path", "")).rstrip("/"), DEFAULT_BYTES)
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
    """Return the announced length, 0 without one, None if it is invalid."""
    lengths = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
    if not lengths:
        return 0
    if len(lengths) > 1 or not lengths[0].isdigit():
        return None
    return int(lengths[0])


async def refuse(
    send: Send, status: int, text: str, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    """Refuse a request with one sentence as JSON."""
    body = json.dumps({"error": {"kind": "refused", "text": text}}).encode()
    own = [
        (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"), *(headers or []),
    ]  # fmt: skip
    await send({"type": "http.response.start", "status": status, "headers": own})
    await send({"type": "http.response.body", "body": body})


def is_local(host: str) -> bool:
    """Return True if only this machine can reach the address that is served."""
    return host in LOOPBACK


def own_names(host: str, allowed: list[str]) -> frozenset[str]:
    """Return the `Host` names that a request may have: ours.

    Addresses of this machine's network cards are: rebinding attacks need a name. Names are only
    ours when the user allows them.
    """
    names = {*LOOPBACK, *(name.lower() for name in allowed)}
    if is_local(host):
        return frozenset(names)
    names.add(host.lower())
    for cards in psutil.net_if_addrs().values():
        names |= {
            card.address.partition("%")[0].lower()
            for card in cards
            if card.family in (socket.AF_INET, socket.AF_INET6)
        }
    return frozenset(names - EVERYWHERE.keys())


def shown_host(host: str) -> str:
    """Return the served host as an address; for all cards at once, the first that has one."""
    if host in EVERYWHERE:  # which is no address to go to
        cards = sorted(own_names(host, []) - LOOPBACK)
        fits = [name for name in cards if (":" in name) is (":" in host) and name[:4] != "fe80"]
        host = fits[0] if fits else EVERYWHERE[host]
    return f"[{host}]" if ":" in host else host


def warning(host: str) -> str:
    """Return the security warning of a page that other machines can reach."""
    return (
        f"WARNING: the studio listens on {host}: other machines can reach it. All who have the "
        "address below, with its token, can train, read and delete everything in this home. The "
        "connection is not encrypted; prefer an ssh tunnel on networks that you do not own."
    )


MOST_GUESSES, WINDOW_SECONDS = 10, 60.0
MOST_ADDRESSES = 1000
COOKIE_SECONDS = 30 * 86_400
ASK = (
    "This studio asks for its token: open the address that `studio serve` printed in its terminal."
)


def token_of(home: Home) -> str:
    """Return the token that requests need, made at first: 256 random bits in a private file."""
    found = secret_store.read(home, "token")
    if len(found) < 32:
        found = randomness.token_urlsafe(32)
        secret_store.keep(home, "token", found)
    return found


class TokenCheck:
    """Let in who knows the token."""

    def __init__(self, app: App, *, token: str, port: int) -> None:
        self.app, self.token = app, token.encode()
        self.cookie = f"studio-{port}"
        # The cookie is not the token, so that neither gives the other away.
        self.pass_ = hmac.new(self.token, b"studio-cookie", hashlib.sha256).hexdigest()
        self.guesses: OrderedDict[str, deque[float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, exchange a token for the cookie, or refuse."""
        if scope["type"] == "lifespan" or self._has_cookie(scope):
            await self.app(scope, receive, send)
            return
        given = _given(scope)
        address = str((scope.get("client") or ("?", 0))[0])
        if given and self._waits(address):
            await _refuse_token(scope, send, 429, "Too many wrong tokens; wait a minute.")
        elif not given or not hmac.compare_digest(given.encode(), self.token):
            if given:
                self._count(address)
            await _refuse_token(scope, send, 401, ASK)
        elif (
            scope["type"] == "http"
            and scope.get("method") == "GET"
            and "token" in dict(_query(scope))
        ):
            await self._exchange(scope, send)
        else:
            await self.app(scope, receive, send)

    def _has_cookie(self, scope: Scope) -> bool:
        # By hand: a parser gives up at the first cookie of a neighbour's that it cannot read.
        own = f"{self.cookie}={self.pass_}".encode()
        return any(
            hmac.compare_digest(pair.strip(), own)
            for name, value in scope["headers"]
            if name.lower() == b"cookie"
            for pair in value.split(b";")
        )

    def _waits(self, address: str) -> bool:
        times = self.guesses.get(address, deque())
        while times and time.monotonic() - times[0] > WINDOW_SECONDS:
            times.popleft()
        return len(times) >= MOST_GUESSES

    def _count(self, address: str) -> None:
        self.guesses.setdefault(address, deque(maxlen=MOST_GUESSES)).append(time.monotonic())
        self.guesses.move_to_end(address)
        while len(self.guesses) > MOST_ADDRESSES:
            self.guesses.popitem(last=False)

    async def _exchange(self, scope: Scope, send: Send) -> None:
        rest = urlencode([pair for pair in _query(scope) if pair[0] != "token"])
        path = "/" + str(scope.get("path", "/")).lstrip("/\\")
        place = quote(path + (f"?{rest}" if rest else ""), safe="/?&=%+,:~")
        cookie = (
            f"{self.cookie}={self.pass_}; Path=/; HttpOnly; SameSite=Strict; "
            f"Max-Age={COOKIE_SECONDS}"
        )
        headers = [
            (b"location", place.encode()), (b"set-cookie", cookie.encode()),
            (b"cache-control", b"no-store"), (b"content-length", b"0"),
        ]  # fmt: skip
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def _given(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name.lower() == b"authorization" and value.lower().startswith(b"bearer "):
            return str(value[7:].decode("latin-1"))
    return dict(_query(scope)).get("token", "")


def _query(scope: Scope) -> list[tuple[str, str]]:
    text = scope.get("query_string", b"")[:4000].decode("latin-1")
    return parse_qsl(text, keep_blank_values=True)


async def _refuse_token(scope: Scope, send: Send, status: int, text: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": text[:100]})
        return
    retry = [(b"retry-after", b"60")] if status == 429 else []
    await refuse(send, status, text, [*retry, (b"www-authenticate", b"Bearer")])
