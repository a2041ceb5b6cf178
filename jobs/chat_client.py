"""Talk to the chat host from a page or a command: find it, start it, stream from it.

Never imports torch. A host that died is found out at once and started anew by the next question;
what it was saying ends with one sentence.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

import jobs
from jobs.chat_host import LEAVING_STATUS, log_path, state_path
from jobs.locks import FileLock
from jobs.processes import Identity
from studio.errors import ChatError
from studio.home import Home

T = TypeVar("T")

START_SECONDS = 180.0  # of a machine that is very busy; a process that dies is noticed
POLL_SECONDS = 0.05


class _Leaving(Exception):
    """The host is ending and answers nothing any more."""


_children: list[subprocess.Popen[bytes]] = []  # kept, so that their end can be noticed


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How to reach a running host; `token` is a secret of this user."""

    url: str
    token: str
    identity: Identity

    def client(self, *, read_seconds: float | None) -> httpx.Client:
        """Return a client that knows the token and no proxies."""
        return httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=httpx.Timeout(5.0, read=read_seconds),
            trust_env=False,
            verify=False,  # plain HTTP on the loopback: reading certificates costs 50 ms
        )


def find_host(home: Home) -> Endpoint | None:
    """Return the living host, or None."""
    try:
        state = json.loads(state_path(home).read_text())
        identity = Identity.parse(state["identity"])
        endpoint = Endpoint(f"http://127.0.0.1:{int(state['port'])}", state["token"], identity)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return endpoint if identity.alive() else None


def ensure_host(
    home: Home, *, device: str = "auto", idle_seconds: float | None = None, warm: bool = True
) -> Endpoint:
    """Return a host that answers, starting one where none lives.

    Args:
        home: Whose adapters it serves; one host a home.
        device: Where a new one loads models.
        idle_seconds: When a new one leaves by itself.
        warm: Whether a new one imports torch before it is asked.

    Raises:
        ChatError: It does not start; says what it said last.
    """
    if (endpoint := find_host(home)) and _answers(endpoint):
        return endpoint
    lock = FileLock(home.state / "chat_start.lock")
    try:
        with lock.held(timeout_seconds=START_SECONDS):
            if (endpoint := find_host(home)) and _answers(endpoint):
                return endpoint
            command = [
                sys.executable, "-m", "jobs.chat_host", "--home", str(home.path),
                "--device", device,
            ]  # fmt: skip
            if idle_seconds is not None:
                command += ["--idle-seconds", str(idle_seconds)]
            if not warm:
                command.append("--cold")
            return _started(home, command)
    finally:
        lock.close()


def generate(home: Home, request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Ask, and yield the events of `studio.chat.lanes` as they come.

    Closing the iterator ends the answer.

    Raises:
        ChatError: The request is refused, or the host cannot be started or died.
    """
    yield from _asked(home, request, _events)


def relay(home: Home, request: Mapping[str, Any]) -> Iterator[bytes]:
    """Ask, and yield the same events as lines of JSON, as many at a time as the host sends.

    Raises:
        ChatError: As in `generate`.
    """
    yield from _asked(home, request, _whole_lines)


def _asked(
    home: Home, request: Mapping[str, Any], read: Callable[[httpx.Response], Iterator[T]]
) -> Iterator[T]:
    for attempt in (1, 2):
        endpoint = (find_host(home) if attempt == 1 else None) or ensure_host(home)
        begun = False
        try:
            for one in _streamed(endpoint, request, read):
                begun = True
                yield one
            return
        except (httpx.ConnectError, _Leaving):
            if attempt == 2:
                raise ChatError("The chat process cannot be reached. Send again.") from None
        except httpx.TransportError as error:
            if attempt == 1 and not begun and not isinstance(error, httpx.TimeoutException):
                continue  # it was ending already when it was asked
            raise ChatError(
                "The chat process ended in the middle of the answer, most likely for want of "
                f"memory. Send again: it starts anew. Its last words are in {log_path(home)}."
            ) from None


def status(home: Home) -> dict[str, Any] | None:
    """Return what the host holds, or None where none lives."""
    return _post_or_get(home, "GET", "/status")


def stop(home: Home, request_id: str) -> bool:
    """End a request's answers where they are; False when nothing was running."""
    answer = _post_or_get(home, "POST", f"/stop/{request_id}")
    return bool(answer and answer.get("stopped"))


def weigh(home: Home, request_id: str, lane: int, stack: Sequence[Mapping[str, Any]]) -> bool:
    """Move the weights of a lane that is answering; they act on its next token.

    Returns:
        False when nothing was running.

    Raises:
        ChatError: The stack is none.
    """
    endpoint = find_host(home)
    if endpoint is None:
        return False
    body = {"lane": lane, "stack": [dict(part) for part in stack]}
    try:
        with endpoint.client(read_seconds=10.0) as client:
            response = client.post(f"/weigh/{request_id}", json=body)
    except httpx.TransportError:
        return False
    if response.status_code == LEAVING_STATUS:
        return False  # it is ending
    if response.status_code != 200:
        raise ChatError(_refusal(response))
    return bool(response.json()["moved"])


def release(home: Home) -> None:
    """Make the host give its models' memory back; it stays and loads again when asked."""
    _post_or_get(home, "POST", "/release", seconds=60.0)


def quit_host(home: Home, *, seconds: float = 30.0) -> bool:
    """End the host and wait until it has ended, or so long; True when one was running."""
    endpoint = find_host(home)
    if endpoint is None:
        return False
    _post_or_get(home, "POST", "/quit")
    deadline = time.monotonic() + seconds
    while endpoint.identity.alive() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return True


def _streamed(
    endpoint: Endpoint, request: Mapping[str, Any], read: Callable[[httpx.Response], Iterator[T]]
) -> Iterator[T]:
    with (
        endpoint.client(read_seconds=None) as client,
        client.stream("POST", "/generate", json=dict(request)) as response,
    ):
        if response.status_code == LEAVING_STATUS:
            raise _Leaving
        if response.status_code != 200:
            response.read()
            raise ChatError(_refusal(response))
        yield from read(response)


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line:
            yield json.loads(line)


def _whole_lines(response: httpx.Response) -> Iterator[bytes]:
    rest = b""  # half a line is kept back: a sentence may have to follow instead of its end
    for chunk in response.iter_raw():
        whole, newline, rest = (rest + chunk).rpartition(b"\n")
        if newline:
            yield whole + newline


def _refusal(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["text"])
    except (ValueError, KeyError, TypeError):
        return f"The chat process refused the request (status {response.status_code})."


def _post_or_get(
    home: Home, method: str, path: str, *, seconds: float = 10.0
) -> dict[str, Any] | None:
    endpoint = find_host(home)
    if endpoint is None:
        return None
    try:
        with endpoint.client(read_seconds=seconds) as client:
            response = client.request(method, path)
        return dict(response.json()) if response.status_code == 200 else None
    except (httpx.TransportError, ValueError):
        return None


def _answers(endpoint: Endpoint) -> bool:
    try:
        with endpoint.client(read_seconds=20.0) as client:
            return client.get("/status").status_code == 200
    except httpx.TransportError:
        return False


def _started(home: Home, command: list[str]) -> Endpoint:
    process = _spawned(home, command)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        endpoint = find_host(home)
        if endpoint is not None and _answers(endpoint):
            return endpoint
        code = process.poll()
        if code == 0 and find_host(home) is None:  # it left the home to one that has left since
            process = _spawned(home, command)
        elif code:
            break
        time.sleep(POLL_SECONDS)
    raise ChatError(f"The chat process does not start{_last_words(home)}.")


def _spawned(home: Home, command: list[str]) -> subprocess.Popen[bytes]:
    # A session of its own: closing the terminal or the page's server does not end it.
    detached: dict[str, Any] = (
        {"creationflags": 0x00000008 | 0x00000200}  # DETACHED_PROCESS, new process group
        if sys.platform == "win32"
        else {"start_new_session": True}
    )
    sources = str(Path(jobs.__file__).resolve().parents[1])
    paths = [sources, *filter(None, [os.environ.get("PYTHONPATH")])]
    with log_path(home).open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            **detached,
        )
    _children.append(process)
    return process


def _last_words(home: Home) -> str:
    with contextlib.suppress(OSError):
        text = log_path(home).read_text(errors="replace").strip()
        if text:
            return f": {text.splitlines()[-1][:300].rstrip('.')}"
    return ""
