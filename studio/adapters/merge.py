"""Merging a stack into a model of its own, with a certificate that the merge is right.

What can be folded is folded (`backbone/fold.py`), in float32 and then cast; what cannot is
named and stays an adapter. Before the folder appears under its name, a fresh process reloads the
written files and compares logits with the live stack: an error above the tolerance fails the merge.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.adapters.card import stack_card, write_card
from studio.adapters.library import name_of, refuse_place
from studio.errors import AdapterError, MethodError
from studio.home import Home, folder_hash, publishing, slug
from studio.spec import ModelSource
from studio.training.events import Event, Finished, Loading

if TYPE_CHECKING:
    from torch import Tensor

    from studio.backbone import Backbone
    from studio.models.loading import Loaded

CERTIFICATE = "certificate.json"
VERIFY_SECONDS = 1800
PROMPTS = (
    "Once upon a time there was", "The capital of France is", "def add(a, b):", "2 + 2 =",
    "Write a short poem about the sea.", "¿Qué hora es? 你好 👋",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """What the fresh process found, and of what."""

    max_error: float
    mean_error: float
    tokens_changed: int
    tokens_compared: int
    tolerance: float
    base_precision: str
    merged_precision: str
    base_fingerprint: str
    merged: tuple[str, ...]
    left: tuple[str, ...]


class CertificateError(AdapterError):
    """The written model does not answer like the live stack."""

    kind = "certificate"


def merge(
    source: ModelSource,
    stack: Sequence[tuple[Path, float]],
    out: Path,
    *,
    device: str = "auto",
) -> Iterator[Event]:
    """Merge adapters into a new model folder; yields what is being done, then `Finished`.

    Args:
        source: The base. A base in nf4 is dequantised and merged into 16 or 32 bit.
        stack: Adapter folders with weights, in order.
        out: The new folder; it appears only when its certificate holds.
        device: Where to compute.

    Raises:
        MethodError: Nothing in the stack can be folded.
        CertificateError: The reloaded files differ from the live stack.
    """
    import time

    from studio.backbone import Backbone
    from studio.backbone.fold import fold
    from studio.models.loading import load

    started = time.monotonic()
    refuse_place(out)
    yield Loading(text="Loading the base")
    loaded = load(source, device)
    backbone = Backbone(loaded.model)
    names = _load_stack(backbone, stack)
    live = tuple(zip(names, (weight for _, weight in stack), strict=True))
    yield Loading(text="Asking the live stack")
    backbone.use(live)
    ids, logits = reference_logits(backbone, loaded.tokenizer)
    yield Loading(text="Folding into the weights")
    folded = fold(backbone, live)
    if not folded.merged:
        raise MethodError(
            f"Nothing in this stack can be merged: {', '.join(folded.left)} "
            "cannot be folded into weights. Chat with it as an adapter instead."
        )
    left = [(stack[names.index(n)][0], stack[names.index(n)][1]) for n in folded.left]
    with publishing(out) as temporary:
        yield Loading(text="Writing the merged model")
        precision = _write_model(loaded, source, folded.tensors, temporary)
        yield Loading(text="Reloading it in a fresh process")
        found = _verify(temporary, left, ids, logits, fp32=precision == "float32")
        certificate = Certificate(
            **found,
            base_precision="nf4" if source.quantization == "nf4" else _name(loaded.dtype),
            merged_precision=precision,
            base_fingerprint=loaded.facts.fingerprint,
            merged=tuple(name_of(stack[names.index(n)][0]) for n in folded.merged),
            left=tuple(str(path) for path, _ in left),
        )
        (temporary / CERTIFICATE).write_text(json.dumps(asdict(certificate), indent=1))
        write_card(temporary, _card(out.name, source, stack, certificate))
        judge(certificate)
    yield Finished(
        reason="completed", adapter=str(out), first_loss=None, last_loss=None, eval_loss=None,
        seconds=time.monotonic() - started,
    )  # fmt: skip


def _card(
    name: str, source: ModelSource, stack: Sequence[tuple[Path, float]], found: Certificate
) -> str:
    rows = {
        "Precision": found.merged_precision,
        "Checked": "reloaded in a fresh process, its logits differ from the base with its adapters "
        f"by at most {found.max_error:.2g}, and {found.tokens_changed} of "
        f"{found.tokens_compared} likeliest tokens changed",
        "Not folded in": ", ".join(name_of(Path(path)) for path in found.left),
    }
    parts = [(name_of(path), weight) for path, weight in stack]
    return stack_card(name, source.path, parts, rows, library="transformers")


def read_certificate(folder: Path) -> dict[str, Any]:
    """Return a merged model's certificate with the hash of its files; empty where it has none."""
    try:
        values = json.loads((folder / CERTIFICATE).read_text(encoding="utf-8"))
        return {**values, "files": folder_hash(folder)}
    except (OSError, ValueError):
        return {}


def judge(certificate: Certificate) -> None:
    """Raise if the error is above the tolerance.

    Raises:
        CertificateError: Says by how much, and that nothing was kept.
    """
    if not certificate.max_error <= certificate.tolerance:  # also catches NaN
        raise CertificateError(
            f"The merged model differs from the live stack by {certificate.max_error:.3g} in its "
            f"logits (allowed: {certificate.tolerance:.3g}; {certificate.tokens_changed} of "
            f"{certificate.tokens_compared} tokens changed). It was not kept."
        )


def compare(ours: Tensor, theirs: Tensor, *, fp32: bool) -> dict[str, Any]:
    """Compare logits `(N, V)`; the tolerance is 1e-4 in float32, 2 % of their size below."""
    gap = (ours.float() - theirs.float()).abs()
    scale = max(1.0, float(theirs.float().abs().max()))
    return {
        "max_error": float(gap.max()),
        "mean_error": float(gap.mean()),
        "tokens_changed": int((ours.argmax(-1) != theirs.argmax(-1)).sum()),
        "tokens_compared": len(theirs),
        "tolerance": 1e-4 if fp32 else 0.02 * scale,
    }


def reference_logits(backbone: Backbone, tokenizer: Any) -> tuple[list[list[int]], Tensor]:
    """Return the fixed prompts' ids and the logits at all their positions."""
    import torch

    room = backbone.model.config.get_text_config().max_position_embeddings // 2
    ids = [tokenizer(text)["input_ids"][:room] or [0] for text in PROMPTS]
    return ids, logits_of(backbone, [torch.tensor(row) for row in ids])


def logits_of(backbone: Backbone, rows: Sequence[Tensor]) -> Tensor:
    """Return the logits of every row, one after the other, unbatched."""
    import torch

    device = backbone.model.device
    with torch.no_grad():
        found = [backbone.model(row[None].to(device)).logits[0].float().cpu() for row in rows]
    return torch.cat(found)


def _load_stack(backbone: Backbone, stack: Sequence[tuple[Path, float]]) -> list[str]:
    names = []
    for place, (path, _) in enumerate(stack):
        names.append(f"{place}-{slug(path.name)}")
        backbone.load(names[-1], path)
    return names


def _write_model(
    loaded: Loaded, source: ModelSource, tensors: dict[str, Tensor], folder: Path
) -> str:
    """Write base weights with the folded tensors in their place; returns the precision."""
    import torch

    model = loaded.model
    changed = dict(tensors)
    if source.quantization == "nf4":
        changed = {**_dequantised(loaded), **changed}
        plain = source.model_copy(update={"quantization": "none"})
        from studio.models.loading import load

        model = load(plain, str(loaded.device)).model
    with torch.no_grad():
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for name, tensor in changed.items():
            state[name] = tensor.to(state[name].dtype)
    _untie(model, state, set(tensors))
    model.save_pretrained(folder, state_dict=state)
    loaded.tokenizer.save_pretrained(folder)
    return _name(model.dtype)


def _untie(model: Any, state: dict[str, Tensor], changed: set[str]) -> None:
    """A head that shares its matrix with the embeddings gets its own once it is changed."""
    head = model.get_output_embeddings()
    name = next((n for n, m in model.named_modules() if m is head), "")
    if f"{name}.weight" in changed and model.config.tie_word_embeddings:
        model.config.tie_word_embeddings = False
        model._tied_weights_keys = None


def _dequantised(loaded: Loaded) -> dict[str, Tensor]:
    from studio.backbone import Anatomy
    from studio.backbone.sites import dense_weight

    sites = Anatomy(loaded.model).all_linears()
    return {f"{site.key}.weight": dense_weight(site) for site in sites}


def _verify(
    folder: Path,
    left: Sequence[tuple[Path, float]],
    ids: list[list[int]],
    logits: Tensor,
    *,
    fp32: bool,
) -> dict[str, Any]:
    """Reload `folder` in a fresh process and compare."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as scratch:
        reference = Path(scratch) / "reference.safetensors"
        plan = {"ids": ids, "left": [[str(path), weight] for path, weight in left], "fp32": fp32}
        save_file({"logits": logits.contiguous()}, reference, {"plan": json.dumps(plan)})
        done = subprocess.run(
            [sys.executable, "-m", "studio.adapters.verify", str(folder), str(reference)],
            capture_output=True, text=True, timeout=VERIFY_SECONDS, check=False,
        )  # fmt: skip
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise CertificateError(
            "The written model could not be reloaded to check it, so it was not kept: "
            f"{(done.stderr.strip().splitlines() or ['no output'])[-1][:300]}"
        ) from None
    if "error" in found:
        raise CertificateError(f"The written model is broken and was not kept: {found['error']}")
    return dict(found)


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def merged_folder(home: Home, name: str) -> Path:
    """Where a merged model of this name lives."""
    return home.models / slug(name)
