"""The door's commands about adapters: their options; the bodies are in `jobs`."""

from typing import Annotated

import typer

from studio.home import open_home
from ui.cli.options import FollowOption, HomeOption, JsonOption

app = typer.Typer()
ModelOption = Annotated[str, typer.Option(help="A folder, a hub id, or starter.")]
QuantizationOption = Annotated[str, typer.Option(help="none, or nf4 for a 4-bit base.")]
AdaptersOption = Annotated[
    list[str],
    typer.Option("--adapter", metavar="NAME[:WEIGHT]", help="In stack order; may be repeated."),
]


@app.command()
def bakeoff(
    name: Annotated[str, typer.Option(help="What to call it.")] = "bake-off",
    model: ModelOption = "starter",
    data: Annotated[str, typer.Option(help="A file, a folder, a hub id, or starter:<name>.")] = (
        "starter:pirate"
    ),
    methods: Annotated[str, typer.Option(help="Comma-separated; all when empty.")] = "",
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="For every run.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Every adapter answers it; may be repeated.")
    ] = None,
    follow: FollowOption = True,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Train several methods on the same data and budget, and compare what they cost and learn."""
    from ui.cli import adapters_commands

    fields = {"model.path": model, "data.path": data}
    chosen = [word.strip() for word in methods.split(",") if word.strip()]
    return adapters_commands.bakeoff(
        open_home(home), name, fields, assignments or [], methods=chosen, prompts=prompt or [],
        follow=follow, as_json=as_json,
    )  # fmt: skip
