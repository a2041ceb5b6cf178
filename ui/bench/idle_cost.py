"""Measure what an idle studio costs: wake-ups and processor share of each of its processes.

Page, supervisor, warm spare and a chat host that has loaded the starter run in a temporary home,
first with no page open, then with one open in headless Chromium (or a simulated poll where there
is none). A wake-up is a context switch of any thread, voluntary or not.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from ui.bench.bench_figures import Figure, figure, progress
from ui.bench.child_processes import ServedPage, ask, processor_seconds, serving, wait_until
from ui.window import BROWSERS

ROLES = ("web", "supervisor", "spare", "chat")
WAKEUPS_BAR, SHARE_BAR, OPEN_SHARE_BAR = 25.0, 1.0, 2.0
POLL_SECONDS = 2.5  # of an open page while no job runs
SETTLED_SHARE, SETTLE_SECONDS = 15.0, 3.0
PROMPT = {
    "id": "idle",
    "lanes": [
        {
            "model": "starter",
            "messages": [{"role": "user", "content": "Hello"}],
            "sampling": {"max_new_tokens": 4},
        }
    ],
}


def bench_idle(folder: Path, seconds: float = 20.0) -> list[Figure]:
    """Return the figures of every process and their sums, over `seconds` in each state."""
    progress("starting page, supervisor, spare and chat host")
    with serving(folder / "home") as page:
        ask(f"{page.url}api/chat/generate", PROMPT)
        processes = wait_until(lambda: _all_there(page.url), "supervisor, spare and chat host")
        _settle(processes)
        progress(f"no page open, {seconds:g} s")
        figures = _figures(measured(processes, seconds), "no page", WAKEUPS_BAR, SHARE_BAR)
        with _open_page(page, folder / "profile") as kind:
            _settle(processes)
            progress(f"{kind}, {seconds:g} s")
            return figures + _figures(measured(processes, seconds), kind, 0, OPEN_SHARE_BAR)


def measured(
    processes: dict[str, psutil.Process], seconds: float
) -> dict[str, tuple[float, float]]:
    """Return wake-ups per second and percent of one core of each process."""
    before = {role: (switches(one), processor_seconds(one)) for role, one in processes.items()}
    started = time.perf_counter()
    time.sleep(seconds)
    took = time.perf_counter() - started
    return {
        role: (
            sum(count - switched.get(thread, 0) for thread, count in switches(one).items()) / took,
            100 * (processor_seconds(one) - used) / took,
        )
        for (role, one), (switched, used) in zip(processes.items(), before.values(), strict=True)
    }


def switches(process: psutil.Process) -> dict[str, int]:
    """Return the context switches of each thread of a process since it began."""
    threads = Path(f"/proc/{process.pid}/task")
    if not threads.is_dir():
        return {"": sum(process.num_ctx_switches())}
    counts = {}
    for status in threads.glob("*/status"):
        with contextlib.suppress(OSError):  # the thread has ended
            lines = status.read_bytes().splitlines()
            counts[status.parent.name] = sum(
                int(line.split()[1]) for line in lines if b"ctxt_switches" in line
            )
    return counts


def _figures(
    found: dict[str, tuple[float, float]], state: str, wakeups_bar: float, share_bar: float
) -> list[Figure]:
    total = tuple(sum(values) for values in zip(*found.values(), strict=True))
    rows = [(*one, 0.0, 0.0) for one in found.values()] + [(*total, wakeups_bar, share_bar)]
    return [
        figure(f"{role}, {state}: {what}", value, unit, bar)
        for role, row in zip([*found, "together"], rows, strict=True)
        for what, value, unit, bar in (
            ("wake-ups", row[0], "/s", row[2]), ("processor", row[1], "%", row[3])
        )
    ]  # fmt: skip


def _all_there(url: str) -> dict[str, psutil.Process] | None:
    pids = {row["role"]: row["pid"] for row in ask(f"{url}api/system")["processes"]}
    return {role: psutil.Process(pids[role]) for role in ROLES} if set(ROLES) <= set(pids) else None


def _settle(processes: dict[str, psutil.Process]) -> None:
    """Wait until nothing is being imported, loaded or drawn any more."""

    def calm() -> bool:
        found = measured(processes, SETTLE_SECONDS).values()
        return sum(share for _, share in found) < SETTLED_SHARE

    wait_until(calm, "rest")


@contextlib.contextmanager
def _open_page(page: ServedPage, profile: Path) -> Iterator[str]:
    """Keep the Runs page open while the block runs; yield how."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        with _polling(page.url):
            yield "simulated page"
        return
    process = subprocess.Popen(
        [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
         f"--user-data-dir={profile}", f"{page.url}runs"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: any(one.raddr for one in page.process.net_connections()), "open page")
        yield "open page"
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def _polling(url: str) -> Iterator[None]:
    closed = threading.Event()

    def poll() -> None:
        digest = ""
        while True:
            news = ask(f"{url}api/live?jobs={digest}")
            digest = news["jobs"]["digest"] if news else digest
            if closed.wait(POLL_SECONDS):
                return

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield
    finally:
        closed.set()
        thread.join()
