"""What the System page shows: devices and who holds them, our processes, the home, versions.

Everything is read from the system on request; what uses space is the action `storage`. torch is not
imported to show its version.
"""

import platform
import time
from dataclasses import asdict
from typing import Any

import psutil
from fastapi import APIRouter

from jobs import ray_cluster
from jobs.claims import device_of
from jobs.doctor import PACKAGES
from jobs.job_queue import JobStore
from studio import hardware
from studio.gpus import installed
from studio.home import Home

ROLES = {
    "web": "serves these pages",
    "supervisor": "starts queued runs, watches them, resumes what was interrupted",
    "runner": "trains one run",
    "spare": "a warm process that the next run starts from",
    "chat": "keeps one base and its adapters for Compare",
}


def system_routes(home: Home, store: JobStore) -> APIRouter:
    """Return the System page's routes."""
    router = APIRouter(prefix="/api")
    seen: dict[int, psutil.Process] = {}

    watch = ray_cluster.Watch(store)

    @router.get("/system")
    def system() -> dict[str, Any]:
        watch.look()
        return {
            "cluster": _cluster(store, watch),
            "devices": _devices(store),
            "blocked": [
                {"label": card.label, "why": card.why, "command": card.command}
                for card in hardware.blocked()
            ],
            "processes": _processes(store, seen),
            "home": {"path": str(home.path)},
            "versions": _versions(),
        }

    return router


def _cluster(store: JobStore, watch: ray_cluster.Watch) -> dict[str, Any] | None:
    found = watch.shown()
    if found is None:
        return None
    rows = [row for row in store.leases() if ray_cluster.is_slot(str(row["device"]))]
    return found | {"holders": list(dict.fromkeys(str(row["job_name"]) for row in rows))}


def _devices(store: JobStore) -> list[dict[str, Any]]:
    holders: dict[str, list[dict[str, Any]]] = {}
    for lease in store.leases():
        holders.setdefault(device_of(str(lease["device"])), []).append(_holder(lease))
    return [
        asdict(device) | {"holders": holders.get(device.name, [])} for device in hardware.devices()
    ]


def _holder(lease: dict[str, Any]) -> dict[str, Any]:
    """One who holds a device: a job with its estimate, or chat with what it keeps."""
    return {
        "name": str(lease["job_name"] or lease["holder"]),
        "job": lease["job"],
        "state": lease["job_state"] or ("asked to leave" if lease["wanted_back"] else "chat"),
        "bytes": lease["memory_bytes"],
        "seconds": max(0.0, time.time() - lease["since"]),
    }


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
        first = pid not in seen
        process = seen.setdefault(pid, psutil.Process(pid))
        with process.oneshot():
            cpu = process.cpu_percent()
            return {
                "role": role,
                "what": ROLES.get(role, ""),
                "pid": pid,
                "seconds": time.time() - process.create_time(),
                "cpu": None if first else cpu,  # psutil begins to measure at the first question
                "bytes": process.memory_info().rss,
            }
    except psutil.Error:
        seen.pop(pid, None)
        return None


def _versions() -> list[tuple[str, str]]:
    rows = [("Python", platform.python_version()), ("System", platform.platform(terse=True))]
    return rows + [(name, found) for name in PACKAGES if (found := installed(name))]
