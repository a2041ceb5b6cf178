"""The body of `studio chat`: one answer for a script, or a conversation in the terminal.

It runs in its own process, so it needs no page and no chat host. The door (`ui.cli.main`) parses
the arguments and turns errors into exit codes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from studio.chat.lanes import Delta, Lane, Message, parse_request
from studio.chat.residents import Residents
from studio.errors import ChatError
from studio.home import Home
from studio.stack import StackItem

Say = Callable[[str], None]
HELP = "/new starts over, /system TEXT sets the system prompt, /exit or Ctrl-D leaves."


@dataclass(kw_only=True, slots=True)
class ChatOptions:
    """What the command line says; see `studio.chat.lanes` for meanings and bounds."""

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
    _be_quiet()
    stack = [StackItem.read(text).model_dump() for text in options.adapters]
    model = options.model or _base_of(home, stack) or "starter"
    residents = Residents(home, device=options.device)

    def lane_for(system: str, messages: Sequence[Message]) -> Lane:
        values = {
            "model": model, "stack": stack, "system": system, "sampling": options.sampling,
            "messages": [message.model_dump() for message in messages],
        }  # fmt: skip
        return parse_request({"lanes": [values]}).lanes[0]

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
    """The `--json` shape of `studio chat`; a contract."""
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


def _answer(residents: Residents, lane: Lane, *, quiet: bool) -> tuple[str, Delta]:
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
    residents: Residents, lane_for: Callable[[str, Sequence[Message]], Lane], system: str
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


def _turn(residents: Residents, lane: Lane, messages: list[Message]) -> list[Message]:
    """Answer the last message; one that cannot be answered is taken back."""
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
    """The base the first adapter was trained on, where its passport names it."""
    from studio.adapters.library import describe, resolve

    return describe(resolve(home, stack[0]["name"])).base if stack else ""


def _be_quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
