"""The named fallbacks, for models that bring no chat template: ChatML, Alpaca, Vicuna, plain.

Each turn is a head, the content and a tail. Answers end with one real token of the vocabulary
(`<|im_end|>` where ChatML knows it, else the end-of-sequence token), so generation can stop there.
`plain` writes nothing but the texts and line ends: the one that costs fewest tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from studio.data.records import Message
from studio.data.templates.guard import Guard
from studio.data.templates.layout import Rendered, calls_as_text, with_tools_as_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """The fixed texts of a named template; `{end}` is the token that ends a turn."""

    system: tuple[str, str] = ("", "\n\n")
    user: tuple[str, str] = ("", "\n")
    tool: tuple[str, str] = ("", "\n")
    assistant: str = ""
    lead: str = ""  # written by the model before the answer
    after: str = "\n"  # between the end of a turn and the next head
    default_system: str = ""


STYLES = {
    "chatml": Style(
        system=("<|im_start|>system\n", "{end}\n"),
        user=("<|im_start|>user\n", "{end}\n"),
        tool=("<|im_start|>tool\n", "{end}\n"),
        assistant="<|im_start|>assistant\n",
    ),
    "alpaca": Style(
        user=("### Instruction:\n", "\n\n"),
        tool=("### Result:\n", "\n\n"),
        assistant="### Response:\n",
        after="\n\n",
        default_system=(
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request."
        ),
    ),
    "vicuna": Style(
        system=("", " "),
        user=("USER: ", " "),
        tool=("TOOL: ", " "),
        assistant="ASSISTANT:",
        lead=" ",
        after="",
        default_system=(
            "A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions."
        ),
    ),
    "plain": Style(),
}


class NamedLayout:
    """One of the named fallbacks on one tokenizer."""

    adds_prefix = True

    def __init__(self, name: str, *, end: str, guard: Guard) -> None:
        style = STYLES[name]
        self.name, self.end, self.guard = name, end, guard
        self._default = style.default_system
        self._assistant, self._lead, self._after = style.assistant, style.lead, style.after
        self._heads = {
            role: tuple(text.replace("{end}", end) for text in pair)
            for role, pair in (
                ("system", style.system), ("user", style.user), ("tool", style.tool),
            )
        }  # fmt: skip

    def render(self, messages: list[Message], tools: list[Any] | None = None) -> Rendered:
        """Lay out a whole conversation."""
        pieces: list[str] = []
        spans: list[tuple[int, int]] = []
        at = 0
        for message in self._completed(messages, tools):
            if message["role"] != "assistant":
                head, tail = self._heads[message["role"]]
                piece = f"{head}{self.guard(message['content'])}{tail}"
            else:
                content = calls_as_text(message) if "tool_calls" in message else message["content"]
                answer = f"{self._lead}{self.guard(content)}{self.end}"
                start = at + len(self._assistant)
                spans.append((start, start + len(answer)))
                piece = f"{self._assistant}{answer}{self._after}"
            pieces.append(piece)
            at += len(piece)
        text = "".join(pieces)
        if spans and messages[-1]["role"] == "assistant":
            text = text[: spans[-1][1]]
        return Rendered(text, spans)

    def prompt(self, messages: list[Message], tools: list[Any] | None = None) -> str:
        """Lay out what stands before the next answer."""
        text, spans = self.render(messages, tools)
        if spans and messages[-1]["role"] == "assistant":
            text += self._after
        return text + self._assistant

    def _completed(self, messages: list[Message], tools: list[Any] | None) -> list[Message]:
        messages = with_tools_as_text(messages, tools)
        if self._default and (not messages or messages[0]["role"] != "system"):
            return [{"role": "system", "content": self._default}, *messages]
        return messages
