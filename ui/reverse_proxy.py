"""Serve below a path of a reverse proxy, such as `https://box/studio`.

Proxies pass the path on with or without it: both are taken. Redirects get it in front; the document
carries it as `data-root`, from which scripts make their addresses (`assets/core/dom.js`).
"""

import re

from studio.errors import ServeError
from ui.security import App, Message, Receive, Scope, Send

_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")


def checked_root(path: str) -> str:
    """Return the path without a slash at its end; "" for none.

    Raises:
        ServeError: The path is invalid.
    """
    path = path.rstrip("/")
    if path and not _PATH.fullmatch(path):
        raise ServeError(
            f'Invalid root path "{path[:80]}": give a path such as /studio, with letters, digits, '
            "dots and dashes."
        )
    return path


class Below:
    """Take the root path off requests, and put it in front of redirects."""

    def __init__(self, app: App, root: str) -> None:
        self.app, self.root = app, root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on without the root path."""
        path = scope.get("path", "")
        if scope["type"] == "lifespan" or not self.root:
            await self.app(scope, receive, send)
            return
        if path == self.root or path.startswith(f"{self.root}/"):
            path = path[len(self.root) :] or "/"
            scope = {**scope, "path": path, "raw_path": path.encode()}

        async def prefixed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*map(self._header, message["headers"])]}
            await send(message)

        await self.app(scope, receive, prefixed)

    def _header(self, header: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
        name, value = header
        root = self.root.encode()
        is_ours = value.startswith(b"/") and not value.startswith((b"//", root + b"/"))
        return (name, root + value) if name.lower() == b"location" and is_ours else header
