"""The door's commands for training elsewhere: pack a run, take it back, name a cluster."""

from pathlib import Path
from typing import Annotated

import typer

from studio.home import open_home
from ui.cli.options import FollowOption, HomeOption, JsonOption

app = typer.Typer()


@app.command()
def pack(
    spec: Annotated[
        Path | None, typer.Argument(metavar="[SPEC.yaml]", help="A spec file.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="The new folder.")] = Path("packed-run"),
    model: Annotated[str, typer.Option(help="A folder, a hub id, or starter.")] = "",
    data: Annotated[str, typer.Option(help="A file, a folder, a hub id, or starter:<name>.")] = "",
    method: Annotated[str, typer.Option(help="One of `studio methods`.")] = "",
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="As in method.r=16; may be repeated."),
    ] = None,
    with_model: Annotated[
        bool, typer.Option("--with-model", help="Put a copy of the model folder in.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Write a run as a folder that trains elsewhere: accelerate and Slurm scripts included."""
    from ui.cli import cluster_commands

    given = {"model.path": model, "data.path": data, "method.name": method}
    return cluster_commands.pack(
        open_home(home), spec, {key: value for key, value in given.items() if value},
        assignments or [], out=out, with_model=with_model, as_json=as_json,
    )  # fmt: skip


@app.command()
def unpack(
    folder: Annotated[Path, typer.Argument(help="A packed folder that was trained elsewhere.")],
    name: Annotated[str, typer.Option(help="What to call the run here.")] = "",
    follow: FollowOption = True,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Take a run that was trained elsewhere: its curves, samples and adapter."""
    from ui.cli import cluster_commands

    return cluster_commands.unpack(
        open_home(home), folder, name=name, follow=follow, as_json=as_json
    )


@app.command()
def cluster(
    address: Annotated[
        str,
        typer.Argument(help="Its dashboard, as in http://10.0.0.5:8265.", show_default=False),
    ] = "",
    storage: Annotated[
        str,
        typer.Option(help="What both sides write: a shared folder, s3://…, gs://…"),
    ] = "",
    off: Annotated[bool, typer.Option("--off", help="Train on no cluster any more.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Name the Ray cluster that runs with train.device=ray train on, or show it."""
    from ui.cli import cluster_commands

    cluster_commands.cluster(open_home(home), address, storage, off=off, as_json=as_json)
