"""Write the support matrix: `python -m tests.support_matrix [FAMILY …]`, `--types` for all types.

It examines tiny models as `studio doctor --model` examines real ones, records the findings in
`tests/fixtures/support.json`, and makes `docs/models.md` of them. `test_support.py` examines them
again and fails where a finding has become better or worse.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any

from studio.evaluation.examine_model import columns, examine_model, packs, reason
from studio.spec import ModelSource
from tests.families import CONFIG_MAPPING, FAMILIES, random_model, type_config, write_family

ROOT = Path(__file__).parents[1]
RECORD, PAGE = ROOT / "tests" / "fixtures" / "support.json", ROOT / "docs" / "models.md"
PACKAGES = ("transformers", "torch", "bitsandbytes", "gguf", "peft")
AREAS = {
    "dense": "Dense models", "experts": "Mixtures of experts",
    "hybrid": "Hybrids, convolutions and state spaces",
    "wrapper": "Wrappers with a vision tower (the text tower is trained)",
}  # fmt: skip
TITLES = {
    "load": "loads", "packing": "packed", "checkpointing": "check&shy;pointed", "cache": "cached",
    "lanes": "lanes", "saved": "saved", "merged": "merged", "nf4": "NF4", "gguf": "GGUF",
    "gguf_adapter": "GGUF adapter",
}  # fmt: skip
# Types that are no decoder of text by themselves, or do not run by themselves.
OTHERS = {
    "blt": "It joins bytes to patches between three towers, where no adapter has a place.",
    "gemma4_assistant": "It drafts tokens for a Gemma 4 and reads that model's keys and values.",
    "gemma4_unified_assistant":
        "It drafts tokens for a Gemma 4 and reads that model's keys and values.",
    "gemma3n": "Its vision tower needs the package timm: `pip install timm`.",
    "llama4": "Its own forward fails on a text without images: use the text tower (llama4_text).",
    "musicgen": "It writes codes of audio, not text.",
    "musicgen_melody": "It writes codes of audio, not text.",
}  # fmt: skip
HEAD = """# Models

What works on each family of language models, measured: `python -m tests.support_matrix` builds one
tiny random model per family, with the peculiarities named beside it, examines it as
`studio doctor --model` examines a real one, and writes this page. A test examines them again and
fails where the page is wrong.

*loads*: with its tokenizer, frozen. A *method*: each of its tensors gets a gradient in a packed
training step, and packed rows equal separate ones. With LoRA, *packed*: packed rows equal separate
rows, in logits and gradients. *Checkpointed*: recomputed activations give the same logits and
gradients. *Cached*: prefill and single tokens equal one pass. *Lanes*: four rows with stacks of
their own answer together as each alone. *Saved* and *merged*: written, loaded again, equal.
*NF4*: trains over a 4-bit base. *GGUF*: written and read back. A number is a reason below the
table.

Attention keeps packed rows apart. A mixer with a state (delta rule, state space, convolution) gets
them as arguments where transformers has such for its kernels (`fla`, `causal_conv1d` and
`mamba_ssm`, for GPUs; it refuses them without) and the recorded pass shows that they keep rows
apart. Otherwise that mixer alone gets the rows padded on the right, which no earlier token of a
causal mixer can see, and costs what it costs padded; attention, MLPs and head stay packed.

Checkpoints may be stored in 16 or 32 bit, or in MXFP4, FP8, GPTQ and AWQ (2, 4 or 8 bit), or 4 and
8 bit of bitsandbytes: those are dequantised while they are loaded, one tensor at a time, without a
library of their own, and `model.quantization` (nf4 or int8) quantises them again. Other formats are
refused by name. LoRA leaves the routed experts of DBRX, whose matrices lie in one 2-D parameter, as
they are, and the run says so.
"""


def examine(name: str, *, skip: Collection[str] = ()) -> dict[str, str]:
    """Return a family's findings, without the paths of this machine."""
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scratch = Path(place) / "scratch"
        scratch.mkdir()
        folder = write_family(name, Path(place) / "model")
        found = examine_model(ModelSource(path=str(folder)), scratch, skip=skip)
    return {key: why.replace(f"{folder}", "The folder") for key, why in found.items()}


def is_known(name: str) -> bool:
    """Return False for a family that the installed transformers does not have."""
    return FAMILIES[name].kind in CONFIG_MAPPING


def read_record() -> dict[str, Any]:
    """Return what was recorded."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}


def examine_type(kind: str) -> str:
    """Return why a causal model type does not train with LoRA on packed rows; empty if it does."""
    from studio.backbone import Backbone

    if kind in OTHERS:
        return OTHERS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = random_model(type_config(kind))
        except Exception as error:
            return f"It cannot be built from its configuration alone ({type(error).__name__})."
        made: list[Backbone] = []
        return reason(lambda: made.append(Backbone(model))) or packs(made[0])


def page(record: dict[str, Any]) -> str:
    """Return docs/models.md."""
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    parts = [HEAD + f"\nMade with {versions}.\n"]
    for area, title in AREAS.items():
        names = [name for name, family in FAMILIES.items() if family.area == area]
        parts.append(f"## {title}\n\n{_table(names, record['families'])}\n")
    if types := record.get("types"):
        parts.append(_types(types))
    return "\n".join(parts)


def _table(names: list[str], families: dict[str, dict[str, str]]) -> str:
    reasons: dict[str, int] = {}
    heads = [TITLES.get(name, f"`{name}`") for name in columns()]
    lines = [f"| family | type | {' | '.join(heads)} |", "|---|---|" + "---|" * len(heads)]
    for name in names:
        cells = []
        for column in columns():
            why = families[name][column]
            cells.append(str(reasons.setdefault(why, len(reasons) + 1)) if why else "yes")
        trap = FAMILIES[name].trap
        lines.append(f"| **{name}**: {trap} | `{FAMILIES[name].kind}` | {' | '.join(cells)} |")
    notes = [f"{number}. {why}" for why, number in reasons.items()]
    return "\n".join([*lines, "", *notes])


def _types(types: dict[str, str]) -> str:
    good = [kind for kind, why in types.items() if not why]
    lines = [f"| `{kind}` | {why} |" for kind, why in types.items() if why]
    return "\n".join([
        "## Every causal model type of transformers", "",
        f"{len(good)} of {len(types)} types train with LoRA on packed rows, at sizes made from "
        f"their configuration alone: {', '.join(f'`{kind}`' for kind in good)}.", "",
        "| type | why not |", "|---|---|", *lines, "",
    ])  # fmt: skip


def main(words: list[str]) -> None:
    """Examine some or all families, and all types if asked; record what was found."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as causal

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    record = read_record()
    record["versions"] = {name: version(name) for name in PACKAGES}
    types = "--types" in words
    before = record.get("families", {})
    chosen = [word for word in words if word != "--types"] or [*filter(is_known, FAMILIES)]
    record["families"] = {
        name: examine(name) if name in chosen else before[name] for name in FAMILIES
    }
    _write(record)
    for name in chosen:
        found = record["families"][name]
        print(f"{name:16} {sum(not why for why in found.values())} of {len(found)}", flush=True)
    if types:
        record["types"] = {kind: examine_type(kind) for kind in causal}
        _write(record)


def _write(record: dict[str, Any]) -> None:
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(record), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
