"""Equalities that must hold on every model: two ways to compute the same logits and gradients.

Each function computes both ways on a short random prompt and raises `Unequal` where they differ by
more than a tolerance relative to the largest value. `studio doctor --model`, the support matrix and
its test run the same functions.

Shapes: `T tokens of all rows, V vocabulary`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from studio.backbone.backbone import Backbone
from studio.errors import StudioError
from studio.methods.method import Method, Phase

LENGTHS = (11, 5, 9, 14)
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 2e-2}
NOISE = 0.1


class Unequal(StudioError):
    """Two ways to compute the same values gave different ones."""

    kind = "equality"


@dataclass(frozen=True, slots=True)
class Passed:
    """Logits `(T, V)` of one pass, and the gradients of the adapter's tensors by name."""

    logits_TV: Tensor
    gradients: dict[str, Tensor]


def prompt_rows(backbone: Backbone, lengths: Sequence[int] = LENGTHS) -> list[Tensor]:
    """Return rows of random token ids, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    size = backbone.model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(min(3, size - 1), max(4, size - 12), (sum(lengths),), generator=generator)
    return list(ids.to(backbone.model.device).split(list(lengths)))


def attach_random(backbone: Backbone, name: str, method: Method, *, seed: int = 1) -> None:
    """Attach an adapter whose every tensor matters, as after training."""
    adapter = backbone.attach(name, method, seed=seed, tokenize=lambda text: [3, 4, 5])
    if method.phase is Phase.WEIGHTS:
        return
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * NOISE
            parameter.add_(noise.to(parameter.device, parameter.dtype))


def require_equal(
    ours: Tensor, theirs: Tensor, what: str, *, smallest: float = 0.0, slack: float = 1.0
) -> None:
    """Compare relative to the largest value, or to `smallest` if that is larger.

    Raises:
        Unequal: They differ by more than the tolerance of their precision.
    """
    tolerance = TOLERANCES.get(ours.dtype, 2e-2)
    scale = max(float(theirs.float().abs().max()), smallest) or 1.0
    error = float((ours.float() - theirs.float()).abs().max()) / scale
    if not error <= slack * tolerance:  # also catches NaN
        raise Unequal(f"{what} differ.")


def require_packing(backbone: Backbone, name: str, *, gradients: bool = True) -> None:
    """Check that packed rows give the logits and gradients of each row alone."""
    packed = _passed(backbone, name, _packed, gradients)
    alone = _passed(backbone, name, separate, gradients)
    require_equal(packed.logits_TV, alone.logits_TV, "Logits of packed and separate rows")
    _require_gradients(packed, alone, "Gradients of packed and separate rows")


def require_checkpointing(backbone: Backbone, name: str) -> None:
    """Check that recomputed activations give the same logits and gradients."""
    plain = _passed(backbone, name, _packed, True)
    backbone.checkpointing(True)
    try:
        again = _passed(backbone, name, _packed, True)
    finally:
        backbone.checkpointing(False)
    require_equal(again.logits_TV, plain.logits_TV, "Logits with and without checkpointing")
    _require_gradients(again, plain, "Gradients with and without checkpointing")


def require_training(backbone: Backbone, name: str) -> None:
    """Check that a training step moves the logits and reaches every tensor of the adapter.

    Full fine-tuning must reach some: towers and layers that a text does not use get no gradient.
    """
    passed = _passed(backbone, name, _packed, True)
    every = {key for key, _ in backbone.adapters[name].named_parameters()}
    reached = {key for key, tensor in passed.gradients.items() if tensor.abs().max() > 0}
    if backbone.adapters[name].method.trains_base:
        every &= reached
    if not reached or every - reached:
        first = min(every - reached or every, default="no tensor")
        raise Unequal(f"Training gives no gradient to {first}.")
    if not passed.logits_TV.isfinite().all():
        raise Unequal("Training gives logits that are not finite.")


def require_cache(
    backbone: Backbone, name: str, decode: Callable[[list[int], int], Tensor]
) -> None:
    """Check that prefill and single steps give the logits of one pass, to twice the tolerance.

    A recurrence in chunks and in single steps rounds in other places, and a model that loops over
    its layers amplifies that: HRM turns one rounding of its embeddings (6e-8) into 8e-5.

    `decode` returns `(T, V)` logits after the first tokens and after each of the others.
    """
    backbone.use([(name, 1.0)])
    (row,) = prompt_rows(backbone, (19,))
    start = 12
    with backbone.evaluating():
        cached = decode(row.tolist(), start)
        whole = backbone.model(input_ids=row[None], use_cache=False).logits[0, start - 1 :]
    require_equal(cached, whole, "Logits with and without a cache", slack=2)


def require_lanes(
    backbone: Backbone,
    stacks: Sequence[Sequence[tuple[str, float]]],
    answer: Callable[[list[list[int]]], Tensor],
) -> None:
    """Check that rows with a stack of their own answer together, and packed, as each alone.

    `answer` returns the logits of a batch of prompts, rows first, the first after each prompt.
    """
    lengths = (7, 12, 3, 9)[: len(stacks)]
    prompts = prompt_rows(backbone, lengths)
    rows = [row.tolist() for row in prompts]
    with backbone.evaluating():
        backbone.use_rows(stacks)
        ends_B = torch.tensor(lengths, device=prompts[0].device).cumsum(0) - 1
        packed_BV = backbone.packed_logits(torch.cat(prompts), lengths, ends_B)
        together = answer(rows)
        for row, stack in enumerate(stacks):
            backbone.use_rows([stack])
            alone = answer([rows[row]])
            require_equal(together[row], alone[0], "Logits of a lane in company and alone")
            require_equal(packed_BV[row], alone[0, 0], "Logits of a lane packed and alone")
    backbone.use([])


def _packed(backbone: Backbone, rows: list[Tensor]) -> Tensor:
    ids_T = torch.cat(rows)
    keep = torch.arange(len(ids_T), device=ids_T.device)
    return backbone.packed_logits(ids_T, [len(row) for row in rows], keep)


def separate(backbone: Backbone, rows: list[Tensor]) -> Tensor:
    """Return the logits `(T, V)` of rows, each computed alone."""
    return torch.cat([
        backbone.model(input_ids=row[None], use_cache=False).logits[0] for row in rows
    ])  # fmt: skip


def _passed(
    backbone: Backbone,
    name: str,
    way: Callable[[Backbone, list[Tensor]], Tensor],
    gradients: bool,
) -> Passed:
    """Return the logits of one pass, and the gradients of a fixed random loss."""
    backbone.use([(name, 1.0)])
    rows = prompt_rows(backbone)
    if not gradients:
        with backbone.evaluating():
            return Passed(way(backbone, rows).detach(), {})
    backbone.train(name)
    try:
        logits_TV = way(backbone, rows)
        weights_TV = torch.randn(logits_TV.shape, generator=torch.Generator().manual_seed(2))
        loss = (logits_TV.float() * weights_TV.to(logits_TV.device)).mean()
        named = backbone.adapters[name].named_parameters()
        found = torch.autograd.grad(loss, [tensor for _, tensor in named], allow_unused=True)
    finally:
        backbone.eval()
    pairs = zip(named, found, strict=True)
    return Passed(logits_TV.detach(), {key: grad for (key, _), grad in pairs if grad is not None})


def _require_gradients(ours: Passed, theirs: Passed, what: str) -> None:
    if ours.gradients.keys() != theirs.gradients.keys():
        missing = min(ours.gradients.keys() ^ theirs.gradients.keys())
        raise Unequal(f"{what} differ: {missing} has none.")
    largest = max((float(g.abs().max()) for g in theirs.gradients.values()), default=0.0)
    for key, gradient in theirs.gradients.items():
        # Looped layers (Dory, HRM) repeat the rounding of a step: 1e-4 of a tensor was seen, 5e-4
        # on a processor with AVX2 alone. In float64 they are equal.
        require_equal(ours.gradients[key], gradient, what, smallest=largest / 100, slack=8)
