"""The leaner forwards give the plain ones' losses and gradients, and keep less."""

from collections.abc import Sequence

import pytest
import torch

from studio.methods import Method
from studio.methods.full import Full
from studio.methods.layer import Backbone
from studio.methods.lora import Lora
from tests.studio.methods.cases import ADAPTERS, MODELS, fits
from tests.studio.tiny import tiny_model

LENGTHS = (5, 3, 9)
IDS = torch.arange(3, 20)
KEEP = torch.tensor([2, 3, 6, 10, 11, 15])  # 2, 1 and 3 of each row


def passed(backbone: Backbone, *, lean: bool, kept: list[int]) -> tuple[torch.Tensor, ...]:
    backbone.be_lean(lean)
    backbone.model.zero_grad()
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = backbone.packed_logits(IDS, LENGTHS, KEEP)
        loss = logits.logsumexp(-1).sum()
    loss.backward()
    kept.append(sum(storages.values()))
    return loss.detach(), logits.detach()


def compare(backbone: Backbone, names: Sequence[str]) -> list[int]:
    parameters = backbone.train(*names)
    with torch.no_grad():
        for i, parameter in enumerate(parameters):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter += 0.05 * noise
    kept: list[int] = []
    results = []
    for lean in (False, True):
        values = passed(backbone, lean=lean, kept=kept)
        gradients = [p.grad.clone() for p in parameters if p.grad is not None]
        for parameter in parameters:
            parameter.grad = None
        results.append((*values, *gradients))
    assert len(results[0]) > 2
    for plain, lean_one in zip(*results, strict=True):
        torch.testing.assert_close(lean_one, plain, rtol=2e-4, atol=2e-5)
    return kept


@pytest.mark.parametrize("label", ADAPTERS)
def test_every_method_on_llama(label: str) -> None:
    backbone = Backbone(tiny_model("llama"))
    backbone.attach("a", fits(ADAPTERS[label], "llama"))
    backbone.use([("a", 1.0)])
    compare(backbone, ["a"])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", [Lora(r=4), Full()], ids=["lora", "full"])
def test_every_model(model: str, method: Method) -> None:
    backbone = Backbone(tiny_model(model))
    backbone.attach("a", method)
    backbone.use([("a", 1.0)])
    compare(backbone, ["a"])


def test_rows_with_adapters_of_their_own() -> None:
    backbone = Backbone(tiny_model("llama"))
    for name in "ab":
        backbone.attach(name, Lora(r=4), seed=ord(name))
    backbone.use_rows([[("a", 1.0)], [], [("b", 1.0), ("a", 0.5)]])
    compare(backbone, ["a", "b"])


def test_less_is_kept_for_the_backward_pass() -> None:
    backbone = Backbone(tiny_model("llama"))
    backbone.attach("a", Lora(r=4))
    backbone.use([("a", 1.0)])
    plain, lean = compare(backbone, ["a"])
    assert lean < 0.8 * plain


def test_nothing_changes_where_gradients_are_off() -> None:
    backbone = Backbone(tiny_model("llama"))
    with torch.no_grad():
        lean = backbone.packed_logits(IDS, LENGTHS, KEEP)
        backbone.be_lean(False)
        torch.testing.assert_close(lean, backbone.packed_logits(IDS, LENGTHS, KEEP))
