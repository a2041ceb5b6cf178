"""The chat host: the process that keeps models in memory and answers lanes.

Training comes first: chat takes a GPU only while no job has it, lets go when one wants it, and on a
CPU that is training it uses half the threads. A database that cannot be read costs this courtesy,
never an answer.

Text of a lane that was not fetched yet is joined, so a slow reader gets fewer, longer pieces and
never slows the model down; what waits is bounded by the answers' length.

It is started by the first page or command that needs it, answers on a loopback port that only the
holder of its token can use, and goes when nobody has asked for long. torch lives here and nowhere
else around the page, so running out of memory or crashing costs a sentence. One thread runs the
models; requests wait their turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jobs.locks import FileLock
from jobs.processes import leave, me
from jobs.siblings import device_of
from jobs.store import JobStore
from studio.chat.lanes import Event, Request, error_event, events_of, parse_weights, status_event
from studio.errors import ChatError, OutOfMemory, StudioError
from studio.home import Home, open_home

logger = logging.getLogger(__name__)


class Leases:
    """The chat host's own leases; torch is loaded when a method that needs it is called."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._store: JobStore | None = None
        self.held: set[str] = set()
        self._version = -1
        self._threads = 0

    def announce(self, url: str) -> None:
        """Say that this process lives, so that pages show it and `studio stop` ends it."""
        try:
            self._open().announce("chat", url=url)
        except StudioError as error:
            logger.warning("the chat host is not announced: %s", error)

    def device(self, asked: str) -> str:
        """Return where models may be loaded now: a GPU that a job has is not for chat."""
        if asked != "auto":
            return asked
        from studio.models.loading import default_device

        device = default_device()
        return "cpu" if device in self._taken_by_jobs() else device

    def take(self, models: list[dict[str, Any]]) -> None:
        """Write down what is in memory where."""
        memory: dict[str, int] = {}
        for model in models:
            memory[model["device"]] = memory.get(model["device"], 0) + model["bytes"]
        self.held = set(memory)
        try:
            for device, count in memory.items():
                self._open().take_chat_lease(device, memory_bytes=count)
        except StudioError as error:
            logger.warning("no chat lease: %s", error)

    def give_back(self) -> None:
        """Say that nothing is in memory any more."""
        self.held = set()
        try:
            self._open().return_chat_lease()
        except StudioError as error:
            logger.warning("no chat lease returned: %s", error)

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
        try:
            return self._open().leases()
        except StudioError as error:
            logger.warning("leases cannot be read: %s", error)
            return []

    def _open(self) -> JobStore:
        if self._store is None:
            self._store = JobStore(self._home)
        return self._store


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


IDLE_SECONDS = 1800.0
STATE = "chat_host.json"
LEAVING_STATUS = 503  # of a host that is ending: whoever asks starts another
WATCH_SECONDS = 1.0


class Running:
    """A request that is being answered."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.outbox = Outbox()
        self.stop = threading.Event()
        self.weights: dict[int, tuple[tuple[str, float], ...]] = {}  # moved since it began


class Host:
    """Models, the thread that runs them, and the requests that wait for it."""

    def __init__(self, home: Home, *, device: str = "auto") -> None:
        self.home = home
        self.token = secrets.token_urlsafe(32)
        self.requests: dict[str, Running] = {}
        self.leaving = asyncio.Event()
        self.last_used = time.monotonic()
        self._device = device
        self._residents: Any = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="models")
        self._leases = Leases(home)

    # -- requests, from the server's loop ------------------------------------------------------

    def submit(self, request: Request) -> Running:
        """Take a request; its events come out of its outbox."""
        if not request.id:
            request = request.model_copy(update={"id": secrets.token_hex(8)})
        if request.id in self.requests:
            raise ChatError(f'A request "{request.id}" is already being answered.')
        running = Running(request)
        if self.requests:
            running.outbox.put(status_event("Another answer is being written; this one is next."))
        self.requests[request.id] = running
        self._thread.submit(self._answer, running)
        return running

    def stop(self, request_id: str) -> bool:
        """End a request's answers where they are; False when there is no such request."""
        running = self.requests.get(request_id)
        if running is not None:
            running.stop.set()
        return running is not None

    def stop_all(self, why: str = "") -> None:
        """End every answer where it is, and say why."""
        for running in list(self.requests.values()):
            if why:
                running.outbox.put(status_event(why))
            running.stop.set()

    def weigh(self, request_id: str, values: dict[str, Any]) -> bool:
        """Move a lane's weights from its next token on; False when there is no such request.

        Raises:
            ChatError: The lane or its stack is none.
        """
        lane, stack = parse_weights(values)
        running = self.requests.get(request_id)
        if running is None:
            return False
        running.weights = {**running.weights, lane: stack}  # replaced whole: read by a thread
        return True

    async def release(self, why: str = "") -> None:
        """Stop every answer and give the models' memory back."""
        self.stop_all(why)
        await asyncio.wrap_future(self._thread.submit(self._forget))

    def close(self) -> None:
        """Wait for the models' thread and return what is held."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._forget()

    def announce(self, port: int) -> None:
        """Tell the queue's database that this process is there."""
        self._thread.submit(self._leases.announce, f"http://127.0.0.1:{port}")

    def warm_up(self) -> None:
        """Import torch and transformers before the first question comes."""
        self._thread.submit(self._get_residents)

    def status(self) -> dict[str, Any]:
        """What a page shows about this process."""
        return {
            "pid": os.getpid(),
            "answering": len(self.requests),
            "ready": self._residents is not None,
            "models": self._residents.describe() if self._residents else [],
            "idle_seconds": 0.0 if self.requests else time.monotonic() - self.last_used,
        }

    async def watch(self) -> None:
        """Let the device go when a job wants it."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if self._leases.held and await loop.run_in_executor(None, self._leases.wanted):
                await self.release("A job needs the device: the answer was cut.")

    # -- models, in their thread ---------------------------------------------------------------

    def _answer(self, running: Running) -> None:
        put = running.outbox.put
        try:
            if self._residents is None:
                put(status_event("Starting the chat engine…"))
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
            running.outbox.end()

    def _recover(self, error: Exception, put: Callable[[dict[str, Any]], None]) -> None:
        """A fault of ours or of the machine must not take the page's lanes with it."""
        from studio.chat.engine import is_out_of_memory

        logger.exception("an answer failed")
        self._forget()
        if is_out_of_memory(error):
            put(error_event(OutOfMemory(
                "There is not enough memory for this model: choose a smaller one, or let running "
                "jobs finish first."
            )))  # fmt: skip
            return
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        put(error_event(ChatError(
            f"The chat engine failed ({type(error).__name__}: {first}). Send again; if it stays, "
            f"the details are in {log_path(self.home)}."
        )))  # fmt: skip

    def _get_residents(self) -> Any:
        if self._residents is None:
            from studio.chat.residents import Residents, import_everything

            import_everything()

            self._residents = Residents(self.home, device=self._leases.device(self._device))
        return self._residents

    def _forget(self) -> None:
        if self._residents is not None:
            self._residents.release()
            self._residents = None
        self._leases.give_back()


# -- the process -------------------------------------------------------------------------------


def state_path(home: Home) -> Path:
    """Where the running host says how to reach it."""
    return home.state / STATE


def log_path(home: Home) -> Path:
    """Where the host writes what it says."""
    return home.state / "chat_host.log"


def main(arguments: list[str] | None = None) -> int:
    """Run the host until it is idle for long or told to go; a second one leaves at once."""
    parser = argparse.ArgumentParser(prog="python -m jobs.chat_host")
    parser.add_argument("--home", required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--idle-seconds", type=float, default=IDLE_SECONDS)
    parser.add_argument("--cold", action="store_true", help="import torch only when asked")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    home = open_home(options.home)
    lock = FileLock(home.state / "chat_host.lock")
    if not lock.acquire(timeout_seconds=0.2):
        logger.info("another chat host is running")
        return 0
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        try:
            asyncio.run(_serve(home, listener, options))
        finally:
            state_path(home).unlink(missing_ok=True)
            lock.close()
    return 0


async def _serve(home: Home, listener: socket.socket, options: argparse.Namespace) -> None:
    import uvicorn

    from jobs.chat_server import make_app
    from jobs.http_server import Server

    host = Host(home, device=options.device)
    port = listener.getsockname()[1]
    config = uvicorn.Config(
        make_app(host, port),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
    )
    server = Server(config)
    _publish(home, host, port)
    host.announce(port)
    if not options.cold:
        host.warm_up()
    watchers = [
        asyncio.create_task(host.watch()),
        asyncio.create_task(_leave_when_idle(host, options.idle_seconds)),
        asyncio.create_task(_leave(server, host)),
    ]
    host.last_used = time.monotonic()
    logger.info("answering on port %d", port)
    await server.serve(sockets=[listener])
    for watcher in watchers:
        watcher.cancel()
    host.stop_all()
    host.close()


def _publish(home: Home, host: Host, port: int) -> None:
    """Write how to reach this host, readable for this user only, whole or not at all."""
    path = state_path(home)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump({"identity": str(me()), "port": port, "token": host.token}, file)
    os.replace(temporary, path)


async def _leave_when_idle(host: Host, idle_seconds: float) -> None:
    while not host.leaving.is_set():
        await asyncio.sleep(min(5.0, max(0.05, idle_seconds / 4)))
        idle = not host.requests and time.monotonic() - host.last_used > idle_seconds
        if idle or not host.home.state.is_dir():
            logger.info("nobody asked for long: leaving")
            host.leaving.set()


async def _leave(server: Any, host: Host) -> None:
    await host.leaving.wait()
    host.stop_all("The chat process ends: the answer was cut.")
    server.stop()


if __name__ == "__main__":
    leave(main())
