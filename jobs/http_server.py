"""The uvicorn server of page and chat host: it wakes up once per second instead of ten times."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

TICK_SECONDS = 1.0
EVERY_TICK = 0  # the counter at which uvicorn renews the Date header


class Server(uvicorn.Server):
    """A server that ticks slowly and still stops at once."""

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        on_ready: Callable[[], object] | None = None,
        on_end: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(config)
        self._on_ready, self._on_end = on_ready, on_end
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Let the server shut down, from its own loop or a signal handler."""
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, then call `on_ready`."""
        await super().startup(sockets=sockets)
        if self.started and self._on_ready:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what was asked, then call `on_end`."""
        await super().shutdown(sockets=sockets)
        if self._on_end:
            self._on_end()

    async def main_loop(self) -> None:
        """Renew the Date header each second until `stop`."""
        self._loop = asyncio.get_running_loop()
        while not await self.on_tick(EVERY_TICK):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), TICK_SECONDS)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at a signal."""
        super().handle_exit(sig, frame)
        self.stop()
