"""Export models and LoRAs to GGUF: write the file, read it back, compare tensors and logits.

What the file holds is decided in `gguf_families.py` (numbers), `gguf_tensors.py` (names, orders)
and `gguf_write.py` (tokenizer, precision). Every tensor is read back and compared; where
transformers has a reader for the family, the file's logits are compared with the model's too. The
new folder holds the `.gguf`, an Ollama `Modelfile`, a model card, and `gguf.json` with the figures.
It appears only when the comparison holds.

A LoRA alone becomes a *GGUF adapter*, for llama.cpp's `--lora` and Ollama's `ADAPTER`. It is
applied to the base's own GGUF file, so the rows of `B` and the columns of `A` follow the order of
that file. It is read back and its changes are compared with the adapter's own.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from studio import atomic
from studio.adapters.card_and_modelfile import modelfile, stack_card, write_card
from studio.adapters.gguf_families import numbers_of
from studio.adapters.gguf_tensors import Places
from studio.adapters.gguf_write import (
    PRECISION_LABELS,
    Precision,
    package,
    read_tensors,
    verify_tensors,
    write,
    write_adapter,
)
from studio.adapters.library import name_of, refuse_place
from studio.adapters.merge import StackRequest, merge, read_certificate
from studio.adapters.verify_logits import (
    CERTIFICATE,
    GGUF_REPORT,
    Comparison,
    compare,
    logits_of,
    write_report,
)
from studio.errors import AdapterError, ModelError
from studio.fields import knob
from studio.home import Home, publishing, slug
from studio.methods.lora import Lora
from studio.methods.method import START
from studio.models.find_model import facts
from studio.names import cleaned
from studio.training.training_events import Event, Finished, Loading

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from studio.backbone.composition import Adapter

    Array = NDArray[Any]
    Halves = dict[str, tuple[Array, Array]]


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
ADAPTER_FILE = "adapter.gguf"
ADAPTER_TOLERANCE = 1e-5  # of the largest change
A_KEY, B_KEY = ".lora_A.weight", ".lora_B.weight"
NOTE = "Use it with a GGUF file of its base: `llama-server -m BASE.gguf --lora adapter.gguf`."


class GgufRequest(StackRequest):
    """Write a model, with a stack folded in, as GGUF."""

    kind: ClassVar[str] = "gguf"
    name: str = knob("", "What to call it.", title="Name", max_length=120)
    precision: Precision = knob(
        "f16", "Precision of the weights; smaller files answer less exactly.", title="Precision",
        labels=PRECISION_LABELS,
    )  # fmt: skip
    out: str = knob("", "The new folder; empty puts it into the home's exports.", max_length=4000)

    def checked(self, home: Home) -> Self:
        """Return it with adapters found and the new folder absolute."""
        package()
        found = self.found(home)
        called = [facts(found.model).path.name, *(name_of(folder) for folder, _ in found.parts)]
        made_up = cleaned(" ".join([*called, self.precision]))
        name = self.name.strip() or made_up
        out = Path(self.out).expanduser().absolute() if self.out.strip() else None
        out = out or home.path / "exports" / slug(f"{name} gguf")
        refuse_place(out)
        return found.model_copy(update={"out": str(out), "name": name})

    def perform(self, home: Home, *_: Any) -> Iterator[Event]:
        """Fold, write, read back."""
        out = Path(self.out)
        with tempfile.TemporaryDirectory(dir=home.state) as place:
            folder = facts(self.model).path
            if self.stack:
                folder = Path(place) / "merged"
                for event in merge(self.model, self.parts, folder, device="cpu"):
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
        stack = [(name_of(path), weight) for path, weight in self.parts]
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


def export_gguf_adapter(
    adapter: Adapter, base: Path, out: Path, *, name: str, tokenizer: Any = None
) -> list[str]:
    """Write `adapter.gguf` and a Modelfile into an existing folder; return notes for the user.

    `base` is the base's folder; `tokenizer` its own with the template of training, if another.

    Raises:
        AdapterError: It is not plain LoRA, or the written file differs.
        ModelError: The base has no entry in the GGUF export.
    """
    package()
    halves, alpha = halves_of(adapter)
    write_adapter(base, out / ADAPTER_FILE, halves, alpha=alpha, name=name)
    _verify(out / ADAPTER_FILE, base, halves)
    text, notes = modelfile(base, "BASE.gguf", adapter=ADAPTER_FILE, tokenizer=tokenizer)
    (out / "Modelfile").write_text(text, encoding="utf-8")
    return [NOTE, *notes]


def halves_of(adapter: Adapter) -> tuple[Halves, float]:
    """Return `A` and `B` by the base tensor's key, and the alpha that scales all of them alike.

    `B A` has the shape in which the base stores the tensor; experts are stacked.

    Raises:
        AdapterError: The adapter is not plain LoRA on linear layers and routed experts.
    """
    method = adapter.method
    why = (
        method.title if not isinstance(method, Lora)
        else "DoRA" if method.use_dora
        else "LoRA of embeddings" if {s.kind for s in adapter.sites} - {"linear", "experts"}
        else "modules trained in full" if adapter.beside
        else "LoRA with biases" if any("lora_bias" in p for p in adapter.params.values())
        else ""
    )  # fmt: skip
    if why or not isinstance(method, Lora):
        raise AdapterError(f"A GGUF adapter cannot hold {why}: export it merged (gguf) instead.")
    experts = [site for site in adapter.sites if site.num_experts]
    linears = [site for site in adapter.sites if not site.num_experts]
    tensors = {
        key.removeprefix(START): tensor.detach().float().cpu().numpy()
        for key, tensor in method.to_tensors(linears, adapter.params).items()
    }
    keys = [key.removesuffix(A_KEY) for key in tensors if key.endswith(A_KEY)]
    halves = {f"{key}.weight": (tensors[key + A_KEY], tensors[key + B_KEY]) for key in keys}
    for site in experts:
        down, up = (
            adapter.params[site.key][name].detach().float().cpu().numpy()
            for name in ("lora_A", "lora_B")
        )
        turned = up.swapaxes(-1, -2), down.swapaxes(-1, -2)
        halves[site.key] = turned if site.transposed else (down, up)
    alpha = float(method.lora_alpha)
    # GGUF scales by alpha / r; another scale, as in rsLoRA, goes into B.
    for key, (down, up) in halves.items():
        halves[key] = (down, up * (method.scaling * down.shape[-2] / alpha))
    return halves, alpha


def _verify(file: Path, base: Path, halves: Halves) -> None:
    """Compare the changes in the file with the adapter's own.

    Raises:
        AdapterError: They differ.
    """
    import numpy as np

    places = Places(numbers_of(base))
    there, worst = read_tensors(file), 0.0
    for key, (down, up) in halves.items():
        change = up @ down
        found = places.of(key, change.shape)
        if not found:
            raise ModelError(f"{key} is not in the base's GGUF file: export it merged instead.")
        for place in found:
            wanted = place.take(change)
            a, b = (there.pop(f"{place.name}.lora_{half}") for half in "ab")
            error = float(np.abs(b @ a - wanted).max()) / max(float(np.abs(wanted).max()), 1e-9)
            worst = max(worst, error)
    if worst > ADAPTER_TOLERANCE or there:
        raise AdapterError(f"The written GGUF adapter differs from the adapter ({worst:.2g}).")
