"""Split an answer into thought, text and tool calls by the markers of the model's chat template.

Only markers that stand in the template's source count: a model that writes `<think>` as text, and
whose template knows no thoughts, has written text. A call that cannot be read is text, too: nothing
of an answer is lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

PartKind = Literal["text", "thought", "call", "mark"]
Call = dict[str, Any]

# Opening and closing marker; "" ends with the answer.
_THOUGHTS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thinking>", "</thinking>"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
)
_CALLS = (
    ("<tool_call>", "</tool_call>"),
    ("<|tool_call_start|>", "<|tool_call_end|>"),
    ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    ("<tool_calls>", "</tool_calls>"),
    ("<|channel|>commentary to=", "<|call|>"),
    ("[TOOL_CALLS]", ""),
    ("<|tool_call|>", ""),
    ("<|python_tag|>", ""),
)
_SILENT = ("<|start|>assistant", "<|channel|>final<|message|>", "<|message|>")  # between parts


_INNER = re.compile(
    r"<[｜|](channel|message|start|end|constrain|python[▁_]tag|tool[▁_][\w▁]+)[｜|]>"
    r"|\[(ARGS|CALL_ID)\]"
)


class Piece(NamedTuple):
    """Some text of an answer; the markers themselves are pieces of kind `mark`."""

    kind: PartKind
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Markers:
    """The markers of one template: pairs around thoughts and calls, and those that say nothing."""

    thoughts: tuple[tuple[str, str], ...] = ()
    calls: tuple[tuple[str, str], ...] = ()
    silent: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Return True if there is any."""
        return bool(self.thoughts or self.calls)

    def texts(self) -> list[str]:
        """Return every marker."""
        pairs = [text for pair in (*self.thoughts, *self.calls) for text in pair]
        return [text for text in (*pairs, *self.silent) if text]

    def is_written(self, token: str) -> bool:
        """Return True if a control token is a part of markers or stands between them."""
        return bool(_INNER.fullmatch(token)) or any(token in text for text in self.texts())

    def opened_by(self, prompt: str) -> str:
        """Return the marker that closes the thought which a prompt has opened; "" for none."""
        tail = prompt.rstrip()
        return next((close for opening, close in self.thoughts if tail.endswith(opening)), "")


def markers_in(source: str) -> Markers:
    """Return the markers that a chat template's source names."""
    harmony = "<|channel|>" in source and "<|message|>" in source

    def known(pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        return tuple(
            pair for pair in pairs
            if (harmony if pair[0].startswith("<|channel|>") else pair[0] in source)
            or (pair[1] == "</think>" and "</think>" in source)
        )  # fmt: skip

    return Markers(
        thoughts=known(_THOUGHTS), calls=known(_CALLS), silent=_SILENT if harmony else ()
    )


def markers_of(tokenizer: Any) -> Markers:
    """Return the markers of a model's own chat template."""
    source = getattr(tokenizer, "chat_template", None) or ""
    return markers_in("\n".join(source.values()) if isinstance(source, dict) else source)


NO_MARKERS = Markers()


class MarkedText:
    """Splits a growing text; what may be the beginning of a marker is held back.

    Args:
        markers: Those of the model.
        prompt: The end of the prompt; it may have opened a thought.
    """

    def __init__(self, markers: Markers, prompt: str = "") -> None:
        self._markers, self._held = markers, ""
        self._close = markers.opened_by(prompt)
        self._kind: PartKind = "thought" if self._close else "text"

    def add(self, text: str) -> list[Piece]:
        """Add text and return the pieces that are complete."""
        if not self._markers:
            return [Piece("text", text)] if text else []
        self._held += text
        return [*self._pieces()]

    def flush(self) -> list[Piece]:
        """Return the text held back, at the end of the answer."""
        held, self._held = self._held, ""
        return [Piece(self._kind, held)] if held else []

    def _pieces(self) -> Iterator[Piece]:
        while self._held:
            wanted = self._awaited()
            at, marker = min(
                ((self._held.find(m), m) for m in wanted if m in self._held),
                key=lambda found: (found[0], -len(found[1])),
                default=(-1, ""),
            )
            if at < 0:
                keep = max((overlap(self._held, m) for m in wanted), default=0)
                shown = self._held[: len(self._held) - keep]
                self._held = self._held[len(shown) :]
                if shown:
                    yield Piece(self._kind, shown)
                return
            if at:
                yield Piece(self._kind, self._held[:at])
            yield Piece("mark", marker)
            self._held = self._held[at + len(marker) :]
            self._enter(marker)

    def _awaited(self) -> list[str]:
        if self._kind != "text":
            return [self._close] if self._close else []
        return [*(opening for opening, _ in self._pairs()), *self._markers.silent]

    def _pairs(self) -> tuple[tuple[str, str], ...]:
        return self._markers.thoughts + self._markers.calls

    def _enter(self, marker: str) -> None:
        """Change to the part that a marker opens, or back to text."""
        opened = dict(self._pairs()).get(marker) if self._kind == "text" else None
        is_thought = marker in dict(self._markers.thoughts)
        if opened is None:
            self._kind, self._close = "text", ""
        else:
            self._kind, self._close = "thought" if is_thought else "call", opened


def overlap(text: str, marker: str) -> int:
    """Return how many characters at the end of a text may begin a marker."""
    longest = min(len(marker) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(marker[:n])), 0)


def read_calls(text: str) -> list[Call]:
    """Return the tool calls in what stands between a template's markers; empty if none is read.

    Each is `{"name": …, "arguments": {…}}`.
    """
    for read in (_from_json, _from_arguments, _from_functions, _from_pairs, _from_fences):
        if calls := read(text.strip()):
            return calls
    return []


def _from_json(text: str) -> list[Call]:
    """Read Hermes's, Mistral's and Llama's calls: one object, a list, or several in a row."""
    found: list[Any] = []
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return []
        found += value if isinstance(value, list) else [value]
        while at < len(text) and text[at] in " \r\n\t,;":
            at += 1
    calls = [_call(item) for item in found]
    return [call for call in calls if call] if all(calls) else []


def _call(item: Any) -> Call | None:
    inner = item.get("function", item) if isinstance(item, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        return None
    arguments = inner.get("arguments", inner.get("parameters", {}))
    return {"name": inner["name"], "arguments": arguments}


def _from_arguments(text: str) -> list[Call]:
    """Read `name[ARGS]{…}` of Mistral and `functions.name <|constrain|>json<|message|>{…}`."""
    calls: list[Call] = []
    for part in re.split(r"\[TOOL_CALLS\]", text):
        found = re.fullmatch(
            r"\s*(?:functions\.)?([\w.-]+)\s*(?:\[CALL_ID\]\w+)?"
            r"(?:\[ARGS\]|(?:<\|constrain\|>\s*\w+|\s+json|\s+code)?\s*<\|message\|>|(?=\{))"
            r"\s*(\{.*\})\s*",
            part, re.DOTALL,
        )  # fmt: skip
        arguments = _parsed(found[2]) if found else None
        if found is None or not isinstance(arguments, dict):
            return []
        calls.append({"name": found[1], "arguments": arguments})
    return calls


def _from_functions(text: str) -> list[Call]:
    """Read `<function=name><parameter=key>value</parameter></function>`, as Qwen's coder writes."""
    calls = []
    for name, body in re.findall(r"<function=([^>\s]+)>(.*?)</function>", text, re.DOTALL):
        pairs = re.findall(r"<parameter=([^>\s]+)>(.*?)</parameter>", body, re.DOTALL)
        calls.append({"name": name, "arguments": {key: _value(value) for key, value in pairs}})
    return calls


def _from_pairs(text: str) -> list[Call]:
    """Read a name and `<arg_key>key</arg_key><arg_value>value</arg_value>`, as GLM writes."""
    found = re.match(r"\s*([\w.-]+)\s*(<arg_key>|$)", text)
    if not found:
        return []
    pairs = re.findall(
        r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", text, re.DOTALL
    )  # fmt: skip
    return [{"name": found[1], "arguments": {k.strip(): _value(v) for k, v in pairs}}]


def _from_fences(text: str) -> list[Call]:
    """Read DeepSeek's and Kimi's calls: a name, a separator and JSON, each between two markers."""
    calls = []
    pattern = (
        r"<[｜|]tool[▁_]call[▁_]begin[｜|]>(.*?)"
        r"<[｜|](?:tool[▁_]sep|tool[▁_]call[▁_]argument[▁_]begin)[｜|]>(.*?)"
        r"<[｜|]tool[▁_]call[▁_]end[｜|]>"
    )
    for head, body in re.findall(pattern, text, re.DOTALL):
        name, _, rest = body.partition("\n") if head.strip() == "function" else (head, "", body)
        arguments = _parsed(re.sub(r"^\s*```(?:json)?\s*|\s*```\s*$", "", rest.strip()))
        if not isinstance(arguments, dict):
            return []
        plain = re.sub(r"^functions\.|:\d+$", "", name.strip())
        calls.append({"name": plain, "arguments": arguments})
    return calls


def _value(text: str) -> Any:
    found = _parsed(text.strip())
    return text.strip() if found is None else found


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


class OpenAIMessage:
    """Gathers the pieces of an answer as a message of OpenAI's form.

    Args:
        make_id: Returns the id of a call, given its place.
    """

    def __init__(self, make_id: Callable[[int], str]) -> None:
        self._make_id = make_id
        self.content = self.thought = self._call = ""
        self._opened = ""
        self.calls: list[dict[str, Any]] = []

    def take(self, piece: Piece) -> dict[str, Any]:
        """Take a piece; return what a streamed answer adds: a delta, empty if there is none."""
        if piece.kind == "call":
            self._call += piece.text
            return {}
        if piece.kind == "mark":
            added = self.end_call(piece.text)
            self._opened = piece.text
            return added
        name = "content" if piece.kind == "text" else "reasoning_content"
        text = piece.text
        if not (self.content if name == "content" else self.thought):
            text = text.lstrip() if self._opened else text
        if name == "content":
            self.content += text
        else:
            self.thought += text
        return {name: text} if text else {}

    def finish(self) -> dict[str, Any]:
        """Return the whole message."""
        self.end_call()
        message: dict[str, Any] = {"role": "assistant", "content": self.content, "refusal": None}
        if self.thought:
            message["reasoning_content"] = self.thought.rstrip()
        if self.calls:
            message["tool_calls"] = self.calls
            message["content"] = self.content.rstrip() or None
        return message

    def end_call(self, closing: str = "") -> dict[str, Any]:
        """Read the call that has ended, and return what a streamed answer adds.

        One that cannot be read is content, as it was written.
        """
        text, self._call = self._call, ""
        if not text.strip():
            return {}
        found = read_calls(text)
        if not found:
            written = f"{self._opened}{text}{closing}"
            self.content += written
            return {"content": written}
        made = []
        for call in found:
            arguments = call["arguments"]
            written = arguments if isinstance(arguments, str) else json.dumps(
                arguments, ensure_ascii=False
            )  # fmt: skip
            function = {"name": call["name"], "arguments": written}
            number = len(self.calls)
            self.calls.append(
                {"id": self._make_id(number), "type": "function", "function": function}
            )
            made.append({"index": number, **self.calls[-1]})
        return {"tool_calls": made}


def message_of(parts: Iterable[Sequence[str]]) -> dict[str, Any]:
    """Return an answer in parts, as `(kind, text)`, as a message."""
    gathered = OpenAIMessage(lambda place: f"call{place:05}")  # Mistral wants nine characters
    for kind, text in parts:
        gathered.take(Piece(cast(PartKind, kind), text))
    made = gathered.finish()
    made["content"] = (made["content"] or "").strip()
    del made["refusal"]
    return made


def spoken(message: dict[str, Any]) -> str:
    """Return what a message says: its text, else its tool calls as JSON, one per line."""
    calls = (
        json.dumps(one["function"], ensure_ascii=False) for one in message.get("tool_calls", ())
    )
    return str(message["content"] or "\n".join(calls))
