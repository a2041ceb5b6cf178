"""A model card: what was trained, on what, how far it got, and how to use the folder it lies in.

Everything in it comes from the adapter's passport and from what was measured when the folder was
written; what is not known is left out. Texts of a person or a file are escaped as Markdown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from studio.adapters.library import Adapter
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


def adapter_card(adapter: Adapter, *, form: str, measured: str = "", rank: int = 0) -> str:
    """Return the card of one adapter.

    Args:
        adapter: With its passport.
        form: Whose files lie beside the card; `card` for none.
        measured: What the check after writing found.
        rank: For the command that serves it.
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
    told = {"Base": f"`{code(base)}`", "Adapters": ", ".join(parts), **rows}
    return "\n\n".join([
        front_matter({"base_model": base, "library_name": library,
                      "pipeline_tag": "text-generation"}),
        f"# {plain(name)}", facts(told),
        "Made with Adapter Studio. The licences of the base and of the data apply.",
    ]) + "\n"  # fmt: skip


def write_card(folder: Path, text: str) -> None:
    """Put a card into a folder."""
    (folder / NAME).write_text(text, encoding="utf-8")


def front_matter(values: Mapping[str, Any]) -> str:
    """Return the YAML head that hubs read."""
    import yaml

    known = {key: value for key, value in values.items() if value}
    return f"---\n{yaml.safe_dump(known, sort_keys=False, allow_unicode=True)}---"


def facts(rows: Mapping[str, Any]) -> str:
    """Return the rows that are known as a list; values are Markdown already."""
    return "\n".join(
        f"- {name}: {value}" for name, value in rows.items() if value not in ("", None)
    )


def plain(text: str) -> str:
    """Escape what Markdown or HTML would act on, on one line."""
    escaped = "".join(f"\\{char}" if char in "\\`*_{}[]<>()#+!|~" else char for char in text)
    return " ".join(escaped.split())


def code(text: str) -> str:
    """Make a text fit between backticks."""
    return " ".join(text.replace("`", "'").split())


def _training(adapter: Adapter) -> dict[str, Any]:
    passport = adapter.passport
    spec = passport.get("spec") if isinstance(passport.get("spec"), dict) else {}
    data = passport.get("data") if isinstance(passport.get("data"), dict) else {}
    assert isinstance(spec, dict) and isinstance(data, dict)
    method = spec.get("method") or {}
    versions = passport.get("versions") if isinstance(passport.get("versions"), dict) else {}
    losses = [
        f"{value:.4f} {when}"
        for value, when in ((adapter.first_loss, "at first"), (adapter.last_loss, "at the end"),
                            (adapter.eval_loss, "held out"))
        if value is not None
    ]  # fmt: skip
    return {
        "Data": f"`{code(str(data['path']))}`" if data.get("path") else "",
        "Data hash": f"`{code(str(data['hash']))}`" if data.get("hash") else "",
        "Chat template": f"`{code(str(data['template']))}`" if data.get("template") else "",
        "Method": ", ".join(
            f"`{code(str(key))}={code(str(value))}`" for key, value in method.items()
        ),
        "Steps": adapter.steps or "",
        "Ended": plain(adapter.ended),
        "Losses": ", ".join(losses),
        "Seed": passport.get("seed"),
        "Mixed from": ", ".join(f"`{code(parent)}`" for parent in adapter.parents),
        "Base fingerprint": f"`{code(adapter.base_fingerprint)}`" * bool(adapter.base_fingerprint),
        "Libraries": ", ".join(
            f"{plain(str(name))} {plain(str(version))}"
            for name, version in (versions or {}).items() if version
        ),
    }  # fmt: skip
