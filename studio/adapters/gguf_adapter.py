"""Export a LoRA as a GGUF adapter: for llama.cpp's `--lora` and Ollama's `ADAPTER`.

The file is applied to the base's own GGUF file, so the rows of `B` and the columns of `A` follow
the order of that file. It is read back and its changes are compared with the adapter's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.adapters.gguf_families import family_of, numbers_of
from studio.adapters.gguf_tensors import Places
from studio.adapters.gguf_write import package, read_tensors, write_adapter
from studio.adapters.ollama import modelfile
from studio.errors import AdapterError, ModelError
from studio.methods.lora import Lora
from studio.methods.method import START

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from studio.backbone.adapter import Adapter

    Array = NDArray[Any]
    Halves = dict[str, tuple[Array, Array]]

FILE = "adapter.gguf"
TOLERANCE = 1e-5  # of the largest change
A_KEY, B_KEY = ".lora_A.weight", ".lora_B.weight"
NOTE = "Use it with a GGUF file of its base: `llama-server -m BASE.gguf --lora adapter.gguf`."


def export_gguf_adapter(
    adapter: Adapter, base: Path, out: Path, *, name: str, tokenizer: Any = None
) -> list[str]:
    """Write `adapter.gguf` and a Modelfile into an existing folder; return notes for the user.

    Args:
        adapter: The loaded adapter.
        base: The folder of its base model.
        out: The folder.
        name: The adapter's name.
        tokenizer: The base's tokenizer with the template of training, if that is another.

    Raises:
        AdapterError: It is not plain LoRA, or the written file differs.
        ModelError: The base has no entry in the GGUF export.
    """
    package()
    halves, alpha = halves_of(adapter)
    write_adapter(base, out / FILE, halves, alpha=alpha, name=name)
    _verify(out / FILE, base, halves)
    text, notes = modelfile(base, "BASE.gguf", adapter=FILE, tokenizer=tokenizer)
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

    numbers = numbers_of(base)
    places = Places(numbers, family_of(numbers["architecture"]))
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
    if worst > TOLERANCE or there:
        raise AdapterError(f"The written GGUF adapter differs from the adapter ({worst:.2g}).")
