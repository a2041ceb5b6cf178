"""Check a base before its first training step: three ways to compute the same logits.

- An adapter that is still zero leaves the logits as they are.
- Packed rows give the logits of each row alone.
- Prefill and single steps with a cache give the logits of one pass.

A library's next release, or a new architecture, can break one of these without an error. The check
runs once per model, precision, device and version of transformers, on 32 random tokens; the result
is kept in the home and stored in the run's passport.

Errors are relative: `‖ours − theirs‖ / ‖theirs‖`, which one flipped choice of an expert in half
precision does not decide. Shapes: `T tokens of all rows, V vocabulary`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from studio import atomic
from studio.backbone import Backbone
from studio.backbone.equalities import TOLERANCES
from studio.chat.decoding import cache_argument
from studio.errors import MethodError, ModelError
from studio.home import Home
from studio.methods.lora import Lora
from studio.models.loading import Loaded

FILE, ADAPTER = "self-tests.json", "self-test"
LENGTHS = (13, 19)
STEPS = 3  # single tokens after the prefill
ROUNDED = 5e-2  # of 4-bit weights, whose kernels depend on the batch
Way = Callable[[], Tensor]


def check_base(
    backbone: Backbone, loaded: Loaded, home: Home, *, quantization: str
) -> dict[str, Any]:
    """Return the result for this base: from the home if it is known, else measured now.

    Active stack and adapters of the backbone stay as they are.

    Raises:
        ModelError: Two ways differ; names the first layer that does.
    """
    version = metadata.version("transformers")
    parts = (loaded.facts.fingerprint, str(loaded.dtype), quantization, loaded.device.type, version)
    key, file = "/".join(parts), home.state / FILE
    known = atomic.read_object(file)
    if key in known:
        return dict(known[key])
    tolerance = TOLERANCES[loaded.dtype] if quantization == "none" else ROUNDED
    errors = {}
    for name, (ours, theirs, what) in _ways(backbone).items():
        try:
            errors[name] = _compared(backbone, ours, theirs)
        except MethodError:  # the run itself says what this model cannot do
            continue
        if not errors[name] <= tolerance:  # also catches NaN
            layer = _first_layer(backbone, ours, theirs, tolerance)
            raise ModelError(
                f"{loaded.facts.path.name} failed its self-test with transformers {version}: "
                f"{what} differ by {errors[name]:.2g} (allowed {tolerance:.2g}), first in {layer}. "
                "Use another version of transformers, or set train.self_test=false to train anyway."
            )
    result = {"transformers": version, "tolerance": tolerance, "errors": errors}
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(file, json.dumps(known | {key: result}))
    return result


def _ways(backbone: Backbone) -> dict[str, tuple[Way, Way, str]]:
    """Return pairs of ways to compute the same logits `(T, V)`."""
    size = backbone.model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids_T = torch.randint(min(3, size - 1), size, (sum(LENGTHS),), generator=generator)
    ids_T = ids_T.to(backbone.model.device)
    keep = torch.arange(len(ids_T), device=ids_T.device)

    def one_pass() -> Tensor:
        return _logits(backbone, ids_T)

    def adapted() -> Tensor:
        backbone.use([(ADAPTER, 1.0)])
        return _logits(backbone, ids_T)

    def separate() -> Tensor:
        return torch.cat([_logits(backbone, row) for row in ids_T.split(LENGTHS)])

    def packed() -> Tensor:
        return backbone.packed_logits(ids_T, LENGTHS, keep)

    def cached() -> Tensor:
        start, name = len(ids_T) - STEPS, cache_argument(backbone.model)
        given: dict[str, Any] = {"use_cache": True}
        parts = []
        for ids, places in zip(
            (ids_T[:start], *ids_T[start:].split(1)), (keep[:start], *keep[start:].split(1)),
            strict=True,
        ):  # fmt: skip
            output = backbone.model(input_ids=ids[None], position_ids=places[None], **given)
            if (cache := output.get(name)) is None:
                raise MethodError("This model has no cache of keys and values.")
            given[name] = cache
            parts.append(output.logits[0])
        return torch.cat(parts)

    return {
        "adapted": (adapted, one_pass, "logits with and without an adapter that is zero"),
        "packed": (packed, separate, "logits of packed and separate rows"),
        "cached": (cached, one_pass, "logits with and without a cache"),
    }


def _logits(backbone: Backbone, ids_T: Tensor) -> Tensor:
    found: Tensor = backbone.model(input_ids=ids_T[None], use_cache=False).logits[0]
    return found


@contextmanager
def _bare(backbone: Backbone) -> Iterator[None]:
    """Compute on the base with an adapter that is zero at hand; restore the active stacks."""
    stack = backbone.active_for_all
    before = backbone.active
    backbone.attach(ADAPTER, Lora(r=1))
    try:
        with backbone.evaluating(), backbone.without_checkpointing():
            backbone.use([])
            yield
    finally:
        backbone.detach(ADAPTER)
        backbone.use_rows(before) if stack is None else backbone.use(stack)


def _compared(backbone: Backbone, ours: Way, theirs: Way) -> float:
    with _bare(backbone):
        expected = theirs().float()
        error = (ours().float() - expected).norm() / expected.norm().clamp_min(1e-9)
    return float(error)


def _first_layer(backbone: Backbone, ours: Way, theirs: Way, tolerance: float) -> str:
    """Return the first layer whose output differs, with its class; else the head."""
    layers = backbone.anatomy.layers()
    with _bare(backbone):
        expected, found = _outputs(layers, theirs), _outputs(layers, ours)
    for number, layer in enumerate(layers):
        if not expected[number] or not found[number]:
            continue
        one, two = torch.cat(found[number]), torch.cat(expected[number])
        if one.shape != two.shape or not (one - two).norm() <= tolerance * two.norm():
            return f"layer {number} ({type(layer).__name__})"
    return "the output head"


def _outputs(layers: list[nn.Module], way: Way) -> list[list[Tensor]]:
    """Return the hidden states `(T, …)` that each layer gave, call after call."""
    found: list[list[Tensor]] = [[] for _ in layers]

    def keep(place: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            found[place].append(hidden[0].float())

        return hook

    hooks = [layer.register_forward_hook(keep(n)) for n, layer in enumerate(layers)]
    try:
        way()
    finally:
        for hook in hooks:
            hook.remove()
    return found
