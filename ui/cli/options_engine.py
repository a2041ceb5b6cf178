"""The door's commands about how a run will go: preflight and presets; the bodies are in `jobs`."""

from pathlib import Path
from typing import Annotated

import typer

from studio.home import open_home
from ui.cli.options import HomeOption, JsonOption, SetOption

app = typer.Typer()
presets_app = typer.Typer(help="Named settings: ours and your own.")


@app.command()
def preflight(
    spec: Annotated[
        Path | None, typer.Argument(metavar="[SPEC.yaml]", help="A spec file.", show_default=False)
    ] = None,
    model: Annotated[str, typer.Option(help="A folder, a hub id, or starter.")] = "",
    data: Annotated[str, typer.Option(help="A file, a folder, or starter:<name>.")] = "",
    method: Annotated[str, typer.Option(help="One of `studio methods`.")] = "",
    assignments: SetOption = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Take two real steps on the longest batch.")
    ] = False,
    fit: Annotated[
        bool, typer.Option("--fit", help="Change what must change for it to fit.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Say what memory and time a run will take, by part, before it starts."""
    from jobs import preflight as body

    short = {"model.path": model, "data.path": data, "method.name": method}
    given = {field: value for field, value in short.items() if value}
    return body.preflight(
        open_home(home), spec, given, assignments or [], measure=measure, fit=fit, as_json=as_json
    )


@app.command()
def refit(
    job: Annotated[str, typer.Argument(metavar="ID", help="The run's number or name.")],
    remedy: Annotated[
        str, typer.Option(help="What to change; without it the first that keeps the result.")
    ] = "",
    listing: Annotated[
        bool, typer.Option("--list", help="Only say what could be changed.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Queue a run that ran out of memory again so that it fits, with the same result if it can."""
    from jobs import preflight as body

    where = open_home(home)
    return body.refit(where, job, remedy=remedy, listing=listing, as_json=as_json)


@presets_app.command("list")
def list_(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the presets and what each sets."""
    from jobs import preflight as body

    body.list_presets(open_home(home), as_json=as_json)


@presets_app.command()
def save(
    name: Annotated[str, typer.Argument(help="What to call it.")],
    assignments: SetOption = None,
    home: HomeOption = None,
) -> None:
    """Keep settings under a name; model and data are not kept."""
    from studio.fields import parse_assignment
    from studio.presets import save_preset
    from studio.spec import RunSpec

    spec = RunSpec().with_values(dict(map(parse_assignment, assignments or [])))
    save_preset(open_home(home), name, spec)


@presets_app.command()
def forget(
    name: Annotated[str, typer.Argument(help="One of your own.")], home: HomeOption = None
) -> None:
    """Drop one of your own presets."""
    from studio.presets import delete_preset

    delete_preset(open_home(home), name)
