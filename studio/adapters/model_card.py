"""Write model cards: what was trained, on which data, with which result, and how to use the folder.

Everything in a card comes from the adapter's passport and from measurements of the written files;
unknown facts are left out. Texts of users and files are escaped as Markdown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

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
