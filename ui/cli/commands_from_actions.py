"""Commands generated from actions: options from the fields, one way to ask, follow and print.

A job is followed until it ends: a progress bar with the loss, on standard error, or a line every
few seconds without a terminal. That only reads the database, so ending it does nothing to the job.
"""

import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import closing
from inspect import Parameter as Argument
from inspect import Signature
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.actions import ACTIONS, Action, Reply, ask, outcome
from jobs.actions.registry import has_outcome
from jobs.job_queue import JobStore
from jobs.job_record import Job, seconds_left, summary
from studio.errors import InputError
from studio.fields import Parameter
from studio.home import Home, open_home
from studio.training.training_events import Event, Working
from ui.cli.print_answers import CODES, SENTENCES
from ui.cli.print_runs import ending, exit_code
from ui.cli.terminal_tables import plain
from ui.language import say

SETTLE_SECONDS = 15.0
POLL_SECONDS, LINE_SECONDS = 0.1, 5.0  # between looks at a job, between lines about it
HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="Home folder; STUDIO_HOME by default.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
FollowOption = Annotated[
    bool, typer.Option("--follow/--detach", help="Wait for the end of the job, or only queue it.")
]


def add_commands(app: typer.Typer, groups: dict[str, str]) -> None:
    """Add a command for every action; `groups` are the helps of groups of commands by name."""
    made = {
        name: typer.Typer(
            help=say(text), invoke_without_command=name in ACTIONS, no_args_is_help=False
        )
        for name, text in groups.items()
    }
    for name, action in ACTIONS.items():
        group, dot, word = name.rpartition(".")
        if name in made:
            made[name].callback()(command(action, only_alone=True))
        else:
            (made[group] if dot else app).command(word)(command(action))
    for name, one in made.items():
        app.add_typer(one, name=name)


def command(action: Action, *, only_alone: bool = False) -> Callable[..., int]:
    """Return the command of an action: the function that Typer reads its options from."""
    fields = {one.path.replace(".", "__"): one for one in action.fields if one.flag != "-"}
    of = {one.path: one.of for one in fields.values()}

    def run(context: typer.Context, **given: Any) -> int:
        before = context.obj or {}  # what stands before a subcommand
        home = given.pop("home", None) or before.get("home")
        as_json = given.pop("as_json", False) or before.get("as_json", False)
        follow = given.pop("follow", True)
        values = {
            fields[name].path: value
            for name, value in given.items()
            if getattr(context.get_parameter_source(name), "name", "") != "DEFAULT"
        }
        if only_alone and context.invoked_subcommand is not None:
            if values:
                word = context.invoked_subcommand
                raise typer.BadParameter(
                    f'"{next(iter(values))}" stands before "{word}", where it has no effect'
                )
            context.obj = {"home": home, "as_json": as_json}
            return 0
        for name, value in values.items():
            if of.get(name) in ("file", "folder") and value:
                values[name] = str(Path(os.path.expanduser(value)).absolute())
            if of.get(name) == "secret" and value == "-":
                values[name] = _unseen(name)
        return perform(action, values, home, follow=follow, as_json=as_json)

    shared = {"home": (HomeOption, None), "as_json": (JsonOption, False)}
    if action.follow:
        shared = {"follow": (FollowOption, True), **shared}
    own = {name: (_annotation(one), _default(one)) for name, one in fields.items()}
    arguments = {name: pair for name, pair in own.items() if fields[name].positional}
    everything = arguments | own | shared
    run.__name__ = action.name.rpartition(".")[2]
    run.__doc__ = say(action.help)
    run.__annotations__ = {"context": typer.Context, "return": int} | {
        name: annotation for name, (annotation, _) in everything.items()
    }
    run.__signature__ = Signature(  # type: ignore[attr-defined]
        [Argument("context", Argument.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
        + [
            Argument(name, Argument.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in everything.items()
        ]
    )
    return run


def _annotation(one: Parameter) -> Any:
    kind: Any = one.type
    if one.kind in ("list", "stack"):
        kind = list[one.type]  # type: ignore[name-defined]
    if one.default is None or one.kind in ("list", "stack"):
        kind = kind | None
    text = say(one.help).replace("[", "(").replace("]", ")")
    if one.choices and not all(choice in text for choice in one.choices):
        text = f"{text.rstrip('.')} ({', '.join(one.choices)})."
    hidden = one.default in ("", None, ())
    if one.positional:
        return Annotated[
            kind,
            typer.Argument(
                metavar=one.metavar or one.path.upper(), help=text, show_default=not hidden,
            ),
        ]  # fmt: skip
    return Annotated[
        kind,
        typer.Option(one.flag, metavar=one.metavar or None, help=text, show_default=not hidden),
    ]


def _default(one: Parameter) -> Any:
    required = one.required or (one.positional and not one.metavar.startswith("["))
    if required:
        return ...
    return None if one.kind in ("list", "stack") else one.default


def perform(
    action: Action, values: dict[str, Any], where: Path | None, *, follow: bool, as_json: bool
) -> int:
    """Execute the command of an action: ask, follow the job, print; return the exit code."""
    home = _home(where, action)
    if action.needs != "store" and not action.follow:
        watch = (lambda _: None) if as_json else _progress
        return show(action.name, ask(home, action.name, values, watch=watch).value, as_json)
    home = home or open_home(where)
    with closing(JobStore(home)) as store:
        answer = ask(home, action.name, values, store=store)
        if not (action.follow and answer.jobs):
            return show(action.name, _settled(store, answer).value, as_json)
        return _followed(store, action.name, answer, follow=follow, as_json=as_json)


def _settled(store: JobStore, answer: Reply) -> Reply:
    """Wait briefly for a job that is stopping, so that its new state is printed."""
    if len(answer.jobs) != 1 or answer.jobs[0].state != "stopping":
        return answer
    job, deadline = answer.jobs[0], time.monotonic() + SETTLE_SECONDS
    while job.state == "stopping" and time.monotonic() < deadline:
        time.sleep(0.05)
        job = store.get(job.id)
    return Reply(jobs=(job,))


def _followed(store: JobStore, name: str, answer: Reply, *, follow: bool, as_json: bool) -> int:
    job = answer.jobs[-1]
    if not follow or job.state == "paused":
        word = "Held" if job.state == "paused" else "Queued"
        text = f'{word} "{job.name}" as number {job.id}.'
        if answer.then:
            again, given = answer.then
            words = " ".join(f"--{key} {shlex.quote(one)}" for key, one in given.items() if one)
            text += f" Its result: `studio {again} {words}`."
        print(json.dumps(answer.value, ensure_ascii=False) if as_json else text)
        return 0
    try:
        for one in answer.jobs:
            job = follow_to_the_end(store, one)
    except KeyboardInterrupt:
        print(
            f'\n"{job.name}" continues. Follow it with `studio logs {job.id}`, end it with '
            f"`studio cancel {job.id}`.", file=sys.stderr,
        )  # fmt: skip
        if as_json:
            print(json.dumps(summary(store.get(job.id)), ensure_ascii=False))
        return 130
    if not has_outcome(job):
        return ending(job, as_json)
    if job.state != "succeeded":
        found = outcome(store, job)
        if as_json:
            found |= {"error": summary(job)["error"]}
        show(name, found, as_json)
        return exit_code(job) if as_json else ending(job, as_json)
    if answer.then:
        return show(answer.then[0], ask(store.home, *answer.then, store=store).value, as_json)
    return show(name, (answer.facts or {}) | outcome(store, job), as_json)


def show(name: str, value: Any, as_json: bool) -> int:
    """Print what a command's action answered and return the exit code."""
    if as_json:
        print(json.dumps(value, ensure_ascii=name.startswith("data.")))
    else:
        SENTENCES[name](value) if name in SENTENCES else plain(value)
    return CODES[name](value) if name in CODES else 0


def _home(where: Path | None, action: Action) -> Home | None:
    """Open the home; an action that only may use one gets None where it cannot be opened."""
    try:
        return open_home(where) if action.needs or action.here else None
    except InputError:
        if action.needs == "any home":
            return None
        raise


def _unseen(name: str) -> str:
    """Ask for a secret without showing it, or read it from a pipe."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().strip()
    from getpass import getpass

    return getpass(f"{name.capitalize()}: ").strip()


def _progress(event: Event) -> None:
    if isinstance(event, Working) and sys.stderr.isatty():
        share = event.step / max(1, event.total_steps)
        print(f"\r{share:5.0%}  {event.text:30}", end="\n" if share >= 1 else "", file=sys.stderr)


# -- following a job -------------------------------------------------------------------------------


def follow_to_the_end(store: JobStore, job: Job) -> Job:
    """Show progress of a command's job until it ends or waits; return its last state."""
    if sys.stderr.isatty():
        return _with_bar(store, job)
    printed_at, printed = 0.0, ""
    while True:
        job = store.get(job.id)
        if _over(job):
            return job
        line = _progress_line(job)
        if line != printed and time.monotonic() - printed_at > LINE_SECONDS:
            printed_at, printed = time.monotonic(), line
            print(line, file=sys.stderr, flush=True)
        time.sleep(POLL_SECONDS)


def _with_bar(store: JobStore, job: Job) -> Job:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}", markup=False),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(job.name, total=None, facts="")
        while not _over(job):
            job = store.get(job.id)
            text = job.phase if job.state == "running" else job.state
            progress.update(
                task, total=job.total_steps, completed=job.step, facts=_progress_facts(job),
                description=f"{job.name}  {text}",
            )  # fmt: skip
            time.sleep(POLL_SECONDS)
    return job


def _over(job: Job) -> bool:
    queued_again = job.state == "interrupted" and job.error_kind is None
    return not job.active and job.state != "queued" and not queued_again


def _progress_line(job: Job) -> str:
    if job.state != "running":
        return f"{job.name}: {job.state}"
    if job.total_steps is None:
        return f"{job.name}: {job.phase}"
    return f"{job.name}: step {job.step} of {job.total_steps}  {_progress_facts(job)}"


def _progress_facts(job: Job) -> str:
    loss = job.result.get("last_loss")
    left, reward = seconds_left(job), job.result.get("eval_reward")
    parts = [] if loss is None else [f"loss {loss:.4f}"]
    if reward is not None:
        parts.append(f"held-out reward {reward:.3f}")
    if left is not None:
        parts.append(f"{int(left // 60)}:{int(left % 60):02} left")
    return "  ".join(parts)
