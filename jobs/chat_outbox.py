"""What a request still has to be told: filled by the model's thread, emptied at screen speed.

Text of a lane that was not fetched yet is joined, so a slow reader gets fewer, longer pieces and
never slows the model down; what waits is bounded by the answers' length.
"""

from __future__ import annotations

import asyncio
import threading

from studio.chat.events import Event


class Outbox:
    """Events of one request, from one thread to one coroutine."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._open: dict[int, Event] = {}  # the last delta of a lane, while nothing follows it
        self._guard = threading.Lock()
        self._told = False  # the loop knows that something waits: not woken again for more
        self._loop = asyncio.get_running_loop()
        self._filled = asyncio.Event()
        self.ended = asyncio.Event()

    def put(self, event: Event) -> None:
        """Add an event, from any thread."""
        with self._guard:
            lane = event["lane"]
            last = self._open.get(lane)
            if event["type"] != "delta":
                self._open.pop(lane, None)
                self._events.append(event)
            elif last is None:
                self._open[lane] = event
                self._events.append(event)
            else:
                last["text"] += event["text"]
                if "tokens" in event:
                    last.setdefault("tokens", []).extend(event["tokens"])
            told, self._told = self._told, True
        if not told:
            self._tell(self._filled)

    def end(self) -> None:
        """Say that nothing follows, from any thread."""
        self._tell(self.ended)
        self._tell(self._filled)

    async def wait(self) -> None:
        """Return when there is something to take, or nothing will follow."""
        await self._filled.wait()

    async def rest(self, seconds: float) -> None:
        """Let text gather for a moment, unless the end has come."""
        try:
            await asyncio.wait_for(self.ended.wait(), seconds)
        except TimeoutError:
            return

    def take(self) -> list[Event]:
        """Return the waiting events."""
        with self._guard:
            events, self._events = self._events, []
            self._open.clear()
            self._told = False
            if not self.ended.is_set():
                self._filled.clear()
        return events

    def _tell(self, flag: asyncio.Event) -> None:
        try:
            self._loop.call_soon_threadsafe(flag.set)
        except RuntimeError:
            return  # the server is shutting down: nobody listens any more
