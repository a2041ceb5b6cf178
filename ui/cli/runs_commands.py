"""The bodies of the queue's commands: what they print, and the exit code of a job's end.

Progress goes to standard error, results to standard output, so that `--json` prints one document.
"""

import json
import os
import signal
import sys
import time
from contextlib import closing

from jobs import supervisor
from jobs.job import Job
from jobs.jobs_table import summary
from jobs.processes import Identity
from jobs.store import JobStore
from studio.errors import ServeError
from studio.home import Home


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


def say(job: Job, as_json: bool, sentence: str) -> None:
    """Print a job: one JSON document, or a sentence."""
    print(json.dumps(summary(job), ensure_ascii=False) if as_json else sentence)
