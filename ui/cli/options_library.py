"""The door's commands about the library: `studio adapters …`; the bodies are in `jobs`."""

from typing import Annotated

import typer

from studio.home import open_home
from ui.cli.options import HomeOption, JsonOption

app = typer.Typer(
    invoke_without_command=True, help="List the adapters, or name, tag, delete and restore them."
)
AdapterArgument = Annotated[
    str, typer.Argument(metavar="ADAPTER", help="Its name, its run's number, or its id.")
]


@app.callback()
def adapters(context: typer.Context, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the adapters: trained here, imported, mixed."""
    if context.invoked_subcommand is None:
        from ui.cli.listing import print_adapters

        print_adapters(open_home(home), as_json=as_json)


@app.command()
def show(adapter: AdapterArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show an adapter's passport."""
    from ui.cli import library_commands

    library_commands.show(open_home(home), adapter, as_json=as_json)


@app.command()
def rename(
    adapter: AdapterArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new name.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give an adapter another name."""
    from ui.cli import library_commands

    library_commands.rename(open_home(home), adapter, name, as_json=as_json)


@app.command()
def tag(
    adapter: AdapterArgument,
    tags: Annotated[
        list[str] | None, typer.Argument(metavar="[TAG]...", help="All it should have.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set an adapter's tags; none takes them away."""
    from ui.cli import library_commands

    library_commands.tag(open_home(home), adapter, tags or [], as_json=as_json)


@app.command()
def delete(adapter: AdapterArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Move an adapter to the trash, where it stays for 30 days."""
    from ui.cli import library_commands

    library_commands.delete(open_home(home), adapter, as_json=as_json)


@app.command()
def undo(
    adapter: Annotated[
        str, typer.Argument(metavar="[ADAPTER]", help="The last deleted one when absent.")
    ] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Restore a deleted adapter."""
    from ui.cli import library_commands

    library_commands.undo(open_home(home), adapter, as_json=as_json)


@app.command()
def trash(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the deleted adapters that can be restored."""
    from ui.cli import library_commands

    library_commands.trash(open_home(home), as_json=as_json)


@app.command()
def picture(
    adapter: AdapterArgument,
    model: Annotated[str, typer.Option(help="Its base, where the passport does not say.")] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Measure what an adapter changed: relative norm and effective rank per layer and module."""
    from ui.cli import library_commands

    return library_commands.picture(open_home(home), adapter, model=model, as_json=as_json)
