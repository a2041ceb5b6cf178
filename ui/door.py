"""The token that is asked for when the studio can be reached from other machines.

The address that is printed holds it once; the answer puts a cookie in its place and takes it out of
the address. Comparison takes the same time for every guess, and an address that guesses wrong too
often waits. It stands behind the guard, in front of everything else, gradio's routes included.
"""

import hashlib
import hmac
import secrets as randomness
import time
from collections import OrderedDict, deque
from urllib.parse import parse_qsl, urlencode

from jobs import secrets
from studio.home import Home
from ui.bounds import refuse
from ui.guard import App, Receive, Scope, Send

MOST_GUESSES, WINDOW_SECONDS = 10, 60.0
MOST_ADDRESSES = 1000
COOKIE_SECONDS = 30 * 86_400
ASK = (
    "This studio asks for its token: open the address that `studio serve` printed in its terminal."
)


def token_of(home: Home) -> str:
    """Return the home's token, made at the first need; 256 random bits in a private file."""
    found = secrets.read(home, "token")
    if len(found) < 32:
        found = randomness.token_urlsafe(32)
        secrets.keep(home, "token", found)
    return found


class Door:
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
            await _no(scope, send, 429, "Too many wrong tokens; wait a minute.")
        elif not given or not hmac.compare_digest(given.encode(), self.token):
            if given:
                self._count(address)
            await _no(scope, send, 401, ASK)
        elif scope["type"] == "http" and scope.get("method") == "GET" and _in_query(scope):
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
        place = path + (f"?{rest}" if rest else "")
        cookie = (
            f"{self.cookie}={self.pass_}; Path=/; HttpOnly; SameSite=Strict; "
            f"Max-Age={COOKIE_SECONDS}"
        )
        headers = [
            (b"location", _quoted(place)), (b"set-cookie", cookie.encode()),
            (b"cache-control", b"no-store"), (b"content-length", b"0"),
        ]  # fmt: skip
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def _given(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name.lower() == b"authorization" and value.lower().startswith(b"bearer "):
            return str(value[7:].decode("latin-1"))
    return dict(_query(scope)).get("token", "")


def _in_query(scope: Scope) -> bool:
    return any(key == "token" for key, _ in _query(scope))


def _query(scope: Scope) -> list[tuple[str, str]]:
    text = scope.get("query_string", b"")[:4000].decode("latin-1")
    return parse_qsl(text, keep_blank_values=True)


def _quoted(place: str) -> bytes:
    from urllib.parse import quote

    return quote(place, safe="/?&=%+,:~").encode()


async def _no(scope: Scope, send: Send, status: int, text: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": text[:100]})
        return
    retry = [(b"retry-after", b"60")] if status == 429 else []
    await refuse(send, status, text, [*retry, (b"www-authenticate", b"Bearer")])
