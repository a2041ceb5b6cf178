"""Measure what works on a model: every method, the five equalities, and each way out.

The checks run on the model as users load it, with small random adapters and a short random prompt.
`python -m studio.evaluation.examine_model MODEL` prints the findings as JSON; `studio doctor
--model` runs it in a process of its own, and the support matrix (`docs/models.md`) is made of the
same findings on tiny models.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.errors import MethodError, StudioError
from studio.methods import Method, methods, named
from studio.spec import ModelSource

if TYPE_CHECKING:
    from torch import Tensor

    from studio.backbone import Backbone
    from studio.models.loading import Loaded

logger = logging.getLogger(__name__)

EQUALITIES = ("packing", "checkpointing", "cache", "lanes")
FILES = ("saved", "merged", "nf4", "gguf", "gguf_adapter")
SMALL: dict[str, dict[str, Any]] = {
    "lora": {"r": 4}, "loha": {"r": 2}, "lokr": {"r": 2}, "vera": {"r": 4},
    "bitfit": {"create_missing": True},
    "bottleneck": {"bottleneck_dim": 4}, "prefix_tuning": {"num_virtual_tokens": 3},
    "prompt_tuning": {"num_virtual_tokens": 3, "prompt_tuning_init": "RANDOM"},
    "p_tuning": {"num_virtual_tokens": 3, "encoder_hidden_size": 8},
}  # fmt: skip
LARGEST_FILE_BYTES = 2 << 30  # larger bases are not written as GGUF only to be checked


def columns() -> tuple[str, ...]:
    """Return the names of the findings, in order."""
    return ("load", *methods_of_own(), *EQUALITIES, *FILES)


def methods_of_own() -> list[str]:
    """Return the methods with maths of their own: QLoRA is LoRA and the finding "nf4"."""
    return [name for name, method in methods().items() if method.quantization == "none"]


def small(name: str) -> Method:
    """Return a method with sizes that fit every model."""
    return named(name)(**SMALL.get(name, {}))


def examine_model(
    source: ModelSource, scratch: Path, *, skip: Collection[str] = ()
) -> dict[str, str]:
    """Return the findings: empty where it works, else the reason.

    Args:
        scratch: An empty folder for written files.
        skip: Methods other than LoRA that are not tried.
    """
    from studio.backbone import Backbone
    from studio.models.loading import load

    found = dict.fromkeys((name for name in columns() if name not in skip), "")
    opened: list[tuple[Loaded, Backbone]] = []

    def opening() -> None:
        loaded = load(source)
        opened.append((loaded, Backbone(loaded.model)))

    found["load"] = reason(opening)
    if found["load"]:
        return dict.fromkeys(found, found["load"])
    loaded, backbone = opened[0]
    for name in (name for name in methods_of_own() if name not in skip):
        found[name] = reason(partial(_train, backbone, name))
    if found["lora"]:
        return found | dict.fromkeys((*EQUALITIES, *FILES), found["lora"])
    for name, check in _checks(source, loaded, backbone, scratch):
        found[name] = reason(check)
    return found


def packs(backbone: Backbone) -> str:
    """Return why LoRA does not train on packed rows of this model; empty if it does."""
    return reason(partial(_train, backbone, "lora"))


def reason(check: Callable[[], object]) -> str:
    """Return why a check failed, in a sentence; empty if it did not."""
    try:
        check()
    except StudioError as error:
        return error.text
    except Exception as error:
        logger.warning("A check stopped unexpectedly.", exc_info=True)
        return f"Stops unexpectedly ({type(error).__name__})."
    return ""


def _checks(
    source: ModelSource, loaded: Loaded, backbone: Backbone, scratch: Path
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the checks of one LoRA: equalities, then files."""
    from studio.backbone import equalities

    equalities.attach_random(backbone, "a", small("lora"))
    yield "packing", partial(equalities.require_packing, backbone, "a")
    yield "checkpointing", partial(equalities.require_checkpointing, backbone, "a")
    yield "cache", partial(equalities.require_cache, backbone, "a", partial(_decode, loaded))
    equalities.attach_random(backbone, "b", small("lora"), seed=2)
    stacks = ((("a", 1.0),), (("b", 1.0),), (), (("a", 0.5), ("b", -1.0)))
    answer = partial(_answer, loaded, backbone)
    yield "lanes", partial(equalities.require_lanes, backbone, stacks, answer)
    backbone.detach("b")
    yield "saved", partial(_save, backbone, scratch / "adapter")
    yield "merged", partial(_merge, source, loaded, backbone, scratch / "merged")
    yield "nf4", partial(_quantise, source)
    yield "gguf", partial(_gguf, loaded, scratch / "model.gguf")
    yield "gguf_adapter", partial(_gguf_adapter, loaded, backbone, scratch)


def _train(backbone: Backbone, name: str) -> None:
    from studio.backbone import equalities

    try:
        equalities.attach_random(backbone, name, small(name))
        equalities.require_training(backbone, name)
        if not small(name).trains_base:
            equalities.require_packing(backbone, name, gradients=False)
    finally:
        backbone.eval()
        if name in backbone.adapters:
            backbone.use([])
            backbone.detach(name)


def _decode(loaded: Loaded, ids: list[int], start: int) -> Tensor:
    import torch

    from studio.chat.decoding import Batch

    batch = Batch(loaded.model, [ids[:start]], loaded.device)
    logits = [batch.prefill()[0]]
    logits += [batch.step([token]) for token in ids[start:]]
    return torch.cat(logits)


def _answer(loaded: Loaded, backbone: Backbone, prompts: list[list[int]]) -> Tensor:
    """Return the logits after each prompt and after two more tokens, rows first.

    Where rows cannot share a pass, they take turns on the resident base, as in chat.
    """
    import torch

    from studio.chat.decoding import Batch, shares_passes

    stacks = backbone.active
    together = shares_passes(loaded.model)
    groups = [prompts] if together else [[prompt] for prompt in prompts]
    batches = [Batch(loaded.model, group, loaded.device) for group in groups]
    rows = [stacks] if together else [[stack] for stack in stacks]
    steps: list[Tensor] = []
    for token in (0, 5, 9):  # the first reads the prompts
        found = []
        for batch, own in zip(batches, rows, strict=True):
            backbone.use_rows(own)
            found.append(batch.step([token] * len(batch)) if token else batch.prefill()[0])
        steps.append(torch.cat(found))
    return torch.stack(steps, dim=1)


def _logits(backbone: Backbone, *stack: tuple[str, float]) -> Tensor:
    from studio.backbone.equalities import prompt_rows, separate

    backbone.use(stack)
    with backbone.evaluating():
        return separate(backbone, prompt_rows(backbone))


def _save(backbone: Backbone, folder: Path) -> None:
    """Write the adapter and load it again beside itself."""
    from studio.backbone.equalities import require_equal

    folder.mkdir()
    backbone.save("a", folder)
    live = _logits(backbone, ("a", 1.0))
    backbone.load("copy", folder)
    try:
        require_equal(_logits(backbone, ("copy", 1.0)), live, "Logits of a saved adapter")
    finally:
        backbone.use([])
        backbone.detach("copy")


def _merge(source: ModelSource, loaded: Loaded, backbone: Backbone, folder: Path) -> None:
    """Fold the adapter into the weights, write the model and load it again."""
    from studio.adapters.merge import write_model
    from studio.backbone import Backbone
    from studio.backbone.dense_weights import fold
    from studio.backbone.equalities import require_equal
    from studio.models.loading import load

    live = _logits(backbone, ("a", 1.0))
    folded = fold(backbone, (("a", 1.0),))
    if folded.left:
        raise MethodError("LoRA cannot be folded into the weights of this model.")
    folder.mkdir()
    write_model(loaded, source, folded.tensors, folder)
    again = load(ModelSource(path=str(folder)), str(loaded.device))
    # Looped layers repeat the rounding of the sum: 1.2e-4 was seen.
    require_equal(_logits(Backbone(again.model)), live, "Logits of the merged model", slack=3)


def _quantise(source: ModelSource) -> None:
    """Load the base in 4 bit and train one step over it."""
    from studio.backbone import Backbone
    from studio.backbone.equalities import attach_random, require_training
    from studio.models.loading import load

    backbone = Backbone(load(source.model_copy(update={"quantization": "nf4"})).model)
    attach_random(backbone, "a", small("lora"))
    require_training(backbone, "a")


def _gguf(loaded: Loaded, file: Path) -> None:
    """Write the base as GGUF and read it back."""
    from studio.adapters.gguf import verify_gguf
    from studio.adapters.gguf_write import write

    if loaded.facts.size_bytes > LARGEST_FILE_BYTES:
        raise MethodError("Not checked: the model is large. Export it to see.")
    write(loaded.facts.path, file, precision="f32", name="x")
    found, _ = verify_gguf(loaded.facts.path, file, "f32")
    if found:
        found.require("GGUF file", "model")


def _gguf_adapter(loaded: Loaded, backbone: Backbone, folder: Path) -> None:
    """Write the adapter as GGUF and compare its changes."""
    from studio.adapters.gguf import export_gguf_adapter

    export_gguf_adapter(backbone.adapters["a"], loaded.facts.path, folder, name="a")


def main(path: str) -> None:
    """Print the findings about a model as one JSON document."""
    logging.basicConfig(level=logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(examine_model(ModelSource(path=path), Path(scratch))))


if __name__ == "__main__":
    main(sys.argv[1])
