"""What the System page shows: devices and who holds them, our processes, the home, versions.

Everything is asked from the system at the moment of the question; sizes of folders are kept for a
minute because counting many files costs time. It imports no torch to name torch's version.
"""

import platform
import shutil
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from fastapi import APIRouter

from jobs.store import JobStore
from studio import hardware
from studio.home import Home

ROLES = {
    "web": "serves these pages",
    "supervisor": "starts queued runs, watches them, resumes what was interrupted",
    "runner": "trains one run",
    "spare": "a warm process that the next run starts from",
    "chat": "keeps one base and its adapters for Compare",
}
PACKAGES = ("adapter-studio", "torch", "transformers", "gradio", "peft", "datasets", "sqlite-utils")
SIZES_KEPT_SECONDS = 60.0


def machine_routes(home: Home, store: JobStore) -> APIRouter:
    """Return the System page's route."""
    router = APIRouter(prefix="/api")
    sizes = _Sizes(home)
    seen: dict[int, psutil.Process] = {}

    @router.get("/system")
    def system() -> dict[str, Any]:
        return {
            "devices": _devices(store),
            "processes": _processes(store, seen),
            "home": sizes.read(),
            "versions": _versions(),
        }

    return router


def _devices(store: JobStore) -> list[dict[str, Any]]:
    holders: dict[str, list[str]] = {}
    for lease in store.leases():
        who = lease.get("job_name") or lease["holder"]
        holders.setdefault(str(lease["device"]), []).append(str(who))
    return [
        {
            "name": device.name,
            "label": device.label,
            "total_bytes": device.total_bytes,
            "free_bytes": device.free_bytes,
            "utilization": device.utilization,
            "holders": holders.get(device.name, []),
        }
        for device in hardware.devices()
    ]


def _processes(store: JobStore, seen: dict[int, psutil.Process]) -> list[dict[str, Any]]:
    found = [(str(row["role"]), int(row["pid"])) for row in store.processes()]
    found += [("runner", job.pid) for job in store.list(states={"running", "stopping"}) if job.pid]
    rows = [_process(role, pid, seen) for role, pid in dict.fromkeys(found)]
    missing = [role for role in ("web", "supervisor") if role not in {role for role, _ in found}]
    for pid in set(seen) - {pid for _, pid in found}:
        del seen[pid]
    return [
        *(row for row in rows if row),
        *({"role": role, "what": ROLES[role], "pid": None} for role in missing),
    ]


def _process(role: str, pid: int, seen: dict[int, psutil.Process]) -> dict[str, Any] | None:
    try:
        process = seen.setdefault(pid, psutil.Process(pid))
        with process.oneshot():
            return {
                "role": role,
                "what": ROLES.get(role, ""),
                "pid": pid,
                "seconds": time.time() - process.create_time(),
                "cpu": process.cpu_percent(),
                "bytes": process.memory_info().rss,
            }
    except psutil.Error:
        seen.pop(pid, None)
        return None


def _versions() -> list[tuple[str, str]]:
    rows = [("Python", platform.python_version()), ("System", platform.platform(terse=True))]
    for package in PACKAGES:
        try:
            rows.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return rows


class _Sizes:
    """The home's folders by size, counted at most once a minute."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.counted = 0.0
        self.parts: list[dict[str, Any]] = []

    def read(self) -> dict[str, Any]:
        if time.monotonic() - self.counted > SIZES_KEPT_SECONDS or not self.parts:
            home = self.home
            folders = {
                "Runs": home.runs,
                "Adapters": home.adapters,
                "Datasets": home.datasets,
                "Models": home.models,
                "Database": home.database,
            }
            self.parts = [{"name": n, "bytes": _bytes_in(path)} for n, path in folders.items()]
            self.counted = time.monotonic()
        return {
            "path": str(self.home.path),
            "parts": self.parts,
            "free_bytes": shutil.disk_usage(self.home.path).free,
        }


def _bytes_in(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    total = 0
    for file in path.rglob("*"):
        try:
            total += file.lstat().st_size if not file.is_dir() else 0
        except OSError:
            continue  # it was removed meanwhile
    return total
