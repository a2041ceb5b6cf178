"""The door's commands of Compare: their options; the bodies are in `jobs`."""

from typing import Annotated

import typer

from studio.home import open_home
from ui.cli.options import HomeOption, JsonOption

app = typer.Typer()


@app.command()
def endpoint(
    hours: Annotated[
        float, typer.Option(min=0.01, max=8760, help="It leaves when nobody asked for so long.")
    ] = 0.5,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Print the address and key at which OpenAI clients on this machine find every lane by name."""
    from ui.cli import chat_commands

    return chat_commands.endpoint(open_home(home), hours=hours, as_json=as_json)
