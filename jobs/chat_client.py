"""The client of the chat host, for pages and commands: find it, start it, stream from it.

Never imports torch. A host that died is noticed at once and the next request starts another; the
answer it was writing ends with an error.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from jobs.processes import FileLock, Identity
from jobs.runner_processes import spawn
from studio.errors import ChatError
from studio.home import Home

START_SECONDS = 180.0  # for a very busy machine; a process that dies is noticed
POLL_SECONDS = 0.05
QUIT_SECONDS = 30.0
LEAVING_STATUS = 503  # of a host that is shutting down: the client starts another


class _Leaving(Exception):
    """The host is shutting down and accepts no requests."""


_children: list[subprocess.Popen[bytes]] = []  # referenced, so that they are reaped


def state_path(home: Home) -> Path:
    """Return the file from which clients read the chat host's port and token."""
    return home.state / "chat_host.json"


def log_path(home: Home) -> Path:
    """Return the log file of the chat host that a client starts."""
    return home.state / "chat_host.log"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a running host; `token` is a secret of this user."""

    url: str
    token: str
    identity: Identity

    def client(self, *, read_seconds: float | None) -> httpx.Client:
        """Return a client with the token and without proxies."""
        return httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=httpx.Timeout(5.0, read=read_seconds),
            trust_env=False,
            verify=False,  # plain HTTP on the loopback: reading certificates costs 50 ms
        )


def find_host(home: Home) -> Endpoint | None:
    """Return the endpoint of the running chat host, or None."""
    try:
        state = json.loads(state_path(home).read_text(encoding="utf-8"))
        identity = Identity.parse(state["identity"])
        endpoint = Endpoint(f"http://127.0.0.1:{int(state['port'])}", state["token"], identity)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return endpoint if identity.alive() else None


def ensure_host(home: Home, *, idle_seconds: float | None = None) -> Endpoint:
    """Return the home's chat host, started if none runs; `idle_seconds` is how long it stays.

    Raises:
        ChatError: It does not start; quotes the end of its log.
    """
    if endpoint := _answering(home):
        if idle_seconds is not None:
            with contextlib.suppress(ChatError):  # one of an earlier version
                _call(home, "POST", "/stay", body={"idle_seconds": idle_seconds})
        return endpoint
    lock = FileLock(home.state / "chat_start.lock")
    try:
        with lock.held(timeout_seconds=START_SECONDS):
            options = [] if idle_seconds is None else ["--idle-seconds", str(idle_seconds)]
            return _answering(home) or _started(home, options)
    finally:
        lock.close()


def generate(home: Home, request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Send a request to the chat host, yield its events (`lanes.py`); closing stops it.

    Raises:
        ChatError: The request is refused, or the host cannot be started or died.
    """
    with contextlib.closing(relay(home, request)) as batches:
        for lines in batches:
            yield from map(json.loads, lines.splitlines())


def relay(home: Home, request: Mapping[str, Any]) -> Generator[bytes]:
    """Send a request to the chat host and yield its events as whole lines of JSON, in batches.

    Raises:
        ChatError: As in `generate`.
    """
    for attempt in (1, 2):
        endpoint = (find_host(home) if attempt == 1 else None) or ensure_host(home)
        begun = False
        try:
            for lines in _streamed(endpoint, request):
                begun = True
                yield lines
            return
        except (httpx.ConnectError, _Leaving):
            if attempt == 2:
                raise ChatError("The chat process cannot be reached. Send again.") from None
        except httpx.TransportError as error:
            if attempt == 1 and not begun and not isinstance(error, httpx.TimeoutException):
                continue  # it was shutting down already
            raise ChatError(
                "The chat process ended in the middle of the answer, probably out of memory. "
                f"Send again to restart it; its log is {log_path(home)}."
            ) from None


def status(home: Home) -> dict[str, Any] | None:
    """Request what the chat host holds in memory; None if no host runs."""
    return _call(home, "GET", "/status")


def stop(home: Home, request_id: str) -> bool:
    """Request the stop of answers from the chat host; False if nothing was running."""
    answer = _call(home, "POST", f"/stop/{request_id}")
    return bool(answer and answer["stopped"])


def weigh(home: Home, weights: Mapping[str, Any]) -> bool:
    """Request `NewWeights` from the chat host for the next tokens; False if nothing was running.

    Raises:
        ChatError: The lane or the stack is invalid.
    """
    answer = _call(home, "POST", "/weigh", body=dict(weights))
    return bool(answer and answer["moved"])


def release(home: Home) -> None:
    """Request the chat host to free its models; it loads them again on the next request."""
    _call(home, "POST", "/release", seconds=60.0)


def quit_host(home: Home) -> bool:
    """Request the chat host to shut down and wait until it has; True if one was running."""
    endpoint = find_host(home)
    if endpoint is None:
        return False
    _call(home, "POST", "/quit")
    deadline = time.monotonic() + QUIT_SECONDS
    while endpoint.identity.alive() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return True


def _call(
    home: Home, method: str, path: str, *, body: Any = None, seconds: float = 10.0
) -> dict[str, Any] | None:
    """Call the host once; None if no host runs or it is shutting down."""
    endpoint = find_host(home)
    if endpoint is None:
        return None
    try:
        with endpoint.client(read_seconds=seconds) as client:
            response = client.request(method, path, json=body)
    except httpx.TransportError:
        return None
    if response.status_code == LEAVING_STATUS:
        return None
    if response.status_code != 200:
        raise ChatError(_refusal(response))
    return dict(response.json())


def _streamed(endpoint: Endpoint, request: Mapping[str, Any]) -> Iterator[bytes]:
    with (
        endpoint.client(read_seconds=None) as client,
        client.stream("POST", "/generate", json=dict(request)) as response,
    ):
        if response.status_code == LEAVING_STATUS:
            raise _Leaving
        if response.status_code != 200:
            response.read()
            raise ChatError(_refusal(response))
        yield from _whole_lines(response)


def _whole_lines(response: httpx.Response) -> Iterator[bytes]:
    rest = b""  # half a line is held back: an error may follow instead of its end
    for chunk in response.iter_raw():
        whole, newline, rest = (rest + chunk).rpartition(b"\n")
        if newline:
            yield whole + newline


def _refusal(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["text"])
    except (ValueError, KeyError, TypeError):
        return f"The chat process refused the request (status {response.status_code})."


def _answering(home: Home) -> Endpoint | None:
    endpoint = find_host(home)
    if endpoint is None:
        return None
    try:
        with endpoint.client(read_seconds=20.0) as client:
            return endpoint if client.get("/status").status_code == 200 else None
    except httpx.TransportError:
        return None


def _started(home: Home, options: Sequence[str]) -> Endpoint:
    process = _spawned(home, options)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if endpoint := _answering(home):
            return endpoint
        code = process.poll()
        if code == 0 and find_host(home) is None:  # the other host it gave way to has ended since
            process = _spawned(home, options)
        elif code:
            break
        time.sleep(POLL_SECONDS)
    raise ChatError(f"The chat process does not start{_last_line(home)}.")


def _spawned(home: Home, options: Sequence[str]) -> subprocess.Popen[bytes]:
    command = (sys.executable, "-P", "-m", "jobs.chat_host", "--home", str(home.path), *options)
    process = spawn(command, log_path(home))
    _children.append(process)
    return process


def _last_line(home: Home) -> str:
    with contextlib.suppress(OSError):
        text = log_path(home).read_text(errors="replace", encoding="utf-8").strip()
        if text:
            return f": {text.splitlines()[-1][:300].rstrip('.')}"
    return ""
