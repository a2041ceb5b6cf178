"""`studio doctor` and `studio diagnostics`: this machine, home and queue, and what is wrong there.

Diagnostics are pasted into a report of a problem: no secret and no path of the user is in them. The
user's folder is `~`, the home is `HOME`; of another place only the last part stays, of a package
its file.
"""

import json
import logging
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from jobs import ray_cluster as clusters
from jobs.database import damage
from jobs.job_queue import JobStore
from jobs.run_folder import log_tail
from studio import hardware
from studio.errors import StudioError
from studio.gpus import installed
from studio.home import Home, open_home
from studio.names import readable, redacted
from studio.training import kernel_check
from studio.training.allocator_and_threads import missing_preload, preload

logger = logging.getLogger(__name__)
PACKAGES = (
    "adapter-studio", "torch", "transformers", "accelerate", "datasets", "safetensors", "gradio",
    "sqlite-utils", "pydantic", "bitsandbytes",
)  # fmt: skip
FIXED_SQLITE = (3, 51, 3)
LITTLE_ROOM_BYTES = 2 << 30
BUSY_CORES = 0.5
MUST_WORK = ("load", "lora", "packing", "checkpointing", "cache", "lanes", "saved", "merged")
LOG_LINES, SUPERVISOR_LINES = 40, 15
_ELSEWHERE = re.compile(
    r"""(?<![\w~./:…-])(?:[A-Za-z]:\\|/)(?:[^\s/\\:"',]+[/\\])*?"""
    r"""(?=site-packages[/\\]|[^\s/\\:"',]+(?![^\s:"',]*[/\\]))"""
)


def examine(home_path: Path | None, model: str = "") -> dict[str, Any]:
    """Examine machine, home and queue: return facts and findings; `ok` is false on a problem.

    Args:
        home_path: The home; the usual one by default.
        model: Folder or hub id of a model to examine too.
    """
    findings: list[dict[str, str]] = []
    facts: dict[str, Any] = {
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "sqlite": sqlite3.sqlite_version,
        "packages": {name: installed(name) or None for name in PACKAGES},
        "devices": [
            {"name": d.name, "label": d.label, "total_bytes": d.total_bytes,
             "free_bytes": d.free_bytes}
            for d in hardware.devices()
        ],
        "allocator": os.environ.get("LD_PRELOAD") or preload().get("LD_PRELOAD", ""),
        "home": None,
    }  # fmt: skip
    busy = hardware.busy_cores()
    if busy >= BUSY_CORES:
        findings.append(_note(
            f"Other programs keep {busy:.1f} of {hardware.physical_cores()} cores busy: runs and "
            "chat on the processor take longer."
        ))  # fmt: skip
    if sentence := missing_preload():
        findings.append(_note(sentence))
    for name in ("torch", "transformers", "gradio"):
        if facts["packages"][name] is None:
            findings.append(_problem(f"{name} is not installed. Install adapter-studio again."))
    works = any(device["name"] != "cpu" for device in facts["devices"])
    for card in hardware.blocked():
        command = f" Run: {card.command}" if card.command else ""
        say = _note if works else _problem
        findings.append(say(f"{card.label} is not used. {card.why}{command}"))
    if sqlite3.sqlite_version_info < FIXED_SQLITE:
        findings.append({
            "kind": "detail",  # nothing that the user should do
            "text": f"SQLite {sqlite3.sqlite_version} has a rare bug in its write-ahead log (fixed "
            "in 3.51.3); the queue's lock file avoids it.",
        })  # fmt: skip
    try:
        facts["home"] = _home_facts(home_path, findings)
    except StudioError as error:
        findings.append(_problem(error.text))
    if model:
        facts["model"] = _model_facts(model, findings)
    facts["findings"] = findings
    facts["ok"] = not any(finding["kind"] == "problem" for finding in findings)
    return facts


def _home_facts(home_path: Path | None, findings: list[dict[str, str]]) -> dict[str, Any]:
    home = open_home(home_path)
    findings += [_note(text) for text in kernel_check.sentences(home)]
    usage = shutil.disk_usage(home.path)
    if usage.free < LITTLE_ROOM_BYTES:
        findings.append(_problem(
            f"Only {readable(usage.free)} are free in {home.path}: checkpoints may not fit."
        ))  # fmt: skip
    with closing(JobStore(home)) as store:
        with store.database.reading() as db:
            if found := damage(db.conn):
                findings.append(_problem(f"{home.database} is damaged: {found}"))
        supervisor = store.supervisor()
        counts = dict(store.counts())
        if supervisor is None and counts.get("queued"):
            findings.append(_note(
                "Runs wait and no supervisor lives; opening the studio starts one."
            ))  # fmt: skip
        cluster = clusters.shown(store)
        findings += [_note(trouble) for trouble in clusters.troubles(cluster)]
        return {
            "cluster": cluster,
            "path": str(home.path),
            "free_bytes": usage.free,
            "jobs": counts,
            "processes": [
                {key: row[key] for key in ("role", "pid", "url")} for row in store.processes()
            ],
        }


def _model_facts(model: str, findings: list[dict[str, str]]) -> dict[str, Any]:
    """Return what works on a model, measured in a process of its own, which may load torch."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "studio.evaluation.examine_model", model],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    logger.debug("%s", done.stderr)
    try:
        found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        findings.append(_problem(
            f"{model} could not be examined: its process ended with exit code {done.returncode}, "
            "often for lack of memory."
        ))  # fmt: skip
        return {"path": model, "works": [], "fails": {}}
    for name in MUST_WORK:
        if found[name]:
            findings.append(_problem(f"{model}, {name}: {found[name]}"))
    return {
        "path": model,
        "works": [name for name, why in found.items() if not why],
        "fails": {name: why for name, why in found.items() if why},
    }


def _problem(text: str) -> dict[str, str]:
    return {"kind": "problem", "text": text}


def _note(text: str) -> dict[str, str]:
    return {"kind": "note", "text": text}


def diagnostics(home: Home | None) -> str:
    """Return the text of `studio diagnostics`, to paste; without a home only on the machine."""
    facts = examine(home.path if home else None)
    parts = [_machine(facts)]
    if home is not None:
        try:
            with closing(JobStore(home)) as store:
                parts += _last_error(store)
        except StudioError as error:
            parts.append(f"## Queue\n{error.text}")
        log = log_tail(home.state / "supervisor.log", SUPERVISOR_LINES)
        parts += [f"## Supervisor log\n{log}"] if log else []
    text = "\n\n".join(parts) + "\n"
    if home is not None:
        for path in {str(home.path), str(home.path.resolve())}:
            text = text.replace(path, "HOME")
    return _ELSEWHERE.sub("…/", redacted(text))


def _machine(facts: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {v}" for name, v in facts["packages"].items() if v)
    lines = [
        "# Adapter Studio diagnostics",
        f"Python {facts['python']}, SQLite {facts['sqlite']}, {facts['system']}", packages,
        *(
            f"{one['name']}: {one['label']}, {readable(one['free_bytes'])} of "
            f"{readable(one['total_bytes'])} free" for one in facts["devices"]
        ),
    ]  # fmt: skip
    if at := facts["home"]:
        counts = ", ".join(f"{n} {state}" for state, n in at["jobs"].items()) or "none"
        lines.append(f"Free on the home's disk: {readable(at['free_bytes'])}; jobs: {counts}")
    lines += [f"{one['kind'].capitalize()}: {one['text']}" for one in facts["findings"]]
    return "\n".join(lines)


def _last_error(store: JobStore) -> list[str]:
    """Return the job that failed last, its error and the end of its log."""
    failed = store.list(["failed"])
    if not failed:
        return ["## Last error\nnone"]
    job = max(failed, key=lambda one: one.finished or 0)
    method = (job.spec.get("method") or {}).get("name", "")
    words = f"Job {job.id} ({job.kind} {method}".strip() + f"), attempt {job.attempt}"
    return [
        f"## Last error\n{words}: {job.error_kind}: {job.error_text}",
        f"## End of its log\n{store.log_tail(job.id, LOG_LINES) or 'no log'}",
    ]
