"""The door's commands of Compare: their options; the bodies are in `jobs`."""

from pathlib import Path
from typing import Annotated

import typer

from studio.chat.lanes import Sampling
from studio.home import open_home
from ui.cli.options import FollowOption, HomeOption, JsonOption

app = typer.Typer()
SAMPLING = Sampling()  # the defaults
LanesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lane", metavar="MODEL[~ADAPTER:WEIGHT+…]",
        help="Who answers, as in starter~pirate:1; RUN@STEP is a checkpoint; may be repeated.",
    ),
]  # fmt: skip
OutOption = Annotated[
    Path | None, typer.Option(help="Write a .csv, .jsonl or .html file.", show_default=False)
]


@app.command()
def compare(
    prompt: Annotated[str, typer.Option(help="What every lane is asked.")],
    lane: LanesOption = None,
    recipe: Annotated[
        list[str] | None, typer.Option(help="A lane by the name of a recipe; may be repeated.")
    ] = None,
    system: Annotated[str, typer.Option(help="The system prompt.", show_default=False)] = "",
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = SAMPLING.max_new_tokens,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = (
        SAMPLING.temperature
    ),
    seed: Annotated[int, typer.Option(help="Same seed and prompt, same answer.")] = SAMPLING.seed,
    logprobs: Annotated[
        int, typer.Option(help="Alternatives told for each token; -1 tells nothing.")
    ] = -1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0 …")] = "auto",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Ask several lanes the same and print their answers beside each other."""
    from ui.cli import compare_commands

    sampling = {
        "max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed,
        "logprobs": logprobs,
    }  # fmt: skip
    return compare_commands.compare(
        open_home(home), lane or [], prompt, recipes=recipe or [], system=system,
        sampling=sampling, device=device, as_json=as_json,
    )  # fmt: skip


@app.command()
def suite(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="Prompts: one a line, or jsonl.", show_default=False),
    ] = None,
    lane: LanesOption = None,
    name: Annotated[str, typer.Option(help="What to call it.", show_default=False)] = "",
    show: Annotated[
        str, typer.Option(metavar="ID", help="Show this one again.", show_default=False)
    ] = "",
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = SAMPLING.max_new_tokens,
    out: OutOption = None,
    follow: FollowOption = True,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Ask a suite of prompts of several lanes, as a job, and print its table; without a file list
    the suites."""
    from ui.cli import compare_commands

    return compare_commands.suite(
        open_home(home), file, lane or [], name=name, show=show,
        sampling={"max_new_tokens": max_new_tokens}, out=out, follow=follow,
        as_json=as_json,
    )  # fmt: skip


@app.command()
def leaderboard(
    blind: Annotated[bool, typer.Option("--blind", help="Count blind votes only.")] = False,
    out: OutOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rank the lanes that were voted on."""
    from ui.cli import compare_commands

    compare_commands.leaderboard(open_home(home), blind=blind, out=out, as_json=as_json)


@app.command()
def vote(
    conversation: Annotated[str, typer.Argument(metavar="ID", help="The conversation.")],
    turn: Annotated[int, typer.Argument(help="Which turn of it, from 1.", min=1)],
    verdict: Annotated[str, typer.Argument(help="A to F, tie, bad, or none to take it back.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say which answer of a kept conversation is the better one."""
    from ui.cli import compare_commands

    compare_commands.vote(open_home(home), conversation, turn, verdict, as_json=as_json)


@app.command()
def conversations(
    search: Annotated[str, typer.Option(help="A part of what was said.", show_default=False)] = "",
    show: Annotated[
        str, typer.Option(metavar="ID", help="Print this one.", show_default=False)
    ] = "",
    delete: Annotated[
        str, typer.Option(metavar="ID", help="Forget this one.", show_default=False)
    ] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what was asked on the Compare page, the newest first."""
    from ui.cli import compare_commands

    compare_commands.conversations(
        open_home(home), search=search, show=show, delete=delete, as_json=as_json
    )


@app.command()
def recipes(
    save: Annotated[
        str, typer.Option(metavar="NAME", help="Keep the lane's mix.", show_default=False)
    ] = "",
    lane: Annotated[
        str, typer.Option(metavar="MODEL~ADAPTER:WEIGHT+…", help="The mix.", show_default=False)
    ] = "",
    delete: Annotated[
        str, typer.Option(metavar="NAME", help="Forget this one.", show_default=False)
    ] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List, save or forget mixes; `studio mix` and `studio merge` make them permanent."""
    from ui.cli import compare_commands

    compare_commands.recipes(open_home(home), save=save, lane=lane, delete=delete, as_json=as_json)


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
