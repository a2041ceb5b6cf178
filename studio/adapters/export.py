"""Giving an adapter away: a folder of its own in PEFT's, vLLM's or AdapterHub's form, or its card.

Each is verified before it appears: the written files are read as strictly as anybody's, put beside
the original on the same base, and must answer the same. What was found stands in `export.json` and
in the model card.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from studio.adapters.card import adapter_card, write_card
from studio.adapters.library import (
    CONFIG,
    PASSPORT,
    WEIGHTS,
    Adapter,
    describe,
    refuse_place,
    resolve,
)
from studio.errors import AdapterError, StudioError, nearest
from studio.home import Home, publishing, slug
from studio.spec import ModelSource

if TYPE_CHECKING:
    from studio.backbone import Backbone
    from studio.backbone.adapter import Adapter as Loaded

Format = Literal["peft", "vllm", "adapterhub", "card"]
FORMATS: tuple[Format, ...] = ("peft", "vllm", "adapterhub", "card")
REPORT = "export.json"
TOLERANCE = 1e-4  # of the largest logit: the files hold the same float32 numbers
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """How the written files answer beside the original, on its base.

    Without a base that is here, `max_error` is None: the files were read, and nothing more.
    """

    form: str
    max_error: float | None = None
    tolerance: float | None = None
    moved: float | None = None
    tokens_changed: int = 0
    tokens_compared: int = 0
    note: str = ""

    def sentence(self) -> str:
        """Say it for a person."""
        if self.max_error is None:
            return self.note
        return (
            f"Read back on its base, the files answer like the adapter they were made from: "
            f"largest logit error {self.max_error:.2g} (the adapter moves logits by up to "
            f"{self.moved:.3g}), {self.tokens_changed} of {self.tokens_compared} tokens changed."
        )


def as_format(text: str) -> Format:
    """Check a format's name.

    Raises:
        AdapterError: There is none of that name.
    """
    for form in FORMATS:
        if form == text:
            return form
    raise AdapterError(f'There is no format "{text}".{nearest(text, FORMATS)}')


def export_adapter(
    home: Home, name: str, out: Path, *, form: Format = "peft", model: str = ""
) -> Path:
    """Write an adapter of the library to a folder of its own.

    Raises:
        InputError: The folder exists.
        AdapterError: The method has no place in that form, or what was written does not answer
            like the original.
    """
    folder = resolve(home, name)
    refuse_place(out)
    adapter = describe(folder)
    refuse_form(adapter, form)
    if form == "card":
        with publishing(out) as temporary:
            write_card(temporary, adapter_card(adapter, form=form))
        return out
    base = model or adapter.base
    try:
        beside = _Beside.load(base, adapter)
    except StudioError:
        if form != "peft" or not _is_peft(folder):
            raise
        beside = None  # a copy of files needs no base; it is only checked less
    with publishing(out) as temporary:
        rank = _write(adapter, beside, temporary, form=form, base=base)
        check = beside.check(temporary, form) if beside else _read_only(temporary, form)
        (temporary / REPORT).write_text(json.dumps(asdict(check), indent=1), encoding="utf-8")
        card = adapter_card(adapter, form=form, measured=check.sentence(), rank=rank)
        write_card(temporary, card)
        judge(check)
    return out


def refuse_form(adapter: Adapter, form: Format) -> None:
    """Refuse what has no place in a form, as far as the method's name tells.

    Raises:
        AdapterError: Says why, and which form is left.
    """
    if adapter.is_model and form != "card":
        raise AdapterError(
            f'"{adapter.name}" is a whole model, not an adapter: export it as GGUF, or use its '
            "folder as it is."
        )
    if form == "vllm" and adapter.method != "lora":
        raise AdapterError(
            f'vLLM serves LoRA only, and "{adapter.name}" is {adapter.method}: merge it into a '
            "model instead."
        )


def read_check(folder: Path) -> dict[str, Any]:
    """Return what was measured when a folder was exported; empty where it is none."""
    try:
        return dict(json.loads((folder / REPORT).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def judge(check: Check) -> None:
    """Raise where the files do not answer like the original.

    Raises:
        AdapterError: Says by how much; nothing was kept.
    """
    if check.max_error is None or check.tolerance is None:
        return
    if not check.max_error <= check.tolerance:  # also catches NaN
        raise AdapterError(
            f"The written files answer differently from the adapter (logits differ by "
            f"{check.max_error:.3g}, allowed {check.tolerance:.3g}): nothing was kept."
        )


def _is_peft(folder: Path) -> bool:
    """Whether the files are PEFT's already, so that a copy of them is the export."""
    return (folder / WEIGHTS[0]).is_file()


@dataclass(frozen=True, slots=True)
class _Beside:
    """The original on its base, ready to answer beside what is written."""

    backbone: Backbone
    original: Loaded
    tokenizer: Any

    @classmethod
    def load(cls, base: str, adapter: Adapter) -> Self:
        from studio.backbone import Backbone
        from studio.models.loading import load

        if not base:
            raise AdapterError(f'"{adapter.name}" does not say what its base is: name it.')
        loaded = load(ModelSource(path=base), "cpu")
        backbone = Backbone(loaded.model)
        return cls(backbone, backbone.load("original", adapter.path), loaded.tokenizer)

    def check(self, out: Path, form: Format) -> Check:
        """Load what was written and compare logits on a few fixed prompts."""
        from studio.adapters.merge import reference_logits

        self.backbone.load("copy", out)
        found = []
        for stack in ((), [("original", 1.0)], [("copy", 1.0)]):
            self.backbone.use(stack)
            found.append(reference_logits(self.backbone, self.tokenizer)[1])
        base, before, after = found
        return Check(
            form=form,
            max_error=float((after - before).abs().max()),
            tolerance=TOLERANCE * max(1.0, float(before.abs().max())),
            moved=float((before - base).abs().max()),
            tokens_changed=int((after.argmax(-1) != before.argmax(-1)).sum()),
            tokens_compared=len(before),
        )


def _write(adapter: Adapter, beside: _Beside | None, out: Path, *, form: Format, base: str) -> int:
    """Write the files of a form; returns the rank that a server must allow."""
    from studio.backbone import adapter_files

    if form == "peft" and _is_peft(adapter.path):
        for file in (CONFIG, WEIGHTS[0], PASSPORT):
            if (adapter.path / file).is_file():
                shutil.copyfile(adapter.path / file, out / file)
        return 0
    assert beside is not None
    if form == "adapterhub":
        anatomy = beside.backbone.anatomy
        adapter_files.write_adapterhub(beside.original, out, anatomy, name=slug(adapter.name))
        return 0
    adapter_files.write(beside.original, out, beside.backbone.anatomy, base=base)
    return _fit_vllm(adapter, beside.original, out) if form == "vllm" else 0


def _fit_vllm(adapter: Adapter, original: Loaded, out: Path) -> int:
    """Refuse what vLLM cannot serve; returns the smallest rank limit that admits the rest."""
    config = json.loads((out / CONFIG).read_text(encoding="utf-8"))
    outside = sorted({site.key for site in original.sites if site.layer < 0})
    if config.get("use_dora"):
        raise AdapterError(f'vLLM cannot serve DoRA, and "{adapter.name}" is one: merge it.')
    if outside:
        raise AdapterError(
            f'vLLM serves LoRA inside the layers only, and "{adapter.name}" changes '
            f"{', '.join(outside)}: merge it."
        )
    limit = next((rank for rank in VLLM_RANKS if rank >= config["r"]), 0)
    if not limit:
        raise AdapterError(
            f'vLLM serves ranks up to {VLLM_RANKS[-1]}, and "{adapter.name}" has '
            f"{config['r']}: merge it."
        )
    # What vLLM reads; it takes modules by their last names.
    names = sorted({site.key.rpartition(".")[2] for site in original.sites})
    config |= {"target_modules": names, "bias": "none", "modules_to_save": None}
    (out / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    return limit


def _read_only(out: Path, form: Format) -> Check:
    from studio.backbone import adapter_files

    adapter_files.read_method(adapter_files.read_config(out))
    adapter_files.read_tensors(out, adapter_files.WEIGHTS)
    return Check(form=form, note="Its base is not here: the files were read, not run.")
