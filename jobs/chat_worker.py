"""The chat host's worker: requests, the thread that runs the models, and the leases it holds.

One thread runs the models; requests wait their turn. torch is loaded here and nowhere else around
the page, so running out of memory or crashing costs one answer.

Training has priority: chat uses a GPU only while no job has it, frees it when a job needs it, and
uses half the threads of a CPU that is training. An unreadable database costs this, never an answer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from jobs.chat_client import log_path
from jobs.claims import device_of
from jobs.job_queue import JobStore
from studio import hardware, offline
from studio.chat.lanes import (
    ActiveStack,
    ChatRequest,
    Event,
    NewWeights,
    error_event,
    events_of,
    status_event,
)
from studio.errors import ChatError, OutOfMemory, StudioError, is_out_of_memory
from studio.home import Home

logger = logging.getLogger(__name__)
WATCH_SECONDS = 1.0
IDLE_SECONDS = 1800.0
NO_MEMORY = "Not enough memory for this model: choose a smaller one, or wait for running jobs."
FAILED = "The chat engine failed ({why}). Send again; if it repeats, see {log}."


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


class Leases:
    """The chat host's own leases; torch is loaded when a method that needs it is called."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._store: JobStore | None = None
        self.held: set[str] = set()
        self._version = -1
        self._threads = 0

    def announce(self, url: str) -> None:
        """Register this process, so that pages show it and `studio stop` ends it."""
        with _without_failing("announcing the chat host"):
            self._open().announce("chat", url=url)

    def device(self) -> str:
        """Return where models may be loaded now: a GPU that no job has, else the CPU."""
        from studio.models.loading import default_device

        device, taken = default_device(), self._taken_by_jobs()
        if device not in taken:
            return device
        others = [one.name for one in hardware.devices() if hardware.is_card(one.name)]
        return next((name for name in others if name not in taken), "cpu")

    def take(self, models: list[dict[str, Any]]) -> None:
        """Record which devices hold how much memory."""
        memory: dict[str, int] = {}
        for model in models:
            memory[model["device"]] = memory.get(model["device"], 0) + model["bytes"]
        self.held = set(memory)
        with _without_failing("taking a chat lease"):
            for device, count in memory.items():
                self._open().take_chat_lease(device, memory_bytes=count)

    def give_back(self) -> None:
        """Record that nothing is in memory any more."""
        self.held = set()
        with _without_failing("returning the chat lease"):
            self._open().return_chat_lease()

    def wanted(self) -> bool:
        """Return True if a job needs a device that chat holds; a CPU with free memory is shared.

        Reads only what was committed since the last call, so that it may be called often.
        """
        try:
            before, self._version = self._version, self._open().database.version()
        except StudioError:
            return False
        return self._version != before and any(
            device in self.held
            and (row["wanted_back"] or (row["holder"] == "job" and device != "cpu"))
            for row in self._rows()
            for device in [device_of(row["device"])]
        )

    def share_the_cpu(self) -> None:
        """Use half the threads while a job trains on the CPU, all otherwise."""
        if os.environ.get("OMP_NUM_THREADS"):
            return
        import torch

        self._threads = self._threads or torch.get_num_threads()
        crowded = "cpu" in self._taken_by_jobs()
        wanted = max(1, self._threads // 2) if crowded else self._threads
        if torch.get_num_threads() != wanted:
            torch.set_num_threads(wanted)

    def _taken_by_jobs(self) -> set[str]:
        return {device_of(row["device"]) for row in self._rows() if row["holder"] == "job"}

    def _rows(self) -> list[dict[str, Any]]:
        with _without_failing("reading leases"):
            return self._open().leases()
        return []

    def _open(self) -> JobStore:
        if self._store is None:
            self._store = JobStore(self._home)
        return self._store


@contextmanager
def _without_failing(action: str) -> Iterator[None]:
    try:
        yield
    except StudioError as error:
        logger.warning("%s failed: %s", action, error)


class ChatWorker:
    """Models, the thread that runs them, and the requests that wait for it."""

    def __init__(self, home: Home, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self.home = home
        self.idle_seconds = idle_seconds
        self.token = secrets.token_urlsafe(32)
        self.requests: dict[str, RunningRequest] = {}
        self.leaving = asyncio.Event()
        self.last_used = time.monotonic()
        self._residents: Any = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="models")
        self._leases = Leases(home)

    # -- requests, from the server's loop ------------------------------------------------------

    def submit(self, request: ChatRequest) -> RunningRequest:
        """Queue a request and return its events' buffer with it."""
        if not request.id:
            request = request.model_copy(update={"id": secrets.token_hex(8)})
        if request.id in self.requests:
            raise ChatError(f'A request "{request.id}" is already being answered.')
        running = RunningRequest(request)
        if self.requests:
            running.events.put(status_event("Another answer is being written; this one is next."))
        self.requests[request.id] = running
        self._thread.submit(self._answer, running)
        return running

    def stop(self, request_id: str) -> bool:
        """Stop a request's answers; False when there is no such request."""
        running = self.requests.get(request_id)
        if running is not None:
            running.stop.set()
        return running is not None

    def stop_all(self, why: str = "") -> None:
        """Stop every answer and send the reason as a status."""
        for running in list(self.requests.values()):
            if why:
                running.events.put(status_event(why))
            running.stop.set()

    def weigh(self, new: NewWeights) -> bool:
        """Change a lane's weights from its next token on; False when there is no such request."""
        running = self.requests.get(new.id)
        if running is None:
            return False
        stack = tuple((item.name, item.weight) for item in new.stack)
        running.weights = {**running.weights, new.lane: stack}  # replaced whole: read by a thread
        return True

    async def release(self, why: str = "") -> None:
        """Stop every answer and free the models' memory."""
        self.stop_all(why)
        await asyncio.wrap_future(self._thread.submit(self._forget))

    def close(self) -> None:
        """Wait for the models' thread and free everything."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._forget()

    def announce(self, port: int) -> None:
        """Register this process in the queue's database."""
        self._thread.submit(self._leases.announce, f"http://127.0.0.1:{port}")

    def warm_up(self) -> None:
        """Import torch and transformers before the first request."""
        self._thread.submit(self._get_residents)

    def status(self) -> dict[str, Any]:
        """Return what pages show about this process."""
        return {
            "pid": os.getpid(),
            "answering": len(self.requests),
            "ready": self._residents is not None,
            "models": self._residents.describe() if self._residents else [],
            "idle_seconds": 0.0 if self.requests else time.monotonic() - self.last_used,
        }

    async def watch(self) -> None:
        """Free the device when a job needs it."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if not self._leases.held:
                continue
            if await loop.run_in_executor(None, self._leases.wanted):
                await self.release("A job needs the device: the answer was stopped.")

    # -- models, in their thread ---------------------------------------------------------------

    def _answer(self, running: RunningRequest) -> None:
        put = running.events.put
        try:
            if self._residents is None:
                put(status_event("Starting the chat engine…"))
            offline.apply(self.home)  # it may have been switched since the last answer
            residents = self._get_residents()
            self._leases.share_the_cpu()
            for delta in residents.stream(
                running.request.lanes, stopped=running.stop.is_set, wanted=lambda: running.weights
            ):
                for event in events_of(delta):
                    put(event)
            self._leases.take(residents.describe())
        except StudioError as error:
            put(error_event(error))
        except Exception as error:
            self._recover(error, put)
        finally:
            self.last_used = time.monotonic()
            self.requests.pop(running.request.id, None)
            running.events.end()

    def _recover(self, error: Exception, put: Callable[[dict[str, Any]], None]) -> None:
        """Turn an unexpected failure into one error event; the host goes on."""
        logger.exception("an answer failed")
        self._forget()
        if is_out_of_memory(error):
            put(error_event(OutOfMemory(NO_MEMORY)))
            return
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        put(error_event(ChatError(FAILED.format(why=why, log=log_path(self.home)))))

    def _get_residents(self) -> Any:
        if self._residents is None:
            from studio.chat.resident_models import ResidentModels, import_everything

            import_everything()

            self._residents = ResidentModels(
                self.home, device=self._leases.device, hold=self._leases.take
            )
        return self._residents

    def _forget(self) -> None:
        if self._residents is not None:
            self._residents.release()
            self._residents = None
        self._leases.give_back()
