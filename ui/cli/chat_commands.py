"""The commands `studio chat` and `studio compare`: answers in the terminal.

They load models in their own process and need no page and no chat host; pages never load a model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.actions.chat_and_compare import DEFAULTS, NONE, Lanes, MaxNewTokens
from jobs.actions.registry import action, field
from jobs.compare_tables import Recipes
from jobs.job_queue import JobStore
from studio.adapter_stack import StackItem
from studio.chat.lanes import ChatRequest, Delta, Lane, LaneSettings, Message, Sampling, events_of
from studio.chat.thought_and_tool_parser import Piece, message_of
from studio.errors import ChatError, StudioError
from studio.home import open_home
from ui.cli.commands_from_actions import HomeOption, JsonOption

if TYPE_CHECKING:
    from studio.chat.resident_models import ResidentModels

app = typer.Typer()
HELP = "/new starts over, /system TEXT sets the system prompt, /exit or Ctrl-D quits."
ANSWER = (
    "tokens", "tokens_per_second", "prompt_tokens", "first_token_seconds", "reason", "active",
)  # fmt: skip


def _sampling(name: str) -> Any:
    field = Sampling.model_fields[name]
    text = f"{field.description} Default: {field.default}."
    return typer.Option(help=text, show_default=False)


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
    system: Annotated[str, typer.Option(help="System prompt.", show_default=False)] = "",
    max_new_tokens: Annotated[int | None, _sampling("max_new_tokens")] = None,
    temperature: Annotated[float | None, _sampling("temperature")] = None,
    seed: Annotated[int | None, _sampling("seed")] = None,
    chat_template_kwargs: Annotated[
        str, typer.Option(metavar="NAME=VALUE", help="Settings of the model's chat template.")
    ] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0 …")] = "auto",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Chat with a model and any adapters stacked on it."""
    from transformers.utils import logging

    from studio.chat.checkpoint_adapters import base_of_adapter
    from studio.chat.resident_models import ResidentModels

    if as_json and prompt is None:
        raise ChatError("--json prints one answer: give the question with --prompt.")
    logging.set_verbosity_error()
    opened = open_home(home)
    stack = [StackItem.read(text) for text in adapter or []]
    base = base_of_adapter(opened, stack[0].name).path if stack and not model else ""
    sampling = {
        "max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed,
        "chat_template_kwargs": chat_template_kwargs,
    }  # fmt: skip
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
    deltas = list(_printed(residents, lane, quiet=as_json))
    text = "".join(delta.text for delta in deltas)
    end = events_of(deltas[-1])[-1]
    answer = {"text": text, **{key: end[key] for key in ANSWER}}
    print(json.dumps(answer, ensure_ascii=False) if as_json else "")
    return 0


def _printed(residents: ResidentModels, lane: Lane, *, quiet: bool = False) -> Iterator[Delta]:
    """Yield the parts of an answer and print each as it comes.

    Raises:
        StudioError: It cannot be answered.
    """
    for delta in residents.stream([lane]):
        if delta.error is not None:
            raise delta.error
        if not quiet:
            if delta.note:
                print(f"({delta.note})", file=sys.stderr, flush=True)
            print(delta.text, end="", flush=True)
        yield delta


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
            asked = [*messages, Message(role="user", content=line)]
            parts: list[Piece] = []
            try:
                for delta in _printed(residents, lane_for(system, asked)):
                    parts += delta.pieces or (Piece("text", delta.text),)
            except KeyboardInterrupt:
                print(" …", end="")
            except StudioError as error:
                print(error.text, file=sys.stderr)
                continue
            print()
            messages = [*asked, Message(**message_of(parts))]


@action("compare", terminal=True)
def compare(
    store: JobStore,
    prompt: Annotated[str, field("Prompt for every lane.", max_length=2_000_000)],
    lane: Lanes = NONE,
    recipe: Annotated[
        tuple[str, ...], field("Lane by the name of a recipe; repeat for several.")
    ] = NONE,
    system: Annotated[str, field("System prompt.")] = "",
    max_new_tokens: MaxNewTokens = DEFAULTS.max_new_tokens,
    temperature: Annotated[
        float, field("0 picks the likeliest token.")
    ] = DEFAULTS.temperature,
    seed: Annotated[int, field("Same seed and prompt, same answer.")] = DEFAULTS.seed,
    logprobs: Annotated[
        int, field("Alternatives per token with log-probabilities; -1 for none.")
    ] = DEFAULTS.logprobs,
    chat_template_kwargs: Annotated[
        str, field("Settings of the models' chat templates, such as enable_thinking=false.")
    ] = "",
    device: Annotated[str, field("auto, cpu, cuda:0 …")] = "auto",
) -> dict[str, Any]:  # fmt: skip
    """Ask several lanes the same prompt and print their answers."""
    from studio.chat.resident_models import ResidentModels

    kept = Recipes(store.database)
    lanes = [one.model_dump(include={"model", "stack"}) for one in lane]
    lanes += [{key: kept.get(name)[key] for key in ("model", "stack")} for name in recipe]
    lanes = lanes or [LaneSettings().model_dump(include={"model", "stack"})]
    shared = {
        "system": system, "messages": [{"role": "user", "content": prompt}],
        "sampling": {
            "max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed,
            "logprobs": logprobs, "chat_template_kwargs": chat_template_kwargs,
        },
    }  # fmt: skip
    request = ChatRequest.parse({"lanes": [one | shared for one in lanes]})
    answers: list[dict[str, Any]] = [
        {"text": "", "notes": [], "logprobs": [], "lane": one.name} for one in request.lanes
    ]
    for delta in ResidentModels(store.home, device=device).stream(request.lanes):
        for event in events_of(delta):
            _take(answers[delta.lane], event)
    return {"lanes": answers}


def _take(answer: dict[str, Any], event: dict[str, Any]) -> None:
    kind = event["type"]
    if kind == "delta":
        answer["text"] += event["text"]
        answer["logprobs"] += event.get("tokens", [])
    elif kind == "status":
        answer["notes"].append(event["text"])
    elif kind == "error":
        answer["error"] = {"kind": event["kind"], "text": event["text"]}
    else:
        answer.update({key: event[key] for key in event if key not in ("type", "lane")})
