"""The commands `studio chat` (an answer or a conversation in the terminal) and `studio endpoint`.

`chat` loads the model in its own process and needs no page and no chat host.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.chat.lanes import ChatRequest, Delta, Lane, Message
from studio.errors import ChatError
from studio.home import open_home
from studio.stack import StackItem
from ui.cli.options import (
    DeviceOption,
    HomeOption,
    JsonOption,
    MaxNewTokensOption,
    SeedOption,
    SystemOption,
    TemperatureOption,
)

if TYPE_CHECKING:
    from studio.chat.residents import ResidentModels

app = typer.Typer()
EXAMPLE = """\
from openai import OpenAI

client = OpenAI(base_url="{url}", api_key="{key}")
answer = client.chat.completions.create(
    model="{model}", messages=[{{"role": "user", "content": "Hello"}}]
)
print(answer.choices[0].message.content)"""
HELP = "/new starts over, /system TEXT sets the system prompt, /exit or Ctrl-D quits."


@app.command()
def chat(
    model: Annotated[
        str, typer.Option(help="Folder, hub id, or starter.", show_default=False)
    ] = "",
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[:WEIGHT]", help="Adapter to stack; repeat for several."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Answer this prompt and exit.", show_default=False)
    ] = None,
    system: SystemOption = "",
    max_new_tokens: MaxNewTokensOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Chat with a model and any adapters stacked on it."""
    from transformers.utils import logging

    from studio.adapters.library import describe, resolve
    from studio.chat.residents import ResidentModels

    if as_json and prompt is None:
        raise ChatError("--json prints one answer: give the question with --prompt.")
    logging.set_verbosity_error()
    opened = open_home(home)
    stack = [StackItem.read(text) for text in adapter or []]
    base = describe(resolve(opened, stack[0].name)).base if stack and not model else ""
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    settings = {
        "model": model or base or "starter", "sampling": sampling,
        "stack": [item.model_dump() for item in stack],
    }  # fmt: skip

    def lane_for(system: str, messages: Sequence[Message]) -> Lane:
        values = {"system": system, "messages": [message.model_dump() for message in messages]}
        return ChatRequest.parse({"lanes": [settings | values]}).lanes[0]

    residents = ResidentModels(opened, device=device)
    if prompt is None:
        return _converse(residents, lane_for, system)
    lane = lane_for(system, [Message(role="user", content=prompt)])
    text, end = _answer(residents, lane, quiet=as_json)
    if as_json:
        print(json.dumps(answer_json(text, end), ensure_ascii=False))
    return 0


def answer_json(text: str, end: Delta) -> dict[str, Any]:
    """Return what `studio chat --json` prints."""
    active = end.active.as_dict() if end.active else None
    return {
        "text": text,
        "tokens": end.stats.tokens,
        "tokens_per_second": round(end.stats.tokens_per_second, 2),
        "prompt_tokens": end.stats.prompt_tokens,
        "first_token_seconds": round(end.stats.first_token_seconds, 4),
        "reason": end.reason,
        "active": active,
    }


def _answer(residents: ResidentModels, lane: Lane, *, quiet: bool) -> tuple[str, Delta]:
    text = ""
    for delta in residents.stream([lane]):
        if delta.note and not quiet:
            print(delta.note, file=sys.stderr, flush=True)
        if delta.error is not None:
            raise delta.error
        text += delta.text
        if not quiet:
            print(delta.text, end="", flush=True)
        if delta.done:
            if not quiet:
                print()
            return text, delta
    raise AssertionError("a lane always ends with a done delta")


def _converse(
    residents: ResidentModels, lane_for: Callable[[str, Sequence[Message]], Lane], system: str
) -> int:
    print(HELP, file=sys.stderr)
    messages: list[Message] = []
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return 0
        command, _, rest = line.partition(" ")
        if command in ("/exit", "/quit"):
            return 0
        if command == "/new":
            messages = []
        elif command == "/system":
            system = rest
        elif command == "/help":
            print(HELP, file=sys.stderr)
        elif line:
            messages.append(Message(role="user", content=line))
            messages = _turn(residents, lane_for(system, messages), messages)


def _turn(residents: ResidentModels, lane: Lane, messages: list[Message]) -> list[Message]:
    """Answer the last message, or drop it if that fails."""
    text = ""
    try:
        for delta in residents.stream([lane]):
            if delta.note:
                print(f"({delta.note})", file=sys.stderr, flush=True)
            if delta.error is not None:
                print(delta.error.text, file=sys.stderr)
                return messages[:-1]
            text += delta.text
            print(delta.text, end="", flush=True)
    except KeyboardInterrupt:
        print(" …", end="")
    print()
    return [*messages, Message(role="assistant", content=text)]


@app.command()
def endpoint(
    hours: Annotated[
        float, typer.Option(min=0.01, max=8760, help="Shut down after this many idle hours.")
    ] = 0.5,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Print the address, key and model names of the OpenAI-compatible API; start it if needed."""
    from jobs import chat_client
    from jobs.chat_openai import model_names

    opened = open_home(home)
    reached = chat_client.ensure_host(opened, idle_seconds=hours * 3600)
    url, names = f"{reached.url}/v1", model_names(opened)
    if as_json:
        values = {"base_url": url, "api_key": reached.token, "models": names}
        print(json.dumps(values, ensure_ascii=False))
        return 0
    print(f"Address  {url}\nKey      {reached.token}\nModels   {', '.join(names)}")
    print("Model names: BASE, ADAPTER, or BASE+ADAPTER:WEIGHT+…; the default weight is 1.\n")
    print(EXAMPLE.format(url=url, key=reached.token, model=names[-1]))
    return 0
