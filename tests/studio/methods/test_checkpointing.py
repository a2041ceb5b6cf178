"""Layer inputs that wait in main memory: the same loss and gradients, and nothing left behind.

On a CPU the hooks copy as they do on a GPU; the streams themselves need one.
"""

import contextlib
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from studio.backbone import Backbone, activation_memory
from studio.backbone.activation_memory import Offload, OffloadedTensor
from studio.methods import Method
from studio.methods.lora import Lora
from studio.methods.prefix_tuning import PrefixTuning
from studio.methods.prompt_tuning import PromptTuning
from tests.studio.methods.cases import adapted
from tests.studio.tiny import tiny_model

IDS = torch.randint(3, 64, (60,), generator=torch.Generator().manual_seed(0))
LENGTHS, KEEP = (33, 27), torch.arange(20, 60)
METHODS = {
    "lora": Lora(r=4, lora_dropout=0.3), "prefix": PrefixTuning(num_virtual_tokens=5),
    "prompt": PromptTuning(num_virtual_tokens=4, prompt_tuning_init="RANDOM"),
}  # fmt: skip


def passed(
    method: Method, model: str, *, device: str = "cpu", **how: bool
) -> tuple[Tensor, list[Tensor]]:
    backbone, parameters = adapted(model, method, device=device)
    if how:
        backbone.checkpointing(True, **how)
    torch.manual_seed(0)
    ids, keep = IDS.to(device), KEEP.to(device)
    loss = sum(backbone.packed_logits(ids, LENGTHS, keep).logsumexp(-1).sum() for _ in range(2))
    return loss.detach(), list(torch.autograd.grad(loss, parameters))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["llama", "gpt2", "mistral"])
def test_offloading_changes_not_one_bit(method, model):
    near = passed(METHODS[method], model, offload=False)
    away = passed(METHODS[method], model, offload=True)
    assert torch.equal(near[0], away[0])
    assert all(torch.equal(one, other) for one, other in zip(near[1], away[1], strict=True))


def test_nothing_but_each_layers_input_goes_away(monkeypatch):
    shapes = []
    real = Offload._to_host

    def noted(self: Offload, tensor: Tensor) -> Tensor:
        shapes.append(tuple(tensor.shape))
        return real(self, tensor)

    monkeypatch.setattr(Offload, "_to_host", noted)
    passed(METHODS["lora"], "llama", offload=True)
    assert shapes == [(1, 60, 32)] * 4  # two layers, two passes


def test_the_newest_stays_near_and_the_one_before_is_fetched_ahead():
    away = Offload(torch.device("cpu"))
    tensors = [torch.full((2000,), float(i)) for i in range(3)]
    kept = [away.pack(tensor) for tensor in tensors]
    assert all(isinstance(one, OffloadedTensor) for one in kept)
    assert [one.near is not None for one in kept] == [False, False, True]
    assert torch.equal(away.unpack(kept[2]), tensors[2])
    assert [one.near is not None for one in kept] == [False, True, False]
    assert torch.equal(away.unpack(kept[1]), tensors[1])
    assert torch.equal(away.unpack(kept[1]), tensors[1])  # a graph that is kept asks again


def test_small_tensors_stay_and_a_graph_that_is_dropped_leaves_nothing():
    away = Offload(torch.device("cpu"))
    small = torch.zeros(activation_memory.MIN_NUMBERS - 1)
    assert away.pack(small) is small
    gone = weakref.ref(away.pack(torch.zeros(2000)))
    gc.collect()
    assert gone() is None
    assert isinstance(away.pack(torch.zeros(2000)), OffloadedTensor)


def test_switching_off_takes_the_hooks_away():
    backbone = Backbone(tiny_model("llama"))
    for offload in (True, True, False):
        backbone.checkpointing(True, offload=offload)
    names = {layer._gradient_checkpointing_func.__qualname__ for layer in backbone.anatomy.layers()
             if hasattr(layer._gradient_checkpointing_func, "__qualname__")}  # fmt: skip
    assert not any("_keep_inputs" in name for name in names)


class Clock:
    """Stands for CUDA's streams and events; writes down who waits for whom."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def stream(self, name: str) -> SimpleNamespace:
        def record_event() -> str:
            self.said.append(f"{name} marks")
            return "mark"

        return SimpleNamespace(
            record_event=record_event, name=name,
            wait_stream=lambda other: self.said.append(f"{name} waits for {other.name}"),
            wait_event=lambda event: self.said.append(f"{name} waits for a {event}"),
        )  # fmt: skip


def test_copies_wait_for_what_they_copy_and_the_layer_for_its_copy(monkeypatch):
    clock, empty = Clock(), torch.empty
    away = Offload(torch.device("cpu"))
    away._stream = clock.stream("side")
    compute = clock.stream("compute")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: compute)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda tensor, s: clock.said.append(f"{s.name} reads")
    )
    monkeypatch.setattr(
        torch, "empty", lambda shape, *, dtype, pin_memory: empty(shape, dtype=dtype)
    )
    tensors = [torch.full((2000,), float(i)) for i in range(3)]
    kept = [away.pack(tensor) for tensor in tensors]
    assert clock.said == ["side waits for compute", "side reads"] * 3
    clock.said.clear()
    for i, said in [
        (2, ["side marks"]),  # near already; the one before is fetched
        (1, ["compute waits for a mark", "compute reads", "side marks"]),
        (0, ["compute waits for a mark", "compute reads"]),
    ]:
        assert torch.equal(away.unpack(kept[i]), tensors[i])
        assert clock.said == said
        clock.said.clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_on_a_gpu_the_streams_lose_nothing(method):
    near = passed(METHODS[method], "llama", device="cuda", offload=False)
    away = passed(METHODS[method], "llama", device="cuda", offload=True)
    torch.testing.assert_close(near[0], away[0])
    for one, other in zip(near[1], away[1], strict=True):
        torch.testing.assert_close(one, other)
