"""Verify written files: compare their logits with those of what they were made from.

Merge, export and GGUF share this comparison and write its figures as JSON into the new folder.
`python -m studio.adapters.verify_logits OUT REFERENCE` is the fresh process behind a merge's
certificate: it shares nothing with the process that wrote the files, loads them as a user would,
adds the adapters that could not be folded, and prints one line of JSON.

Shapes: `N tokens of all texts, V vocabulary`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.errors import AdapterError, StudioError

if TYPE_CHECKING:
    from torch import Tensor

CERTIFICATE, EXPORT_REPORT, GGUF_REPORT = "certificate.json", "export.json", "gguf.json"
PROMPTS = (
    "Once upon a time there was", "The capital of France is", "def add(a, b):", "2 + 2 =",
    "Write a short poem about the sea.", "¿Qué hora es? 你好 👋",
)  # fmt: skip


class VerificationError(AdapterError):
    """The written files do not answer like what they were made from."""

    kind = "certificate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Differences between two sets of logits at the same positions."""

    max_error: float
    mean_error: float
    tokens_changed: int
    tokens_compared: int
    tolerance: float

    def summary(self) -> str:
        """Return the figures in words, for model cards and errors."""
        return (
            f"largest logit error {self.max_error:.2g} (allowed {self.tolerance:.2g}), "
            f"{self.tokens_changed} of {self.tokens_compared} most likely tokens changed"
        )

    def require(self, written: str, source: str) -> None:
        """Raise unless the largest error is within the tolerance.

        Raises:
            VerificationError: Gives the figures.
        """
        if not self.max_error <= self.tolerance:  # also catches NaN
            raise VerificationError(
                f"The {written} differs from the {source}: {self.summary()}. It was not kept."
            )


def compare(
    ours_NV: Tensor, theirs_NV: Tensor, *, tolerance: float, relative: bool = True
) -> Comparison:
    """Compare the logits of written files with those of what they were made from.

    A relative tolerance is multiplied by the largest logit (at least 1).
    """
    gap_NV = (ours_NV.float() - theirs_NV.float()).abs()
    scale = max(1.0, float(theirs_NV.float().abs().max())) if relative else 1.0
    return Comparison(
        max_error=float(gap_NV.max()),
        mean_error=float(gap_NV.mean()),
        tokens_changed=int((ours_NV.argmax(-1) != theirs_NV.argmax(-1)).sum()),
        tokens_compared=len(theirs_NV),
        tolerance=tolerance * scale,
    )


def prompt_ids(model: Any, tokenizer: Any, *rendered: list[int]) -> list[list[int]]:
    """Return the token ids of the fixed prompts and of rendered conversations.

    Each is cut to half of the model's context.
    """
    longest = model.config.get_text_config().max_position_embeddings // 2
    rows = [*(tokenizer(text)["input_ids"] for text in PROMPTS), *rendered]
    return [row[:longest] or [0] for row in rows]


def logits_of(model: Any, rows: Iterable[Sequence[int]]) -> Tensor:
    """Return the float32 logits `(N, V)` to verify of all rows, each computed alone."""
    import torch

    with torch.no_grad():
        return torch.cat([
            model(input_ids=torch.tensor([row], device=model.device)).logits[0].float().cpu()
            for row in rows
        ])  # fmt: skip


def write_report(folder: Path, name: str, values: dict[str, Any]) -> None:
    """Write what was measured beside the files."""
    (folder / name).write_text(json.dumps(values, indent=1), encoding="utf-8")


def verify(folder: Path, reference: Path) -> Comparison:
    """Compare the model in `folder` with the stack's logits in `reference`.

    Raises:
        StudioError: The folder cannot be loaded, or renders a conversation to other tokens.
    """
    from safetensors import safe_open

    from studio.backbone import Backbone
    from studio.data.template.choose_template import conversation_ids
    from studio.models.loading import load
    from studio.spec import ModelSource

    with safe_open(reference, framework="pt") as file:
        plan = json.loads(file.metadata()["plan"])
        logits_NV = file.get_tensor("logits")
    source = ModelSource(path=str(folder), dtype="float32" if plan["fp32"] else "auto")
    loaded = load(source, "cpu")
    if conversation_ids(loaded.tokenizer) != plan["conversation"]:
        raise AdapterError("its chat template renders a conversation to other tokens")
    backbone = Backbone(loaded.model)
    backbone.use(backbone.load_stack(("left", Path(path), weight) for path, weight in plan["left"]))
    # A recurrence multiplies the rounding of a merged weight: 1.8e-4 was seen, 1.1e-4 of the
    # largest logit in a mixture on a processor with AVX2 alone.
    drifts = plan["fp32"] and any(
        block.kind == "mixer" for block in backbone.anatomy.recording.blocks
    )
    return compare(
        logits_of(backbone.model, plan["ids"]), logits_NV,
        tolerance=(3e-4 if drifts else 1e-4) if plan["fp32"] else 0.02,
        relative=not plan["fp32"] or drifts,
    )  # fmt: skip


def main(folder: str, reference: str) -> None:
    """Print the comparison of a folder with a reference, or why there is none."""
    try:
        print(json.dumps(asdict(verify(Path(folder), Path(reference)))))
    except StudioError as error:
        print(json.dumps({"error": error.text}))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main(*sys.argv[1:])
