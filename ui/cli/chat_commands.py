"""The commands `studio chat` (an answer or a conversation in the terminal) and `studio endpoint`.

`chat` loads the model in its own process and needs no page and no chat host.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from studio.chat.lanes import ChatRequest, Delta, Lane, Message
from studio.chat.residents import ResidentModels
from studio.errors import ChatError
from studio.home import Home
from studio.stack import StackItem

EXAMPLE = """\
from openai import OpenAI

client = OpenAI(base_url="{url}", api_key="{key}")
answer = client.chat.completions.create(
    model="{model}", messages=[{{"role": "user", "content": "Hello"}}]
)
print(answer.choices[0].message.content)"""
HELP = "/new starts over, /system TEXT sets the system prompt, /exit or Ctrl-D quits."


@dataclass(kw_only=True, slots=True)
class ChatOptions:
    """Options of the command; see `studio.chat.lanes` for meanings and bounds."""

    model: str = ""
    adapters: Sequence[str] = ()
    prompt: str | None = None
    system: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)
    device: str = "auto"
    as_json: bool = False


def chat(home: Home, options: ChatOptions) -> int:
    """Run the command and return its exit code.

    Raises:
        StudioError: The model, an adapter or the prompt cannot be used.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    stack = [StackItem.read(text).model_dump() for text in options.adapters]
    model = options.model or _base_of(home, stack) or "starter"
    residents = ResidentModels(home, device=options.device)

    def lane_for(system: str, messages: Sequence[Message]) -> Lane:
        values = {
            "model": model, "stack": stack, "system": system, "sampling": options.sampling,
            "messages": [message.model_dump() for message in messages],
        }  # fmt: skip
        return ChatRequest.parse({"lanes": [values]}).lanes[0]

    if options.prompt is not None:
        lane = lane_for(options.system, [Message(role="user", content=options.prompt)])
        text, end = _answer(residents, lane, quiet=options.as_json)
        if options.as_json:
            print(json.dumps(answer_json(text, end), ensure_ascii=False))
        return 0
    if options.as_json:
        raise ChatError("--json needs --prompt.")
    return _converse(residents, lane_for, options.system)


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


def _base_of(home: Home, stack: Sequence[dict[str, Any]]) -> str:
    """Return the base of the first adapter, if its passport names it."""
    from studio.adapters.library import describe, resolve

    return describe(resolve(home, stack[0]["name"])).base if stack else ""


def endpoint(home: Home, *, hours: float, as_json: bool) -> int:
    """Print how to reach the chat host's OpenAI-compatible API; start the host if none runs.

    Args:
        home: The home with the bases and adapters.
        hours: Idle time after which a host that is started now shuts down.
        as_json: Print one JSON document.
    """
    from jobs import chat_client
    from jobs.chat_openai import model_names

    reached = chat_client.ensure_host(home, idle_seconds=hours * 3600)
    url, names = f"{reached.url}/v1", model_names(home)
    if as_json:
        values = {"base_url": url, "api_key": reached.token, "models": names}
        print(json.dumps(values, ensure_ascii=False))
        return 0
    print(f"Address  {url}\nKey      {reached.token}\nModels   {', '.join(names)}")
    print("Model names: BASE, ADAPTER, or BASE+ADAPTER:WEIGHT+…; the default weight is 1.\n")
    print(EXAMPLE.format(url=url, key=reached.token, model=names[-1]))
    return 0
