"""The base class of requests: what the user asks for, checked at once, performed by a job."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from studio.fields import Record, knob
from studio.home import Home
from studio.training.training_events import Event, Finished

Command = Literal["stop", "save", "sample"] | None
Control = Callable[[], Command]


class Request(Record):
    """Frozen fields of one kind of job; the queue stores them as JSON."""

    kind: ClassVar[str]
    retries: ClassVar[int] = 0  # after a transient failure
    report: ClassVar[str] = ""  # file of results in the job's folder, which is the outcome
    name: str = knob("", "Name of the job.", title="Name", max_length=120)

    def checked(self, home: Home) -> Self:
        """Return the request as the queue stores it: adapters found, paths absolute.

        Raises:
            StudioError: It cannot be performed.
        """
        return self

    def target(self, home: Home) -> Path | None:
        """Return the file or folder that the job will create, if it is known beforehand."""
        out = getattr(self, "out", "")
        return Path(out) if out else None

    def run(self, home: Home, run_dir: Path, control: Control) -> Iterator[Event]:
        """Perform the request and put the elapsed time into the last event."""
        started = time.monotonic()
        for event in self.perform(home, run_dir, control):
            if isinstance(event, Finished):
                event = replace(event, seconds=time.monotonic() - started)
            yield event

    def perform(self, home: Home, run_dir: Path, control: Control) -> Iterator[Event]:
        """Do the work; the last event is `Finished`."""
        raise NotImplementedError

    def outcome(self, home: Home, run_dir: Path, result: dict[str, Any]) -> dict[str, Any]:
        """Return what a finished job made, as commands print and pages show it.

        `result` is what the job reported, `adapter` and its facts among it.
        """
        if self.report:
            found = json.loads((run_dir / self.report).read_text(encoding="utf-8"))
            return {"id": int(run_dir.name), **found}
        return {"adapter": result.get("adapter")}
