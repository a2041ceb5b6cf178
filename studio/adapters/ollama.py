"""Write Ollama's Modelfile: the file, the template in Ollama's language, and where answers end.

Ollama's templates are Go's, a model's own are Jinja's. A translation is found by rendering marked
conversations and cutting the texts at the marks: a role's message has a fixed text before and after
it. The translation is used only if it gives the same text as the model's own template for several
conversations; otherwise a plain one is written, with a warning.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from studio.adapters.gguf_write import begins_with_bos, end_ids

Message = dict[str, str]
USER, ANSWER, SYSTEM = "Xuserx", "Yanswery", "Zsystemz"
CONTEXT = 8192
PLAIN_NOTE = (
    "The chat template could not be translated for Ollama: the Modelfile has a plain one. Programs "
    "that read the file's own template (llama-server --jinja) are not affected."
)
CONVERSATIONS: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": USER},),
    ({"role": "system", "content": SYSTEM}, {"role": "user", "content": USER}),
    ({"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"},
     {"role": "user", "content": "d"}),
    ({"role": "system", "content": "s"}, {"role": "user", "content": "a"},
     {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"},
     {"role": "assistant", "content": "d"}, {"role": "user", "content": "e"}),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class OllamaTemplate:
    """Texts around the messages of a conversation.

    Attributes:
        start: Before everything.
        default: After it where the conversation has no system message.
        around: Before and after a message, by role.
        answer: What the model continues.
        first_user: The system message is part of the first user message, with this after it.
    """

    start: str
    around: dict[str, tuple[str, str]]
    answer: str
    default: str = ""
    first_user: str | None = None

    def render(self, messages: Sequence[Message]) -> str:
        """Return a conversation as text that the model continues."""
        rest, system = list(messages), ""
        if self.first_user is not None and rest[0]["role"] == "system":
            system = rest.pop(0)["content"] + self.first_user
        parts = [self.start, *([] if messages[0]["role"] == "system" else [self.default])]
        for message in rest:
            before, after = self.around[message["role"]]
            own = system if message["role"] == "user" else ""
            parts.append(f"{before}{own}{message['content']}{after}")
            system = "" if own else system
        return "".join([*parts, self.answer])

    def go(self) -> str:
        """Return the template in Ollama's language."""

        def text(role: str, inner: str) -> str:
            before, after = self.around[role]
            return f"{before}{inner}{after}"

        user = content = "{{ .Content }}"
        parts = []
        if self.first_user is None and "system" in self.around:
            parts.append('{{ if eq .Role "system" }}' + text("system", content) + "{{ end }}")
        elif self.first_user is not None:
            # Ollama gives the system message as the first of the messages, and in $.System.
            given = "{{ if and $.System (le $i 1) }}{{ $.System }}" + self.first_user + "{{ end }}"
            user = given + user
        parts.append('{{ if eq .Role "user" }}' + text("user", user) + "{{ end }}")
        parts.append('{{ if eq .Role "assistant" }}' + text("assistant", content) + "{{ end }}")
        default = "{{ if not .System }}" + self.default + "{{ end }}" if self.default else ""
        loop = "{{ range $i, $_ := .Messages }}" + "".join(parts) + "{{ end }}"
        return self.start + default + loop + self.answer


PLAIN = OllamaTemplate(
    start="", answer="Assistant: ",
    around={"system": ("", "\n\n"), "user": ("User: ", "\n"), "assistant": ("Assistant: ", "\n")},
)  # fmt: skip


def frame_of(tokenizer: Any) -> OllamaTemplate | None:
    """Return the frame that renders conversations as the model's template does, if there is one."""
    frame = _common(tokenizer) if tokenizer.chat_template else None
    if frame is None:
        return None
    text, found = _rendered(tokenizer, CONVERSATIONS[1]), None
    if text is None:  # it refuses system messages
        return _proven(tokenizer, frame)
    if (parts := _cut(text, SYSTEM, USER)) is None:
        return None
    before_user = frame.around["user"][0]
    if parts[1].endswith(before_user):
        start, default = frame.start, ""
        if not parts[0].startswith(start):
            start, default = "", start
        own = parts[0][len(start) :], parts[1].removesuffix(before_user)
        around = {**frame.around, "system": own}
        found = _proven(tokenizer, replace(frame, start=start, default=default, around=around))
    if found is None and parts[0] == frame.start + before_user:
        found = _proven(tokenizer, replace(frame, first_user=parts[1]))
    return found


def modelfile(
    folder: Path, name: str, *, adapter: str = "", tokenizer: Any = None
) -> tuple[str, list[str]]:
    """Return a Modelfile, and notes for the user.

    Args:
        folder: The model folder, for its tokenizer and template.
        name: What the file is made from: a GGUF file beside it, or a model's name.
        adapter: A GGUF adapter beside it.
        tokenizer: The tokenizer whose template is translated; the folder's own by default.
    """
    from transformers import AutoConfig, AutoTokenizer

    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    frame, notes = frame_of(tokenizer), []
    if frame is None:
        frame = PLAIN
        notes.append(PLAIN_NOTE)
    lines = [f"FROM {name}", *([f"ADAPTER ./{adapter}"] if adapter else [])]
    lines.append(f'TEMPLATE """{_without_bos(frame, tokenizer).go()}"""')
    lines.append(f"PARAMETER num_ctx {min(config.max_position_embeddings, CONTEXT)}")
    lines += [f"PARAMETER stop {json.dumps(s, ensure_ascii=False)}"
              for s in stops(folder, tokenizer, frame)]  # fmt: skip
    return "\n".join(lines) + "\n", notes


def stops(folder: Path, tokenizer: Any, frame: OllamaTemplate) -> list[str]:
    """Return every text that ends an answer."""
    texts = [tokenizer.convert_ids_to_tokens(index) for index in end_ids(folder, tokenizer)]
    if frame is PLAIN:
        texts.append(frame.around["user"][0].strip())
    elif after := frame.around["assistant"][1].strip():
        texts.append(after.splitlines()[0])
    return list(dict.fromkeys(text for text in texts if text))


def _without_bos(frame: OllamaTemplate, tokenizer: Any) -> OllamaTemplate:
    """Leave out the first token where Ollama adds it itself."""
    if not begins_with_bos(tokenizer):
        return frame
    bos, around = tokenizer.bos_token, dict(frame.around)
    if not frame.start and "system" in around:
        around["system"] = (around["system"][0].removeprefix(bos), around["system"][1])
    return replace(
        frame, start=frame.start.removeprefix(bos), default=frame.default.removeprefix(bos),
        around=around,
    )  # fmt: skip


def _rendered(tokenizer: Any, messages: Sequence[Message], *, answer: bool = True) -> str | None:
    """Return the model's own rendering; None where its template refuses the conversation."""
    from jinja2 import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=answer
            )
        )
    except (TemplateError, TypeError, KeyError, ValueError):
        return None


def _cut(text: str | None, *marks: str) -> list[str] | None:
    """Return the texts around marks that occur once each, in this order."""
    parts: list[str] = []
    for mark in marks:
        if text is None or text.count(mark) != 1:
            return None
        before, _, text = text.partition(mark)
        parts.append(before)
    return [*parts, text or ""]


def _common(tokenizer: Any) -> OllamaTemplate | None:
    """Return the frame of conversations without a system message."""
    user, answer = {"role": "user", "content": USER}, {"role": "assistant", "content": ANSWER}
    more = {"role": "user", "content": SYSTEM}
    one = _cut(_rendered(tokenizer, [user]), USER)
    bare = _cut(_rendered(tokenizer, [user], answer=False), USER)
    three = _cut(_rendered(tokenizer, [user, answer, more]), USER, ANSWER, SYSTEM)
    if one is None or bare is None or three is None or not one[1].startswith(bare[1]):
        return None
    after, prompt = bare[1], one[1][len(bare[1]) :]
    # Between an answer and the next message stands the end of one and the beginning of the other.
    if not three[1].startswith(after):
        return None
    before_answer, between = three[1][len(after) :], three[2]
    first = [len(after)] if between.startswith(after) else []
    for size in (*first, *range(len(between) + 1)):
        ending, before = between[:size], between[size:]
        if three[0].endswith(before):
            start = three[0][: len(three[0]) - len(before)]
            around = {"user": (before, after), "assistant": (before_answer, ending)}
            return OllamaTemplate(start=start, around=around, answer=prompt)
    return None


def _proven(tokenizer: Any, frame: OllamaTemplate) -> OllamaTemplate | None:
    """Return the frame if it renders every conversation as the model's own template does."""
    for messages in CONVERSATIONS:
        wanted = _rendered(tokenizer, messages)
        if wanted is None and "system" not in frame.around:
            continue
        if wanted != frame.render(messages):
            return None
    return frame
