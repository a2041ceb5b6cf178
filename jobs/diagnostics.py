"""Diagnostics to paste into a report of a problem: versions, devices, findings, the last error.

No secret and no path of the user is in it: the user's folder is `~`, the home is `HOME`; of another
place only the last part stays, of a package its file.
"""

import re
from contextlib import closing
from typing import Any

from jobs.doctor import examine
from jobs.job_queue import JobStore
from jobs.job_record import Job
from jobs.run_folder import log_tail
from studio.errors import StudioError
from studio.home import Home
from studio.names import readable
from studio.redaction import redacted

LOG_LINES, SUPERVISOR_LINES = 40, 15
_ELSEWHERE = re.compile(
    r"""(?<![\w~./:…-])(?:[A-Za-z]:\\|/)(?:[^\s/\\:"',]+[/\\])*?"""
    r"""(?=site-packages[/\\]|[^\s/\\:"',]+(?![^\s:"',]*[/\\]))"""
)


def diagnostics(home: Home | None) -> str:
    """Return the text; without a home only what is known of the machine."""
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
    job: Job = max(failed, key=lambda one: one.finished or 0)
    method = (job.spec.get("method") or {}).get("name", "")
    words = f"Job {job.id} ({job.kind} {method}".strip() + f"), attempt {job.attempt}"
    return [
        f"## Last error\n{words}: {job.error_kind}: {job.error_text}",
        f"## End of its log\n{store.log_tail(job.id, LOG_LINES) or 'no log'}",
    ]
