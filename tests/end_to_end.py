"""Tiny families from the queue to a merged model: `python -m tests.end_to_end [FAMILY …]`.

Each family is trained through the queue with the defaults of the page (nothing is set but model,
data and steps), answers in a lane beside its base in the chat host, and is merged by a job. It
prints a table; the exit code is 1 if a family fails. `tests/jobs/test_end_to_end.py` asks for a
few.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import chat_client, supervisor
from jobs.actions import ask
from jobs.job_queue import JobStore
from jobs.job_record import ENDED, Job
from studio.adapters.library import PASSPORT
from studio.adapters.merge import read_certificate
from studio.home import Home, open_home
from tests.families import write_family

NAMES = (
    "qwen3.5", "qwen3.5-moe", "gpt-oss", "gemma2", "gemma3n", "lfm3", "olmo-hybrid", "gemma4",
    "gemma4-moe", "lfm2", "granite-4-h", "nemotron-h", "falcon-h1", "qwen3-vl", "ministral3-vl",
    "glm4-flash", "phi3",
)  # fmt: skip
STEPS, SECONDS = 30, 240.0
ROWS = [{"prompt": f"Say {n % 7}", "completion": f"the {n % 7} on the inn"} for n in range(96)]
HEAD = "| family | loss | error of the self-test | adapter − base | error of the merge |\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Measured on one family: losses, relative errors, and the largest difference of logits."""

    name: str
    first_loss: float
    last_loss: float
    self_test: float
    difference: float
    merge_error: float

    def row(self) -> str:
        """Return the line of the table."""
        return (
            f"| {self.name} | {self.first_loss:.3f} → {self.last_loss:.3f} | {self.self_test:.1e} "
            f"| {self.difference:.3f} | {self.merge_error:.1e} |"
        )


def examine(home: Home, place: Path, name: str) -> Found:
    """Train, chat and merge one family.

    Raises:
        AssertionError: A step failed, the loss did not fall, or the adapter changes nothing.
    """
    model, data = write_family(name, place / name), place / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    values = {"model": str(model), "data": str(data), "set": [f"train.max_steps={STEPS}"]}
    run = _ended(home, "train", values).result
    passport = json.loads((Path(run["adapter"]) / PASSPORT).read_text(encoding="utf-8"))
    assert set(passport["self_test"]["errors"]) >= {"adapted", "packed"}
    assert run["last_loss"] < 0.9 * run["first_loss"], f"{name}: the loss does not fall: {run}"
    stack = [{"name": run["adapter"], "weight": 1.0}]
    base, tuned = _ends(
        home, {"model": str(model), "stack": []}, {"model": str(model), "stack": stack}
    )
    assert base["type"] == tuned["type"] == "done", f"{name}: {base} {tuned}"
    assert base["active"]["verified"] and tuned["active"]["verified"], f"{name}: {base} {tuned}"
    assert tuned["active"]["max_logit_difference"] > 0.01, f"{name}: {tuned}"
    out = place / f"{name}-merged"
    _ended(home, "merge", {"stack": stack, "model": {"path": str(model)}, "out": str(out)})
    certificate = read_certificate(out)
    assert certificate["merged"] and not certificate["left"], f"{name}: {certificate}"
    return Found(
        name=name, first_loss=run["first_loss"], last_loss=run["last_loss"],
        self_test=max(passport["self_test"]["errors"].values()),
        difference=tuned["active"]["max_logit_difference"], merge_error=certificate["max_error"],
    )  # fmt: skip


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Home]:
    """Open a home; afterwards end its chat host and its queue."""
    home = open_home(folder / "home")
    try:
        yield home
    finally:
        chat_client.quit_host(home)
        supervisor.stop(home)


def _ended(home: Home, action: str, values: dict[str, Any]) -> Job:
    """Ask for an action and return its job when it has succeeded."""
    (job,) = ask(home, action, values).jobs
    supervisor.ensure_running(home)
    deadline = time.monotonic() + SECONDS
    with closing(JobStore(home)) as store:
        while (found := store.get(job.id)).state not in ENDED and time.monotonic() < deadline:
            time.sleep(0.1)
    assert found.state == "succeeded", f"{action} {values}: {found.state}, {found.error_text}"
    return found


def _ends(home: Home, *lanes: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the last event of each lane of one question."""
    asked = {
        "messages": [{"role": "user", "content": "Say 3"}],
        "sampling": {"temperature": 0, "max_new_tokens": 8},
    }
    events = [*chat_client.generate(home, {"lanes": [lane | asked for lane in lanes]})]
    ends = {event["lane"]: event for event in events if event["type"] in ("done", "error")}
    return [ends[lane] for lane in sorted(ends)]


def main(names: list[str]) -> int:
    """Examine families one after the other; return how many failed."""
    failed = 0
    print(f"{HEAD}|{'---|' * 5}", flush=True)
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder)) as home:
        for name in names:
            try:
                print(examine(home, Path(folder), name).row(), flush=True)
            except AssertionError as error:
                failed += 1
                print(f"| {name} | {error} |", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or [*NAMES]))
