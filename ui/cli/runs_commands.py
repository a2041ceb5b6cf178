"""The bodies of the queue's commands: what they print, and the exit code of a job's end.

Progress goes to standard error, results to standard output, so that `--json` prints one document.
"""

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from jobs import plans, supervisor
from jobs.admission import admit
from jobs.job import Job
from jobs.jobs_table import summary
from jobs.memory import needed_bytes
from jobs.processes import Identity
from jobs.store import JobStore
from studio.errors import ServeError
from studio.fields import merge_values, parse_assignment, read_yaml
from studio.home import Home
from studio.presets import apply_preset
from studio.spec import RunSpec
from ui.cli.follow import follow_to_the_end
from ui.cli.show import duration, exit_code, number


def train(
    home: Home, spec_file: Path | None, given: dict[str, Any], assignments: Sequence[str],
    *, preset: str = "", needs: Sequence[str] = (), retries: int = 0, held: bool = False,
    follow: bool, as_json: bool,
) -> int:  # fmt: skip
    """Check a run, queue it, make sure somebody runs it, and watch it unless detached."""
    values = read_yaml(spec_file) if spec_file else {}
    if preset:
        values = apply_preset(home, preset, RunSpec.parse(values)).model_dump(mode="json")
    values = merge_values(values, given | dict(map(parse_assignment, assignments)))
    spec = admit(RunSpec.parse(values), home)
    with closing(JobStore(home)) as store:
        needed = [store.get(other).id for other in needs]
        memory = needed_bytes(spec, home)
        job = store.submit(
            spec, needs=needed, retries=plans.allowed(retries), held=held, memory_bytes=memory
        )
        supervisor.ensure_running(home)
        if held or not follow:
            word = "Held" if held else "Queued"
            say(job, as_json, f'{word} "{job.name}" as number {job.id}.')
            return 0
        try:
            job = follow_to_the_end(store, job)
        except KeyboardInterrupt:
            hint = (
                f'"{job.name}" goes on. `studio logs {job.id}` shows it, `studio cancel {job.id}`'
            )
            print(f"\n{hint} ends it.", file=sys.stderr)
            if as_json:
                print(json.dumps(summary(store.get(job.id)), ensure_ascii=False))
            return 130
    say(job, as_json, _ending(job))
    return exit_code(job)


def logs(home: Home, job_id: str, *, lines: int, follow: bool) -> None:
    """Print the end of a run's log, and with `follow` whatever comes until the run ends."""
    with closing(JobStore(home)) as store:
        job = store.get(job_id)
        path = store.log_path(job.id)
        if not path.exists() and not follow:
            print(f'"{job.name}" has no log yet: it is {job.state}.', file=sys.stderr)
            return
        text = store.log_tail(job.id, lines)
        if text:
            print(text, flush=True)
        position = path.stat().st_size if path.exists() else 0
        while follow:
            ended = not store.get(job.id).active and store.get(job.id).state != "queued"
            if path.exists():
                with path.open("rb") as file:
                    file.seek(position)
                    news = file.read()
                position += len(news)
                sys.stdout.write(news.decode(errors="replace"))
                sys.stdout.flush()
            if ended:
                return
            time.sleep(0.2)


def refuse_second_page(home: Home, port: int) -> None:
    """Refuse to open a page where this home's own already listens.

    Raises:
        ServeError: Says at which address it is.
    """
    with closing(JobStore(home)) as store:
        for row in store.processes():
            if row["role"] == "web" and port and str(row["url"]).rstrip("/").endswith(f":{port}"):
                raise ServeError(
                    f"The studio is already running at {row['url']}. Open that address, or end it "
                    "with `studio stop`."
                )


def stop(home: Home, *, as_json: bool) -> None:
    """End what runs for this home: page, chat, queue; jobs save and go on at the next start."""
    ended = []
    with closing(JobStore(home)) as store:
        for row in store.processes():
            if row["role"] in ("web", "chat") and row["pid"] != os.getpid():
                identity = Identity(row["pid"], row["pid_started"], row["boot_id"])
                if identity.alive():
                    os.kill(identity.pid, signal.SIGTERM)
                    ended.append(row["role"])
    if supervisor.stop(home):
        ended.append("supervisor")
    if as_json:
        print(json.dumps({"ended": ended}))
    else:
        print("Ended: " + ", ".join(ended) + "." if ended else "Nothing was running.")


def say_state(job: Job, as_json: bool) -> int:
    """Print that a job is queued or how it ended, and return the exit code."""
    facts = summary(job)
    if as_json:
        error = facts["error"]
        print(json.dumps({"error": error} if error else facts, ensure_ascii=False))
    else:
        text = f'Queued "{job.name}" as number {job.id}.' if job.state == "queued" else ""
        print(text or job.error_text or f'"{job.name}" is {job.state}.', file=sys.stderr)
    return 0 if job.state == "queued" else exit_code(job)


def say(job: Job, as_json: bool, sentence: str) -> None:
    """Print a job: one JSON document, or a sentence."""
    print(json.dumps(summary(job), ensure_ascii=False) if as_json else sentence)


def _ending(job: Job) -> str:
    facts = summary(job)
    if job.state == "succeeded":
        losses = f"loss {number(facts['first_loss'])} → {number(facts['last_loss'])}"
        return (
            f'"{job.name}" is trained: {job.step} steps in {duration(facts["seconds"])}, '
            f"{losses}.\n"
            f"Its adapter is {facts['adapter']}\n"
            f"Talk to it: studio chat --adapter {shlex.quote(job.name)}"
        )
    text = f'"{job.name}" ended at step {job.step}: {job.state}.'
    return f"{text}\n{job.error_text}" if job.error_text else text
