"""The chat host: the one process that keeps models in memory to talk to.

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

from jobs.chat_leases import Leases
from jobs.chat_outbox import Outbox
from jobs.filelock import FileLock
from jobs.processes import leave, me
from studio.chat.events import error_event, events_of, status_event
from studio.chat.lanes import Request, parse_weights
from studio.errors import ChatError, OutOfMemory, StudioError
from studio.home import Home, open_home

logger = logging.getLogger(__name__)

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
            if await loop.run_in_executor(None, self._leases.wanted):
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

    host = Host(home, device=options.device)
    port = listener.getsockname()[1]
    config = uvicorn.Config(
        make_app(host, port),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
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
    server.should_exit = True


if __name__ == "__main__":
    leave(main())
