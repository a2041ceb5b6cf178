"""Actions: how one is declared, and the one function that asks for it.

The signature of a function with `@action` is the record of its fields; its docstring is the help.
It returns a JSON value, a job that it has queued, or a `Request`, which is queued here: checked,
refused if a waiting job will create the same thing, named, submitted, the supervisor started.
"""

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from pydantic import create_model

from jobs import bakeoff, copy_and_extend_runs, suite_results, supervisor
from jobs.job_inputs import with_absolute_paths
from jobs.job_kinds import FILE_KINDS, request_of
from jobs.job_queue import JobStore
from jobs.job_record import OPEN, Job, summary
from jobs.job_table import free_name
from studio import offline
from studio.adapters.library import name_of
from studio.errors import InputError, QueueError, nearest
from studio.fields import Parameter, Record, knob, merge_values, parameters
from studio.home import Home
from studio.job_request import Request
from studio.names import cleaned
from studio.training.training_events import Event, Finished

Needs = Literal["store", "home", "any home", ""]
Watch = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """Something that a user can ask for; `needs` is what its function gets first."""

    name: str
    title: str
    help: str
    record: type[Record]
    run: Callable[..., Any]
    needs: Needs
    follow: bool
    here: bool
    starts: bool
    terminal: bool

    @property
    def fields(self) -> list[Parameter]:
        """The fields as forms and commands show them."""
        return parameters(self.record)

    def read(self, values: Mapping[str, Any]) -> Record:
        """Return the validated fields; keys may be dotted, a text may stand for a nested record.

        Raises:
            SpecError: Names every wrong field, the value got and the nearest known key.
        """
        plain = merge_values({}, dict(values))
        for name, info in self.record.model_fields.items():
            kind = info.annotation
            nested = isinstance(kind, type) and issubclass(kind, Record)
            if nested and isinstance(plain.get(name), str):
                plain[name] = {"path": plain[name]}
        return self.record.parse(plain)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """The answer of an action: a JSON value, or the jobs that it queued or changed, and facts.

    The facts stay beside the outcome of a followed job; `then` is what to ask, name and values,
    when the last of the jobs has succeeded.
    """

    facts: Any = None
    jobs: tuple[Job, ...] = ()
    then: tuple[str, dict[str, Any]] | None = None

    @property
    def value(self) -> Any:
        """The JSON value: the facts, or the summary of the last job where there are none."""
        return self.facts if self.facts or not self.jobs else summary(self.jobs[-1])


ACTIONS: dict[str, Action] = {}
OUTCOMES: dict[str, Callable[[JobStore, Job], dict[str, Any]]] = {
    "bakeoff": bakeoff.outcome, "preflight": copy_and_extend_runs.preflight_outcome,
    "suite": suite_results.outcome,
    "judge": lambda store, job: suite_results.judgement(store, job.id),
}  # fmt: skip


def action(
    name: str, *, title: str = "", follow: bool = False, here: bool = False, starts: bool = False,
    terminal: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:  # fmt: skip
    """Register a function as the action `name` (`merge`, `adapters.rename`).

    Args:
        name: The words of the command, joined by dots.
        title: Heading of the dialog; the last word of the name by default.
        follow: Commands wait for the job unless detached.
        here: Commands perform its request in their own process.
        starts: The supervisor is started afterwards.
        terminal: Only the command line offers it.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        hints = get_type_hints(function, include_extras=True)
        names = list(inspect.signature(function).parameters)
        needs: Needs = "store" if "store" in names[:1] else "home" if "home" in names[:1] else ""
        if needs == "home" and type(None) in get_args(hints["home"]):
            needs = "any home"
        fields = names[1:] if needs else names
        whole: Any = hints[fields[0]] if len(fields) == 1 else None
        given = isinstance(whole, type) and issubclass(whole, Record)
        made = {field: _field(function, field, hints[field]) for field in fields}
        record = whole if given else create_model(name.replace(".", "_"), __base__=Record, **made)

        def run(place: Any, asked: Record) -> Any:
            own = [asked] if given else [getattr(asked, field) for field in fields]
            return function(*([place] if needs else []), *own)

        label = title or name.rpartition(".")[2].replace("_", " ").capitalize()
        text = inspect.getdoc(function) or ""
        ACTIONS[name] = Action(
            name=name, title=label, help=text, record=record, run=run, needs=needs, follow=follow,
            here=here, starts=starts, terminal=terminal,
        )  # fmt: skip
        return function

    return register


def _field(function: Callable[..., Any], name: str, hint: Any) -> Any:
    default = inspect.signature(function).parameters[name].default
    return hint, ... if default is inspect.Parameter.empty else default


def field(help: str, **hints: Any) -> Any:
    """Return the text and hints of an action's field: `Annotated[str, field("New name.")]`."""
    return knob(..., help, **hints)


def request_action(name: str, request: type[Request], *, title: str = "") -> None:
    """Register the action whose fields are those of a request."""

    def same(asked: Request) -> Request:
        return asked

    same.__annotations__ = {"asked": request, "return": request}
    same.__doc__ = request.__doc__
    action(name, title=title, follow=True)(same)


def has_outcome(job: Job) -> bool:
    """Return True if an action's job made something to show, even if its gate was missed."""
    return job.state == "succeeded" or job.error_kind == "gate"


def outcome(store: JobStore, job: Job) -> dict[str, Any]:
    """Return what a job of any action made: what its command prints with `--json`."""
    if job.kind in OUTCOMES:
        return OUTCOMES[job.kind](store, job)
    request = request_of(job.kind)
    if request is None:
        return summary(job)
    return request.parse(job.spec).outcome(store.home, store.home.run(job.id), job.result)


def find(name: str) -> Action:
    """Return an action by name.

    Raises:
        QueueError: There is none.
    """
    if name not in ACTIONS:
        raise QueueError(f'Unknown action "{name}".{nearest(name, ACTIONS)}')
    return ACTIONS[name]


def ask(
    home: Home | None,
    name: str,
    values: Mapping[str, Any],
    *,
    store: JobStore | None = None,
    watch: Watch | None = None,
) -> Reply:
    """Validate the fields of an action and do it, or queue its job.

    Args:
        home: The home folder; None only for actions that need none.
        store: The open queue; opened for this call by default.
        watch: Perform work on files in this process, with this function called for each event.

    Raises:
        StudioError: It cannot be done; nothing was queued or changed.
    """
    wanted = find(name)
    asked = wanted.read(values)
    if home is not None:
        offline.apply(home)
    with ExitStack() as stack:

        def opened() -> JobStore:
            assert home is not None
            return store or stack.enter_context(closing(JobStore(home)))

        made = wanted.run(opened() if wanted.needs == "store" else home, asked)
        if isinstance(made, Request):
            if watch is not None and made.kind in FILE_KINDS:
                assert home is not None
                return Reply(facts=perform(home, made, watch))
            made = submit(opened(), made)
    if wanted.starts and home is not None:
        supervisor.ensure_running(home)
    if isinstance(made, Job):
        return Reply(jobs=(made,))
    return made if isinstance(made, Reply) else Reply(facts=made)


def submit(store: JobStore, request: Request, *, parent: int | None = None) -> Job:
    """Check the request of an action, refuse what collides, queue it and start the supervisor.

    Raises:
        StudioError: It cannot be performed, or a waiting job will create the same thing.
    """
    values = with_absolute_paths(request.model_dump(mode="json"), store.home)
    checked = type(request).parse(values).checked(store.home)
    refuse_collision(store, checked.target(store.home))
    values = checked.model_dump(mode="json")
    values["name"] = values["name"].strip() or _made_up(store, checked)
    job = store.submit(values, kind=request.kind, retries=request.retries, parent=parent)
    supervisor.ensure_running(store.home)
    return job


def perform(home: Home, request: Request, watch: Watch) -> dict[str, Any]:
    """Do the work of an action's request in this process and return its outcome."""
    checked, result = request.checked(home), dict[str, Any]()
    for event in checked.run(home, home.state, lambda: None):
        watch(event)
        if isinstance(event, Finished):
            result = {"adapter": event.adapter, **(event.facts or {})}
    return checked.outcome(home, home.state, result)


def refuse_collision(store: JobStore, target: Path | None) -> None:
    """Refuse an action whose file or folder a waiting job will create.

    Raises:
        QueueError: Names the job.
    """
    for job in store.list(OPEN) if target else ():
        kind = request_of(job.kind)
        if kind is not None and kind.parse(job.spec).target(store.home) == target:
            raise QueueError(
                f'"{job.name}" (number {job.id}) is {job.state} and will create {target}. Wait for '
                "it or choose another name."
            )


def check_writable(out: str, source: str = "") -> None:
    """Check that an action can write its file there, and that it is not the one it reads.

    Raises:
        InputError: It cannot, or it is.
    """
    target = Path(out).expanduser().absolute()
    if not os.access(target if target.exists() else target.parent, os.W_OK) or target.is_dir():
        raise InputError(f"{target} cannot be written: check the folder, or give another name.")
    if source and target == Path(source).expanduser().absolute():
        raise InputError(f"{target} is the file that is read: give another name to write.")


def write_file(out: str, content: str | bytes, *, replace: bool = False) -> str:
    """Write the file that the user of an action named and return its path.

    Raises:
        InputError: It exists and is not to be replaced, or cannot be written.
    """
    target = Path(out).expanduser().absolute()
    try:
        with target.open("wb" if replace else "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except FileExistsError:
        raise InputError(f"{target} exists already: give another name.") from None
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror}).") from None
    return str(target)


def _made_up(store: JobStore, request: Request) -> str:
    """Return a free name for a job on adapters; empty where the queue makes one up."""
    stack: Iterable[Any] = getattr(request, "stack", ())
    folders = [Path(item.name) for item in stack]
    adapter, source = getattr(request, "adapter", ""), getattr(request, "source", "")
    about = [str(getattr(request, "repo", "") or "")]
    if source:
        about = [adapter or Path(source).name]
    elif adapter or folders:
        about = [name_of(folder) for folder in folders or [Path(adapter)]]
    if not any(about):
        return ""
    base = cleaned(f"{request.kind.partition('_')[0]} {' + '.join(about)}")[:110]
    with store.database.reading() as db:
        return free_name(db, base)


def schema(wanted: Action) -> dict[str, Any]:
    """Return an action as pages draw its dialog."""
    return {
        "name": wanted.name, "title": wanted.title, "help": wanted.help,
        "kind": "job" if wanted.follow or wanted.here else "now",
        "fields": [shown_field(one) for one in wanted.fields],
    }  # fmt: skip


def shown_field(one: Parameter) -> dict[str, Any]:
    """Return an action's field as pages draw its control."""
    default = list(one.default) if isinstance(one.default, tuple) else one.default
    choices = [(value, one.labels.get(value, value)) for value in one.choices if value]
    whole = "integer" if one.kind == "number" and one.type is int else one.kind
    return {
        "name": one.path, "title": one.title, "help": one.help, "type": whole, "of": one.of,
        "default": default, "choices": choices,
        "advanced": one.advanced, "unit": one.unit, "required": one.required,
        "lines": one.lines, "when": one.when, "words": one.words, "heading": one.heading,
        "max_length": one.bounds.get("max_length"),
        "ge": one.bounds.get("ge", one.bounds.get("gt")),
        "le": one.bounds.get("le", one.bounds.get("lt")),
    }  # fmt: skip
