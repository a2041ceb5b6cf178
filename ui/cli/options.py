"""The options and arguments that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer

from studio.chat.lanes import Sampling

FollowOption = Annotated[
    bool, typer.Option("--follow/--detach", help="Wait for its end, or only queue it.")
]
HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="The home folder; STUDIO_HOME when absent.", show_default=False),
]
JobArgument = Annotated[str, typer.Argument(metavar="ID", help="The job's number or name.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
RetriesOption = Annotated[
    int | None,
    typer.Option(
        help="Try again so often after a failure that may pass, such as too little memory.",
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="As in method.r=16; may be repeated."),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda:0 …")]
SystemOption = Annotated[str, typer.Option(help="System prompt.", show_default=False)]


def _sampling(name: str) -> Any:
    field = Sampling.model_fields[name]
    text = f"{field.description} Default: {field.default}."
    return typer.Option(help=text, show_default=False)


MaxNewTokensOption = Annotated[int | None, _sampling("max_new_tokens")]
TemperatureOption = Annotated[float | None, _sampling("temperature")]
SeedOption = Annotated[int | None, _sampling("seed")]
