"""The door's commands about the home folder: their options; the bodies are in `jobs`."""

from pathlib import Path
from typing import Annotated

import typer

from studio.home import open_home
from ui.cli.options import HomeOption, JsonOption

app = typer.Typer()


@app.command()
def storage(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show what uses space in the home, and what could go."""
    from ui.cli import home_commands

    home_commands.show_storage(open_home(home), as_json=as_json)


@app.command()
def clean(
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without, only show it.")] = False,
    keep_checkpoints: Annotated[
        int | None,
        typer.Option(help="From now on: so many of a finished run.", show_default=False),
    ] = None,
    keep_days: Annotated[
        int | None,
        typer.Option(help="From now on: none of older ones; 0 for ever.", show_default=False),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show, and with --yes remove, spare checkpoints and what nothing knows any more."""
    from ui.cli import home_commands

    home_commands.clean(
        open_home(home), keep_checkpoints=keep_checkpoints, keep_days=keep_days, sure=yes,
        as_json=as_json,
    )  # fmt: skip


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="A new .tar file outside the home.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the whole home into one file, while everything runs."""
    from ui.cli import home_commands

    home_commands.backup(open_home(home), file, as_json=as_json)


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A backup, or a copy of the database.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a backup back; what was there before is moved aside."""
    from ui.cli import home_commands

    home_commands.restore(open_home(home), file, as_json=as_json)
