"""Events of chat requests, buffered between the thread that runs the models and the server."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

from studio.chat.lanes import ActiveStack, ChatRequest, Event


class EventBuffer:
    """Events of one request, from the models' thread to one coroutine.

    Text of a lane that was not sent yet is joined: a slow reader gets fewer, longer pieces and
    never slows the model down, and the buffer is bounded by the answers' length.
    """

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._open: dict[int, Event] = {}  # the last delta of a lane, while nothing follows it
        self._guard = threading.Lock()
        self._woken = False  # the loop was woken already and has not taken the events yet
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
            elif last is None or last.get("part") != event.get("part"):
                self._open[lane] = event
                self._events.append(event)
            else:
                last["text"] += event["text"]
                if "tokens" in event:
                    last.setdefault("tokens", []).extend(event["tokens"])
            woken, self._woken = self._woken, True
        if not woken:
            self._set(self._filled)

    def end(self) -> None:
        """Mark the end, from any thread."""
        self._set(self.ended)
        self._set(self._filled)

    async def wait(self) -> None:
        """Wait for events, or for the end."""
        await self._filled.wait()

    async def rest(self, seconds: float) -> None:
        """Let text gather for this time, or until the end."""
        try:
            await asyncio.wait_for(self.ended.wait(), seconds)
        except TimeoutError:
            return

    def take(self) -> list[Event]:
        """Return the waiting events."""
        with self._guard:
            events, self._events = self._events, []
            self._open.clear()
            self._woken = False
            if not self.ended.is_set():
                self._filled.clear()
        return events

    def _set(self, flag: asyncio.Event) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server is shutting down
            self._loop.call_soon_threadsafe(flag.set)


class RunningRequest:
    """A request that is being answered."""

    def __init__(self, request: ChatRequest) -> None:
        self.request = request
        self.events = EventBuffer()
        self.stop = threading.Event()
        self.weights: dict[int, ActiveStack] = {}  # moved since it began
