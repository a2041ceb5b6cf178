"""Measure the capabilities of each method on a tiny model.

`python -m tests.method_capabilities` writes `studio/methods/capabilities.json`, which the
form, `studio methods` and the README read without torch; a test probes again and compares.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from studio.backbone.backbone import Backbone
from studio.backbone.dense_weights import fold
from studio.backbone.equalities import (
    attach_random,
    require_checkpointing,
    require_packing,
    require_training,
)
from studio.methods import Method, methods

CAPABILITIES = Path(__file__).parents[1] / "studio/methods/capabilities.json"
IDS = torch.arange(14).reshape(2, 7) % 32


def probe(method: Method) -> dict[str, bool]:
    """Return the capabilities of a method; a check that fails in any way is False."""
    checks: dict[str, Callable[[Method], bool]] = {
        "mergeable": _mergeable, "stackable": _stackable, "per_row": _per_row,
        "packable": _packable, "checkpointable": _checkpointable, "quantizable": _quantizable,
    }  # fmt: skip
    results = {}
    for name, check in checks.items():
        try:
            results[name] = bool(check(method))
        except Exception:
            results[name] = False
    return results


def _trained(method: Method, *names: str) -> Backbone:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    backbone = Backbone(Qwen2ForCausalLM(config).float())
    for seed, name in enumerate(names or ("a",)):
        attach_random(backbone, name, method, seed=seed)
    return backbone


def _logits(backbone: Backbone, *stack: tuple[str, float]) -> Tensor:
    backbone.use(stack)
    with torch.no_grad():
        return backbone.model(IDS).logits


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-4, rtol=1e-4)


def _mergeable(method: Method) -> bool:
    backbone = _trained(method)
    live, folded = _logits(backbone, ("a", 1.0)), fold(backbone, (("a", 1.0),))
    if folded.left:
        return False
    backbone.use([])
    backbone.model.load_state_dict(folded.tensors, strict=False)
    with torch.no_grad():
        return _close(backbone.model(IDS).logits, live)


def _stackable(method: Method) -> bool:
    backbone = _trained(method, "a", "b")
    both, one = _logits(backbone, ("a", 1.0), ("b", 0.5)), _logits(backbone, ("a", 1.0))
    return not _close(both, one) and not _close(both, _logits(backbone, ("b", 0.5)))


def _per_row(method: Method) -> bool:
    backbone = _trained(method)
    tuned, base = _logits(backbone, ("a", 1.0)), _logits(backbone)
    if _close(tuned, base):
        return False
    expected = torch.stack([tuned[0], base[1]])
    backbone.use_rows([[("a", 1.0)], []])
    with torch.no_grad():
        return _close(backbone.model(IDS).logits, expected)


def _packable(method: Method) -> bool:
    require_packing(_trained(method), "a", gradients=False)
    return True


def _checkpointable(method: Method) -> bool:
    require_checkpointing(_trained(method), "a")
    return True


def _quantizable(method: Method) -> bool:
    """Return True if it trains over frozen weights, since 4-bit ones have no gradient."""
    require_training(_trained(method), "a")
    return not method.trains_base


def table() -> dict[str, dict[str, bool]]:
    """Return the capabilities of every method, with a rank that fits the tiny model."""
    return {
        name: probe(cls(**({"r": 4} if "r" in cls.model_fields else {})))
        for name, cls in methods().items()
    }


if __name__ == "__main__":
    CAPABILITIES.write_text(json.dumps(table(), indent=1) + "\n", encoding="utf-8")
