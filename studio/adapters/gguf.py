"""Export to GGUF: write the file, read it back, compare tensors and logits.

What the file holds is decided in `gguf_families.py` (numbers), `gguf_tensors.py` (names, orders),
`gguf_tokenizer.py` and `gguf_write.py`. Every tensor is read back and compared; where transformers
has a reader for the family, the file's logits are compared with the model's too.

The new folder holds the `.gguf`, an Ollama `Modelfile`, a model card, and `gguf.json` with the
figures. It appears only when the comparison holds.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

from studio import atomic
from studio.adapter_stack import Stack
from studio.adapters.adapter_lineage import base_of, resolve_stack
from studio.adapters.adapter_requests import BASE, OWN_BASE, STACK
from studio.adapters.gguf_families import numbers_of
from studio.adapters.gguf_write import PRECISION_LABELS, Precision, package, verify_tensors, write
from studio.adapters.library import name_of, refuse_place
from studio.adapters.merge import merge, read_certificate
from studio.adapters.model_card import stack_card, write_card
from studio.adapters.ollama import modelfile
from studio.adapters.verify_logits import (
    CERTIFICATE,
    GGUF_REPORT,
    Comparison,
    compare,
    logits_of,
    write_report,
)
from studio.errors import AdapterError
from studio.fields import knob
from studio.home import Home, publishing, slug
from studio.job_request import Request
from studio.models.find_model import facts
from studio.names import cleaned
from studio.spec import ModelSource
from studio.training.training_events import Event, Finished, Loading

logger = logging.getLogger(__name__)

# Largest logit error relative to the largest logit, from rounding the weights.
TOLERANCES: dict[Precision, float] = {
    "f32": 1e-5, "f16": 5e-3, "bf16": 3e-2, "q8_0": 6e-2, "q5_1": 0.3, "q4_0": 0.6,
}  # fmt: skip
READERS = ("llama", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3", "lfm2", "gpt-oss")
"""Architectures whose files transformers reads as they are meant."""
UNREAD = "Checked tensor by tensor: transformers has no reader for this kind of file."
RETOKENISED = (
    "GGUF's rule for this kind of tokenizer splits some texts differently: answers may differ "
    "slightly."
)
TEXTS = (
    "Once upon a time there was a little fox.", "What is the capital of France?", "2 + 2 = 4",
    "She said: “Don't!” – twice.", "¿Qué hora es?",
)  # fmt: skip


class GgufRequest(Request):
    """Write a model, with a stack folded in, as GGUF."""

    kind: ClassVar[str] = "gguf"
    name: str = knob("", "What to call it.", title="Name", max_length=120)
    stack: Stack = knob((), "Adapters in stack order; repeat for several.", **STACK)
    model: ModelSource = knob(ModelSource(path=""), OWN_BASE, **BASE)
    precision: Precision = knob(
        "f16", "Precision of the weights; smaller files answer less exactly.", title="Precision",
        labels=PRECISION_LABELS,
    )  # fmt: skip
    out: str = knob("", "The new folder; empty puts it into the home's exports.", max_length=4000)

    def checked(self, home: Home) -> Self:
        """Return it with adapters found and the new folder absolute."""
        package()
        stack = resolve_stack(home, self.stack)
        known = facts(model := base_of(self.model, stack))
        called = [name_of(Path(item.name)) for item in stack]
        made_up = cleaned(" ".join([known.path.name, *called, self.precision]))
        name = self.name.strip() or made_up
        out = Path(self.out).expanduser().absolute() if self.out.strip() else None
        out = out or home.path / "exports" / slug(f"{name} gguf")
        refuse_place(out)
        return self.model_copy(
            update={"stack": stack, "model": model, "out": str(out), "name": name}
        )

    def perform(self, home: Home, *_: Any) -> Iterator[Event]:
        """Fold, write, read back."""
        out = Path(self.out)
        with tempfile.TemporaryDirectory(dir=home.state) as place:
            folder = facts(self.model).path
            if self.stack:
                folder = Path(place) / "merged"
                stack = [(Path(item.name), item.weight) for item in self.stack]
                for event in merge(self.model, stack, folder, device="cpu"):
                    if not isinstance(event, Finished):
                        yield event
                _refuse_leftovers(folder)
            with publishing(out) as temporary:
                yield Loading(text="Writing the file")
                file = temporary / f"{slug(self.name)}.gguf"
                notes = write(folder, file, precision=self.precision, name=self.name)
                yield Loading(text="Reading it back")
                found, differ = verify_gguf(folder, file, self.precision)
                text, more = modelfile(folder, f"./{file.name}")
                (temporary / "Modelfile").write_text(text, "utf-8")
                notes += [*read_certificate(folder).get("notes", ()), *more]
                notes += [*([RETOKENISED] if differ else []), *([] if found else [UNREAD])]
                report = {
                    "precision": self.precision,
                    **(asdict(found) if found else {"max_error": None}),
                    "texts_tokenised_differently": list(differ),
                    "notes": notes,
                }
                write_report(temporary, GGUF_REPORT, report)
                write_card(temporary, self.card(found))
                if found:
                    found.require("GGUF file", "model it was made from")
        yield Finished(adapter=str(out), facts={"gguf": report})

    def outcome(self, home: Home, run_dir: Path, result: dict[str, Any]) -> dict[str, Any]:
        """Return the folder and what reading it back measured."""
        return {"out": self.out, "check": atomic.read_object(Path(self.out) / GGUF_REPORT)}

    def card(self, found: Comparison | None) -> str:
        """Return the model card: what it is made of, and how exact the file is."""
        rows = {
            "Precision": self.precision,
            "Checked": "every tensor read back and compared with the model it was made from; "
            + (f"logits too: {found.summary()}" if found else UNREAD),
            "Use": "`ollama create NAME -f Modelfile`, or `llama-server -m FILE.gguf`",
            "Smaller files": "`llama-quantize FILE.gguf SMALL.gguf Q4_K_M`, of llama.cpp",
        }
        stack = [(name_of(Path(item.name)), item.weight) for item in self.stack]
        return stack_card(self.name, self.model.path, stack, rows, library="gguf")


def verify_gguf(
    folder: Path, file: Path, precision: Precision
) -> tuple[Comparison | None, tuple[str, ...]]:
    """Compare the file's tensors with the folder's, and where transformers reads it its logits.

    Returns:
        The comparison of logits in float32 (None where transformers has no reader), and the texts
        that are tokenised differently.

    Raises:
        AdapterError: A tensor differs.
    """
    import torch
    import transformers

    verify_tensors(file, folder, precision)
    read = _read_back(file)
    if read is None:
        return None, ()
    numbers = numbers_of(folder)
    model = getattr(transformers, numbers["architecture"]).from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    if not _alike(read, model):
        return None, ()
    old = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    ids = [old(text)["input_ids"] for text in TEXTS]
    # The reader does not know sliding windows: compare within the smallest.
    rows = [row[: numbers.get("sliding_window") or None] for row in ids]
    wanted = logits_of(model, rows)
    del model
    ours = logits_of(read, rows)[:, : wanted.shape[-1]]
    new = transformers.AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name, trust_remote_code=False
    )
    differ = tuple(
        text for text, row in zip(TEXTS, ids, strict=True) if new(text)["input_ids"] != row
    )
    return compare(ours, wanted, tolerance=TOLERANCES[precision]), differ


def _alike(read: Any, model: Any) -> bool:
    """Return False if the reader made a model of another shape, or with numbers of its own."""
    configs = [each.config.get_text_config() for each in (read, model)]
    for key in ("query_pre_attn_scalar", "layer_types", "head_dim", "norm_topk_prob"):
        one, other = (getattr(config, key, None) for config in configs)
        if one is not None and other is not None and one != other:
            return False
    shapes = [{k: tuple(t.shape) for k, t in each.named_parameters()} for each in (read, model)]
    return shapes[0] == shapes[1]


def _read_back(file: Path) -> Any:
    """Load the file with transformers; None where it has no reader, or one for other sizes."""
    import torch
    from transformers import AutoModelForCausalLM

    field = package().GGUFReader(file).fields["general.architecture"]
    if str(bytes(field.parts[field.data[0]]), "utf-8") not in READERS:
        return None
    try:
        return AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
        )
    except (RuntimeError, ValueError, TypeError, AssertionError, KeyError, ImportError) as error:
        logger.info("transformers cannot read %s: %s", file.name, error)
        return None


def _refuse_leftovers(folder: Path) -> None:
    if left := atomic.read_object(folder / CERTIFICATE).get("left"):
        names = ", ".join(name_of(Path(part)) for part in left)
        raise AdapterError(
            f"{names} cannot be folded into weights, so it cannot be in a GGUF file: leave it out."
        )
