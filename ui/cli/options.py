"""The options and arguments that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer

from studio.chat.lanes import Sampling

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="The home folder; STUDIO_HOME when absent.", show_default=False),
]
JobArgument = Annotated[str, typer.Argument(metavar="ID", help="The job's number or name.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda:0 …")]
SystemOption = Annotated[str, typer.Option(help="System prompt.", show_default=False)]


def _sampling(name: str) -> Any:
    field = Sampling.model_fields[name]
    text = f"{field.description} Default: {field.default}."
    return typer.Option(help=text, show_default=False)


MaxNewTokensOption = Annotated[int | None, _sampling("max_new_tokens")]
TemperatureOption = Annotated[float | None, _sampling("temperature")]
SeedOption = Annotated[int | None, _sampling("seed")]
