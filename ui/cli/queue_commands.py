"""The bodies of the commands that plan: order, schedule, sweep, extend, notes, the whole queue."""

import json
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any, Literal, cast

from jobs import plans, settings, supervisor, webhook
from jobs import secrets as kept
from jobs.admission import admit
from jobs.job import Job
from jobs.jobs_table import summary
from jobs.plans import extend as extend_run
from jobs.plans import parse_moment
from jobs.store import JobStore
from studio.errors import QueueError, SpecError
from studio.fields import parse_assignment
from studio.home import Home
from studio.spec import RunSpec
from ui.cli.runs_commands import say


def queue(
    home: Home, *, hold: bool, release: bool, on_error: str, limit: int, as_json: bool
) -> None:
    """Print what runs and waits, in order; hold or release it all, or choose what errors do."""
    with closing(JobStore(home)) as store:
        if hold and release:
            raise QueueError("Hold the queue or release it, not both.")
        if hold:
            settings.hold_queue(store)
        if release:
            settings.release_queue(store)
        if on_error:
            settings.on_error(store, on_error)
        jobs = store.queue(limit=limit)
        held, policy = settings.read(store, "held"), settings.read(store, "on_error")
        if not held and jobs:
            supervisor.ensure_running(home)
    if as_json:
        facts = {"held": held, "on_error": policy, "jobs": [summary(job) for job in jobs]}
        print(json.dumps(facts, ensure_ascii=False))
        return
    if held:
        print(f"The queue is held: {held} `studio queue --release` lets it go on.")
    for job in jobs:
        print(f"{job.id:>6}  {job.state:9} {job.name}{_waits_for(job)}")
    if not jobs:
        print("Nothing runs and nothing waits.")


def move(
    home: Home, job_id: str, *, before: str, first: bool, last: bool, by: int, as_json: bool
) -> None:
    """Change the place of a waiting job."""
    if sum((bool(before), first, last, bool(by))) != 1:
        raise QueueError("Say one place: --before ID, --first, --last, or --by N.")
    with closing(JobStore(home)) as store:
        if first:
            job = store.run_next(job_id)
        elif by:
            job = plans.shift(store, job_id, by)
        else:
            job = store.move(job_id, before=before or None)
        place = [one.id for one in store.queue()].index(job.id) + 1 if job.state == "queued" else 0
    say(job, as_json, f'"{job.name}" is number {place} of the queue.' if place else job.name)


def hold(home: Home, job_id: str, sweep: str, action: str, *, as_json: bool) -> None:
    """Hold or release one job, or every job of a sweep."""
    if bool(job_id) == bool(sweep):
        raise QueueError(f"Say which job to {action}, or which sweep with --sweep.")
    with closing(JobStore(home)) as store:
        if sweep:
            count = plans.for_sweep(store, sweep, cast("Literal['hold', 'release']", action))
            _done(as_json, {"sweep": sweep, "changed": count}, f'{count} runs of "{sweep}".')
        else:
            job = store.pause(job_id) if action == "hold" else store.resume(job_id)
            say(job, as_json, f'"{job.name}" is {job.state}.')
        if action == "release":
            supervisor.ensure_running(home)


def delete(home: Home, job_id: str, *, as_json: bool) -> None:
    """Remove a job and its run folder."""
    with closing(JobStore(home)) as store:
        job = store.get(job_id)
        store.delete(job.id)
    _done(as_json, {"deleted": job.id}, f'"{job.name}" is deleted.')


def duplicate(
    home: Home, job_id: str, assignments: Sequence[str], name: str, *, as_json: bool
) -> None:
    """Queue a copy of a job with some fields changed."""
    change = dict(map(parse_assignment, assignments)) | ({"name": name} if name else {})
    with closing(JobStore(home)) as store:
        job = plans.duplicate(store, job_id, change)
        supervisor.ensure_running(home)
    say(job, as_json, f'Queued "{job.name}" as number {job.id}.')


def sweep(
    home: Home,
    name: str,
    *,
    given: dict[str, Any],
    base: str,
    over: Sequence[str],
    count: int,
    on_error: str,
    retries: int,
    as_json: bool,
) -> None:
    """Queue a run for every combination of some values, or for some drawn at random."""
    if on_error not in ("continue", "stop"):
        raise QueueError(f'After an error a sweep can "continue" or "stop", not "{on_error}".')
    fields = dict(map(parse_values, over))
    with closing(JobStore(home)) as store:
        values = store.get(base).spec if base else {}
        spec = RunSpec.parse(values).with_values({**given, "name": ""})
        jobs = plans.submit_sweep(
            store, admit(spec, home), fields, name=name, mode="random" if count else "grid",
            count=count, on_error=cast("Literal['continue', 'stop']", on_error),
            retries=retries,
        )  # fmt: skip
        supervisor.ensure_running(home)
    found = {"sweep": name, "jobs": [summary(job) for job in jobs]}
    _done(as_json, found, f'Queued {len(jobs)} runs as the sweep "{name}".')


def parse_values(text: str) -> tuple[str, list[Any]]:
    """Split `method.r=4,8,16` into the field and its values; brackets keep a comma inside one.

    Raises:
        SpecError: There is no `=`.
    """
    field, value = parse_assignment(text)
    if isinstance(value, list):
        return field, value
    words = [word.strip() for word in str(text.partition("=")[2]).split(",")]
    if not all(words):
        raise SpecError(f'"{text}" names no values: write it as method.r=4,8,16.', field=field)
    return field, [parse_assignment(f"value={word}")[1] for word in words]


def schedule(
    home: Home, job_id: str, *, at: str, when: str, needs: Sequence[str] | None,
    retries: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Choose when a waiting job may start and how often again; without a wish it may at once."""
    if when not in ("", "any", "idle", "night"):
        raise QueueError(f'A job can start when "idle" or at "night", not "{when}".')
    with closing(JobStore(home)) as store:
        start = None
        if at or when or (needs is None and retries is None):
            moment = parse_moment(at, now=time.time()) if at else None
            start = plans.Start(moment, cast("plans.StartWhen", "" if when == "any" else when))
        others = None if needs is None else [one for one in needs if one != "none"]
        job = plans.schedule(store, job_id, start, needs=others, retries=retries)
        supervisor.ensure_running(home)
    say(job, as_json, f'"{job.name}" is {job.state}{_waits_for(job)}.')


def start_anyway(home: Home, job_id: str, *, as_json: bool) -> None:
    """Let a waiting job start without room for its memory."""
    with closing(JobStore(home)) as store:
        job = plans.start_anyway(store, job_id)
    say(job, as_json, f'"{job.name}" starts when it is its turn, with room or without.')


def extend(home: Home, job_id: str, *, epochs: float, steps: int, name: str, as_json: bool) -> None:
    """Queue the continuation of a finished run."""
    with closing(JobStore(home)) as store:
        job = extend_run(store, job_id, epochs=epochs, steps=steps, name=name)
        supervisor.ensure_running(home)
    say(job, as_json, f'Queued "{job.name}" as number {job.id}, from step {job.step}.')


def request(home: Home, job_id: str, what: Literal["save", "sample"], *, as_json: bool) -> None:
    """Ask a running training for a checkpoint or for its samples now."""
    with closing(JobStore(home)) as store:
        plans.request(store, job_id, what)
        job = store.get(job_id)
    say(job, as_json, f'"{job.name}" will {what} at its next step.')


def note(
    home: Home, job_id: str, text: str | None, tags: Sequence[str], *, untag: Sequence[str],
    as_json: bool,
) -> None:  # fmt: skip
    """Write a job's note, add and remove tags; without any change show them."""
    with closing(JobStore(home)) as store:
        job = store.get(job_id)
        words = [tag for tag in [*job.tags, *tags] if tag not in untag] if tags or untag else None
        if text is not None or words is not None:
            job = plans.annotate(store, job_id, notes=text, tags=words)
    say(job, as_json, "\n".join([f"{job.name}: {', '.join(job.tags)}", job.notes]).strip())


def tell(home: Home, url: str, *, off: bool, as_json: bool) -> None:
    """Choose, show or forget the address that is told when a job ends."""
    with closing(JobStore(home)) as store:
        if off:
            kept.forget(home, "webhook")
        elif url:
            webhook.choose(store, url)
    where = webhook.shown(home)
    place = kept.where(home, "webhook")
    words = {"keyring": "in the system's keyring", "file": "in a file that only you can read"}
    _done(
        as_json, {"webhook": where, "kept": place},
        f"Ends are told to {where}; the address is {words[place]}." if place else "Nobody is told.",
    )  # fmt: skip


def _waits_for(job: Job) -> str:
    parts = []
    if job.start_after and job.start_after > time.time():
        moment = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.start_after))
        parts.append(f"not before {moment}")
    if job.start_when:
        parts.append({"idle": "when idle", "night": "at night"}[job.start_when])
    if job.needs:
        parts.append("after " + ", ".join(map(str, job.needs)))
    if job.retries_left:
        parts.append(f"tried again up to {job.retries_left} times")
    if job.waits and job.state == "queued":
        parts.append(job.waits)
    return f" ({'; '.join(parts)})" if parts else ""


def _done(as_json: bool, values: dict[str, Any], sentence: str) -> None:
    print(json.dumps(values, ensure_ascii=False) if as_json else sentence)
