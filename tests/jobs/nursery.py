"""Processes in milliseconds: one that has everything imported forks the studio's other processes.

On a small machine most of a kill test is half a second of imports a process, and most of a browser
test four seconds of torch. A nursery opens no database and starts no thread, so that what it forks
is as good as new; each child leads a session of its own, with nothing open but its log and its
input. A forked process keeps a nursery of its own for those that it starts. `Born` looks to its
parent as `subprocess.Popen` does. Linux only.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jobs import chat_client, runner, runner_processes, supervisor
from jobs.runner_processes import environment
from tests.jobs import fake_runner, workers

AVAILABLE = hasattr(os, "pidfd_open") and hasattr(socket, "send_fds")
STARTERS = (chat_client, runner_processes, supervisor)  # modules that start processes by `spawn`
WARM = (
    *runner.WARM,
    "studio.training.distributed_rank",
    "jobs.chat_worker",
    "studio.chat.decoding",
    "ui.app",
    "ui.cli.main",
)


class Nursery:
    """One end of the line to a process that forks."""

    def __init__(self, line: socket.socket, process: "subprocess.Popen[bytes] | None" = None):
        self._line, self._process, self._lock = line, process, threading.Lock()
        self.codes: dict[int, int] = {}

    @classmethod
    def start(cls, *words: str, **variables: str) -> "Nursery":
        """Start one as a program of its own: `fake` replaces training, `real` imports all of it.

        What else is in `words` only names it in the list of processes.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.jobs.nursery", str(theirs.fileno()), *words],
                pass_fds=[theirs.fileno()], env=environment() | variables,
            )  # fmt: skip
        return cls(ours, process)

    @classmethod
    def fork(cls) -> "Nursery":
        """Leave one behind before this process opens anything."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            ours.close()
            serve(theirs)
            os._exit(0)
        theirs.close()
        return cls(ours)

    def spawn(self, command: Sequence[str], log: Path, *, pipe: bool = False) -> "Born":
        """Fork what `command` starts by `-m`: in the place of `runner_processes.spawn`."""
        words = command[command.index("-m") + 1 :]
        return self.born(words, log, pipe=pipe, variables=environment())

    @contextlib.contextmanager
    def replaces_spawn(self) -> Iterator[None]:
        """Fork the processes that this one starts, while the block lasts."""
        real = runner_processes.spawn
        try:
            for one in STARTERS:
                one.spawn = self.spawn
            yield
        finally:
            for one in STARTERS:
                one.spawn = real

    def born(
        self, words: Sequence[str], log: Path, *, pipe: bool = False,
        variables: Mapping[str, str] | None = None,
    ) -> "Born":  # fmt: skip
        """Fork a process that runs the `main` of a module, or a `reader`, with these words."""
        inside, outside = os.pipe() if pipe else (os.open(os.devnull, os.O_RDONLY), None)
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        return self._born(words, variables, inside, outside, output, output)

    def popen(self, command: Sequence[str], *, env: Mapping[str, str], **_: object) -> "Born":
        """Fork in the place of `subprocess.Popen` with pipes of text for input and output."""
        (inside, outside), (read, output) = os.pipe(), os.pipe()
        words = command[command.index("-m") + 1 :]
        born = self._born(words, env, inside, None, output, os.dup(2))
        born.stdin, born.stdout = os.fdopen(outside, "w"), os.fdopen(read)
        return born

    def _born(
        self, words: Sequence[str], variables: Mapping[str, str] | None, inside: int,
        outside: int | None, *outputs: int,
    ) -> "Born":  # fmt: skip
        with self._lock:
            try:
                message = json.dumps([words, variables]).encode()
                socket.send_fds(self._line, [message], [inside, *outputs])
            finally:
                for one in {inside, *outputs}:
                    os.close(one)
            while True:
                pid, code = json.loads(self._line.recv(4096))
                if code is None:
                    return Born(self, pid, outside)
                self.codes[pid] = code

    def hear(self) -> None:
        """Take what has ended meanwhile."""
        with self._lock:
            while select.select([self._line], [], [], 0)[0]:
                message = self._line.recv(4096)
                if not message:
                    return
                pid, code = json.loads(message)
                self.codes[pid] = code

    def close(self) -> None:
        """Let it end when what it forked has ended, or soon."""
        self._line.close()
        if self._process is not None:
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.terminate()
                self._process.wait()


class Born:
    """A forked process, in the shape of `subprocess.Popen`."""

    def __init__(self, nursery: Nursery, pid: int, pipe: int | None) -> None:
        self._nursery, self.pid, self.returncode = nursery, pid, None
        self.stdin = None if pipe is None else os.fdopen(pipe, "wb", buffering=0)

    def poll(self) -> int | None:
        if self.returncode is None:
            self._nursery.hear()
            self.returncode = self._nursery.codes.pop(self.pid, None)
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.005)
        return self.returncode

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def serve(line: socket.socket) -> None:
    """Fork on demand and tell how each child ended, until the line closes."""
    children: dict[int, int] = {}
    poll = select.poll()
    poll.register(line, select.POLLIN)
    open_ = True
    while open_ or children:
        for handle, _ in poll.poll():
            if handle == line.fileno():
                message, handles, _, _ = socket.recv_fds(line, 65536, 3)
                if not message:
                    poll.unregister(line)
                    open_ = False
                    continue
                pid = _fork(*json.loads(message), handles)
                for one in handles:
                    os.close(one)
                children[watched := os.pidfd_open(pid)] = pid
                poll.register(watched, select.POLLIN)
                _tell(line, [pid, None])
            else:
                pid = children.pop(handle)
                poll.unregister(handle)
                os.close(handle)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                if open_:
                    _tell(line, [pid, code])


def _tell(line: socket.socket, message: list[int | None]) -> None:
    with contextlib.suppress(BrokenPipeError):
        line.send(json.dumps(message).encode())


def _fork(words: list[str], variables: dict[str, str] | None, handles: list[int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        for standard, handle in enumerate(handles):
            os.dup2(handle, standard)
        os.closerange(3, 1024)
        sys.stdin = os.fdopen(0, closefd=False)
        if variables is not None:
            os.environ.clear()
            os.environ.update(variables)
        code = _run(*words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(code)


def _run(module: str, *words: str) -> int:
    if module == "reader":
        workers.read_and_reorder(words)
    if module != runner.__name__:
        with Nursery.fork().replaces_spawn():
            return importlib.import_module(module).main(*[list(words)] * bool(words)) or 0
    return runner.main(list(words)) or 0


if __name__ == "__main__":
    gc.disable()
    if "fake" in sys.argv:
        fake_runner.replace_training()
    else:
        for name in WARM:
            importlib.import_module(name)
        importlib.import_module("ui.app").import_gradio()
        here = importlib.import_module("tests.studio.tiny").verifying_here()
        here.__enter__()
    gc.freeze()
    gc.enable()
    serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)  # some libraries report what is left at an end
