"""Write what lies beside exported files: the model card, and Ollama's Modelfile.

A card says what was trained, on which data, with which result, and how to use the folder. All of it
comes from the adapter's passport and from measurements of the written files; unknown facts are left
out. Texts of users and files are escaped as Markdown.

A Modelfile has the file, the template in Ollama's language, and where answers end. Ollama's
templates are Go's, a model's own are Jinja's. A translation is found by rendering marked
conversations and cutting the texts at the marks: a role's message has a fixed text before and after
it. The translation is used only if it gives the same text as the model's own template for several
conversations; otherwise a plain one is written, with a warning.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from studio.adapters.gguf_write import begins_with_bos, end_ids
from studio.adapters.library import StoredAdapter
from studio.methods import methods

NAME = "README.md"
USES = {
    "peft": (
        "python",
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        "base = AutoModelForCausalLM.from_pretrained({base})\n"
        'model = PeftModel.from_pretrained(base, "this folder")',
    ),
    "vllm": (
        "bash",
        "vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {name}=FOLDER",
    ),
    "adapterhub": (
        "python",
        "import adapters\nfrom transformers import AutoModelForCausalLM\n\n"
        "model = AutoModelForCausalLM.from_pretrained({base})\nadapters.init(model)\n"
        'model.set_active_adapters(model.load_adapter("this folder"))',
    ),
}
Message = dict[str, str]


def adapter_card(adapter: StoredAdapter, *, form: str, measured: str = "", rank: int = 0) -> str:
    """Return the card of one adapter.

    Args:
        adapter: The adapter with its passport.
        form: The format of the files beside the card; `card` for none.
        measured: The result of verifying the files.
        rank: The rank limit in the serving command.
    """
    known = methods().get(adapter.method)
    front = {
        "base_model": adapter.base or None, "library_name": "peft" if form != "adapterhub"
        else "adapter-transformers", "pipeline_tag": "text-generation",
        "tags": ["adapter", adapter.method, *adapter.tags],
    }  # fmt: skip
    language, use = USES.get(form, ("", ""))
    words = {
        "base": json.dumps(adapter.base or "BASE"),
        "name": json.dumps(adapter.name),
        "rank": rank,
    }
    parts = [
        front_matter(front), f"# {plain(adapter.name)}",
        f"{known.title if known else plain(adapter.method)} for `{code(adapter.base or '?')}`.",
        "## How it was trained", facts(_training(adapter)),
        f"## Use\n\n```{language}\n{use.format(**words)}\n```" if use else "",
        f"## Checked\n\n{measured}" if measured else "",
        "Made with Adapter Studio. The licences of the base and of the data apply.",
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def stack_card(
    name: str, base: str, stack: Iterable[tuple[str, float]], rows: Mapping[str, Any],
    *, library: str,
) -> str:  # fmt: skip
    """Return the card of a whole model: a base with adapters folded in."""
    parts = [f"`{code(part)}` × {weight:g}" for part, weight in stack]
    shown = {"Base": f"`{code(base)}`", "Adapters": ", ".join(parts), **rows}
    return "\n\n".join([
        front_matter({"base_model": base, "library_name": library,
                      "pipeline_tag": "text-generation"}),
        f"# {plain(name)}", facts(shown),
        "Made with Adapter Studio. The licences of the base and of the data apply.",
    ]) + "\n"  # fmt: skip


def write_card(folder: Path, text: str) -> None:
    """Write a card into a folder."""
    (folder / NAME).write_text(text, encoding="utf-8")


def front_matter(values: Mapping[str, Any]) -> str:
    """Return the YAML head that hubs read."""
    import yaml

    known = {key: value for key, value in values.items() if value}
    return f"---\n{yaml.safe_dump(known, sort_keys=False, allow_unicode=True)}---"


def facts(rows: Mapping[str, Any]) -> str:
    """Return the known rows as a Markdown list; values are Markdown already."""
    return "\n".join(
        f"- {name}: {value}" for name, value in rows.items() if value not in ("", None)
    )


def plain(text: str) -> str:
    """Escape Markdown and HTML, on one line."""
    escaped = "".join(f"\\{char}" if char in "\\`*_{}[]<>()#+!|~" else char for char in text)
    return " ".join(escaped.split())


def code(text: str) -> str:
    """Return a text that can stand between backticks."""
    return " ".join(text.replace("`", "'").split())


def _training(adapter: StoredAdapter) -> dict[str, Any]:
    def quoted(value: Any) -> str:
        return f"`{code(str(value))}`" if value else ""

    data, method = adapter.section("data"), adapter.section("spec").get("method") or {}
    losses = {
        "at first": adapter.first_loss, "at the end": adapter.last_loss,
        "held out": adapter.eval_loss,
    }  # fmt: skip
    forgot = adapter.section("forgetting")
    versions = {name: version for name, version in adapter.section("versions").items() if version}
    return {
        "Data": quoted(data.get("path")),
        "Data hash": quoted(data.get("hash")),
        "Chat template": quoted(data.get("template")),
        "Method": ", ".join(quoted(f"{key}={value}") for key, value in method.items()),
        "Steps": adapter.steps or "",
        "Ended": plain(adapter.ended),
        "Losses": ", ".join(f"{v:.4f} {when}" for when, v in losses.items() if v is not None),
        "Forgetting": f"KL {adapter.forgetting:.4f} nats per token from the base, "
        f"{forgot['changed']} of {forgot['prompts']} answers to neutral prompts changed, loss on "
        f"general texts {forgot['loss_before']:.4f} before and {forgot['loss_after']:.4f} after"
        if adapter.forgetting is not None
        else "",
        "Seed": adapter.passport.get("seed"),
        "Mixed from": ", ".join(map(quoted, adapter.parents)),
        "Base fingerprint": quoted(adapter.base_fingerprint),
        "Libraries": ", ".join(plain(f"{name} {version}") for name, version in versions.items()),
    }


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
