"""The door's commands about the queue and the home: their options; the bodies are in `jobs`."""

from typing import Annotated, Any

import typer

from studio.home import open_home
from ui.cli.options import HomeOption, JobArgument, JsonOption, RetriesOption, SetOption

app = typer.Typer()
JobOrSweep = Annotated[str, typer.Argument(metavar="[ID]", help="The job's number or name.")]
SweepOption = Annotated[str, typer.Option(help="Every run of this sweep.", show_default=False)]
NameOption = Annotated[str, typer.Option(help="What to call it.", show_default=False)]


@app.command()
def queue(
    hold: Annotated[bool, typer.Option("--hold", help="Let nothing start any more.")] = False,
    release: Annotated[bool, typer.Option("--release", help="Let jobs start again.")] = False,
    on_error: Annotated[
        str, typer.Option(help="continue, or stop: hold it all.", show_default=False)
    ] = "",
    limit: Annotated[int, typer.Option(help="Show at most so many.", min=1)] = 100,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what runs and what waits, in the order it will run."""
    from ui.cli import queue_commands

    queue_commands.queue(
        open_home(home), hold=hold, release=release, on_error=on_error, limit=limit,
        as_json=as_json,
    )  # fmt: skip


@app.command()
def move(
    job: JobArgument,
    before: Annotated[
        str, typer.Option(metavar="ID", help="Right before this one.", show_default=False)
    ] = "",
    first: Annotated[bool, typer.Option("--first", help="It runs next.")] = False,
    last: Annotated[bool, typer.Option("--last", help="It runs last.")] = False,
    by: Annotated[
        int, typer.Option(help="So many places; negative is earlier.", show_default=False)
    ] = 0,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change a waiting job's place in the queue."""
    from ui.cli import queue_commands

    queue_commands.move(
        open_home(home), job, before=before, first=first, last=last, by=by, as_json=as_json
    )


@app.command()
def hold(
    job: JobOrSweep = "", sweep: SweepOption = "", home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Hold a job, or a whole sweep, back; what runs saves and frees its device."""
    from ui.cli import queue_commands

    queue_commands.hold(open_home(home), job, sweep, "hold", as_json=as_json)


@app.command()
def release(
    job: JobOrSweep = "", sweep: SweepOption = "", home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Let held jobs start again."""
    from ui.cli import queue_commands

    queue_commands.hold(open_home(home), job, sweep, "release", as_json=as_json)


@app.command()
def delete(job: JobArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Remove a job that does not run, with its folder."""
    from ui.cli import queue_commands

    queue_commands.delete(open_home(home), job, as_json=as_json)


@app.command()
def duplicate(
    job: JobArgument,
    assignments: SetOption = None,
    name: NameOption = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Queue a copy of a job with some fields changed."""
    from ui.cli import queue_commands

    queue_commands.duplicate(open_home(home), job, assignments or [], name, as_json=as_json)


@app.command()
def sweep(
    name: Annotated[str, typer.Argument(help="What to call the group.")],
    over: Annotated[
        list[str],
        typer.Option(metavar="FIELD=A,B,C", help="The values of a field; may be repeated."),
    ],
    random: Annotated[int, typer.Option(help="Draw so many combinations; 0 takes all.", min=0)] = 0,
    like: Annotated[
        str, typer.Option(metavar="ID", help="Start from this run's spec.", show_default=False)
    ] = "",
    model: Annotated[str, typer.Option(help="As in train.", show_default=False)] = "",
    data: Annotated[str, typer.Option(help="As in train.", show_default=False)] = "",
    method: Annotated[str, typer.Option(help="As in train.", show_default=False)] = "",
    assignments: SetOption = None,
    on_error: Annotated[str, typer.Option(help="continue, or stop: hold the rest.")] = "continue",
    retries: RetriesOption = 0,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Queue one run for each combination of some values, as a group."""
    from studio.fields import parse_assignment
    from ui.cli import queue_commands

    short = {"model.path": model, "data.path": data, "method.name": method}
    given: dict[str, Any] = {field: value for field, value in short.items() if value}
    given |= dict(map(parse_assignment, assignments or []))
    queue_commands.sweep(
        open_home(home), name, given=given, base=like, over=over, count=random,
        on_error=on_error, retries=retries or 0, as_json=as_json,
    )  # fmt: skip


@app.command()
def schedule(
    job: JobArgument,
    at: Annotated[
        str, typer.Option(help="02:30, +2h, or 2027-01-31 02:30.", show_default=False)
    ] = "",
    when: Annotated[str, typer.Option(help="idle, night, or any.", show_default=False)] = "",
    needs: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Only after this job succeeded; none forgets it."),
    ] = None,
    retries: RetriesOption = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Without room for the memory it will need.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Choose when a waiting job may start; without a wish, at once."""
    from ui.cli import queue_commands

    if anyway:
        queue_commands.start_anyway(open_home(home), job, as_json=as_json)
        return
    queue_commands.schedule(
        open_home(home), job, at=at, when=when, needs=needs, retries=retries, as_json=as_json
    )


@app.command()
def extend(
    job: JobArgument,
    epochs: Annotated[float, typer.Option(help="More passes over the data.")] = 0,
    steps: Annotated[int, typer.Option(help="More steps.")] = 0,
    name: NameOption = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a finished run longer, from its newest checkpoint, as a new run."""
    from ui.cli import queue_commands

    queue_commands.extend(
        open_home(home), job, epochs=epochs, steps=steps, name=name, as_json=as_json
    )


@app.command()
def save(job: JobArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Let a running training save a checkpoint now."""
    from ui.cli import queue_commands

    queue_commands.request(open_home(home), job, "save", as_json=as_json)


@app.command()
def sample(job: JobArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Let a running training answer its fixed prompts now."""
    from ui.cli import queue_commands

    queue_commands.request(open_home(home), job, "sample", as_json=as_json)


@app.command()
def note(
    job: JobArgument,
    text: Annotated[str | None, typer.Argument(help="The note.", show_default=False)] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Add a tag; may be repeated.")] = None,
    untag: Annotated[list[str] | None, typer.Option(help="Remove a tag.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a note on a job, and its tags."""
    from ui.cli import queue_commands

    queue_commands.note(open_home(home), job, text, tag or [], untag=untag or [], as_json=as_json)


@app.command()
def webhook(
    url: Annotated[str, typer.Argument(help="An http or https address.", show_default=False)] = "",
    off: Annotated[bool, typer.Option("--off", help="Tell nobody any more.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell an address whenever a job ends; it is kept where only you can read it."""
    from ui.cli import queue_commands

    queue_commands.tell(open_home(home), url, off=off, as_json=as_json)
