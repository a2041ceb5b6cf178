"""Sweeps: read the values, queue one run for each combination, change them as a group."""

import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

from jobs.device_placement import needed_by_each
from jobs.job_inputs import admit_each
from jobs.job_queue import JobStore
from jobs.job_record import Job
from studio.errors import QueueError, SpecError
from studio.fields import parameter
from studio.spec import RunSpec, read_assignment, settings

MOST_POINTS = 1000


def points(
    fields: Mapping[str, Sequence[Any]], *, count: int = 0, seed: int = 0
) -> list[dict[str, Any]]:
    """Return the points of a sweep: the assignments of each run, every one different.

    Args:
        fields: The values to try, by dotted field.
        count: Draw this number of combinations; 0 takes all.

    Raises:
        QueueError: A field has no values or one twice, or there are too many points.
    """
    empty = [field for field, values in fields.items() if not values]
    if not fields or empty:
        raise QueueError(f"A sweep needs values to try{' for ' + empty[0] if empty else ''}.")
    total = math.prod(len(values) for values in fields.values())
    wanted = count or total
    if min(wanted, total) > MOST_POINTS:
        raise QueueError(
            f"This sweep has {wanted:,} points; {MOST_POINTS:,} is the most. "
            "Try fewer values, or draw some at random."
        )
    for field, values in fields.items():
        written = Counter(json.dumps(value, sort_keys=True, default=str) for value in values)
        value, times = written.most_common(1)[0]
        if times > 1:
            raise QueueError(f"{field} has {value} twice. Give each value once.")
    names, lists = list(fields), list(fields.values())
    if wanted >= total:
        chosen = list(itertools.product(*lists))
    else:
        numbers = random.Random(seed).sample(range(total), wanted)
        chosen = [_combination(lists, number) for number in sorted(numbers)]
    return [dict(zip(names, values, strict=True)) for values in chosen]


def _combination(lists: Sequence[Sequence[Any]], number: int) -> tuple[Any, ...]:
    picked = []
    for values in reversed(lists):
        number, index = divmod(number, len(values))
        picked.append(values[index])
    return tuple(reversed(picked))


def submit_sweep(
    store: JobStore,
    spec: RunSpec,
    fields: Mapping[str, Sequence[Any]],
    *,
    name: str,
    count: int = 0,
    on_error: Literal["continue", "stop"] = "continue",
    retries: int = 0,
) -> list[Job]:
    """Queue one run for each point of a sweep, as a group called `name`.

    Raises:
        StudioError: One of the runs cannot be trained, or a name is taken; nothing was queued.
    """
    name = name.strip()
    if not name:
        raise QueueError("A sweep needs a name, which its runs begin with.")
    specs = []
    for point in points(fields, count=count, seed=spec.seed):
        words = [f"{field.rpartition('.')[2]}={value}" for field, value in point.items()]
        specs.append(spec.with_values({**point, "name": " ".join([name, *words])[:120]}))
    if store.database.rows("SELECT 1 FROM jobs WHERE sweep = ? LIMIT 1", (name,)):
        raise QueueError(f'There is already a sweep "{name}". Choose another name.')
    specs = admit_each(specs, store.home)
    return store.submit_many(
        specs, sweep=name, on_error=on_error, retries=retries,
        memory_bytes=needed_by_each(specs, store.home),
    )  # fmt: skip


def for_sweep(
    store: JobStore, sweep: str, action: Literal["hold", "release", "cancel"]
) -> dict[str, Any]:
    """Hold, release or cancel the runs of a sweep whose state allows it.

    Returns:
        How many changed, and the sentence of each that refused.

    Raises:
        QueueError: The sweep does not exist, or none of its runs changed.
    """
    rows = store.database.rows("SELECT id, state FROM jobs WHERE sweep = ?", (sweep,))
    if not rows:
        raise QueueError(f'There is no sweep called "{sweep}".')
    able, act = {
        "hold": ({"queued", "running", "starting"}, store.pause),
        "release": ({"paused"}, store.resume),
        "cancel": ({"queued", "running", "starting", "paused", "interrupted"}, store.cancel),
    }[action]
    chosen = [job["id"] for job in rows if job["state"] in able]
    if not chosen:
        raise QueueError(f'No run of "{sweep}" is in a state to {action}.')
    refused: list[QueueError] = []
    for job in chosen:
        try:
            act(job)
        except QueueError as error:  # one without a checkpoint, or that has just ended
            refused.append(error)
    if len(refused) == len(chosen):
        raise refused[0]
    return {
        "sweep": sweep, "changed": len(chosen) - len(refused),
        "refused": [error.text for error in refused],
    }  # fmt: skip


@cache
def titled_fields() -> tuple[tuple[str, str], ...]:
    """Return each setting that a sweep can vary as path and title; of equal ones, the last."""
    found = [(path, parameter(path, info).title) for path, info in settings()]
    return *found, ("method.name", "Method")


def parse_values(text: str) -> tuple[str, list[Any]]:
    """Parse a sweep's `method.r=4,8,16` or `Rank=4,8,16` into the setting and its values.

    Brackets keep a comma inside a value.

    Raises:
        SpecError: There is no `=`, or a value is empty.
    """
    path, value = read_assignment(text)
    titles = {title.split(" (")[0].casefold(): name for name, title in titled_fields()}
    path = titles.get(path.casefold(), path)
    if isinstance(value, list):
        return path, value
    words = [word.strip() for word in str(text.partition("=")[2]).split(",")]
    if not all(words):
        raise SpecError(f'"{text}" has no values: write it as method.r=4,8,16.', field=path)
    return path, [read_assignment(f"{path}={word}")[1] for word in words]
