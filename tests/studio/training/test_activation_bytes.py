"""Bytes that training keeps between forward and backward, against the estimate made from files."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from studio.backbone import Backbone
from studio.models.find_model import facts
from studio.models.loading import load
from studio.spec import ModelSource, RunSpec
from studio.training.activation_sizes import kept_activations, read_shape
from studio.training.batching import pack
from studio.training.estimate_memory_and_time import by_products
from studio.training.loss import loss_sum
from studio.training.row_and_batch_lengths import BatchLoad
from tests.studio.tiny import tiny_tokenizer
from ui.bench.training_case import make_rows

SIZES = {
    "vocab_size": 64, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip
LINEAR = {"r": 8}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("none", {"name": "lora", **LINEAR}),
    "nf4": ("nf4", {"name": "lora", **LINEAR}),
    "dropout": ("none", {"name": "lora", **LINEAR, "lora_dropout": 0.1}),
    "nf4 with dropout": ("nf4", {"name": "lora", **LINEAR, "lora_dropout": 0.1}),
    "dora": ("none", {"name": "lora", **LINEAR, "use_dora": True}),
    "pissa": ("none", {"name": "lora", **LINEAR, "init_lora_weights": "pissa"}),
    "attention": ("none", {"name": "lora", **LINEAR, "target_modules": "attention"}),
    "vera": ("none", {"name": "vera", "r": 16, "vera_dropout": 0.1}),
    "loha": ("none", {"name": "loha", "r": 4}),
    "lokr": ("none", {"name": "lokr", "r": 4}),
    "ia3": ("none", {"name": "ia3"}),
    "bitfit": ("none", {"name": "bitfit", "create_missing": True}),
    "norm_tuning": ("none", {"name": "norm_tuning"}),
    "houlsby": ("none", {"name": "bottleneck", "bottleneck_dim": 8, "adapter_dropout": 0.1}),
    "pfeiffer": ("none", {"name": "bottleneck", "bottleneck_dim": 8, "placement": "pfeiffer"}),
    "parallel": ("none", {"name": "bottleneck", "bottleneck_dim": 8, "placement": "parallel"}),
    "prefix_tuning": ("none", {"name": "prefix_tuning", "num_virtual_tokens": 4}),
    "prompt_tuning": ("none", {"name": "prompt_tuning", "num_virtual_tokens": 4,
                               "prompt_tuning_init": "RANDOM"}),
    "p_tuning": ("none", {"name": "p_tuning", "num_virtual_tokens": 4}),
}  # fmt: skip


class Live(TorchDispatchMode):
    """Remembers every storage that an operation made, without keeping it."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return results

    def bytes(self, outside: set[int]) -> int:
        """Return the bytes of storages that live, but for some."""
        return sum(
            size for key, (ref, size) in self.made.items()
            if not ref.expired() and key not in outside
        )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("quantization", "method"), CASES.values(), ids=CASES)
def test_what_a_forward_keeps_is_what_the_estimate_says(folder, quantization, method, dtype):
    if quantization == "nf4":
        pytest.importorskip("bitsandbytes")
    source = ModelSource(path=str(folder), dtype=dtype, quantization=quantization)
    train = {"per_device_train_batch_size": 16}
    spec = RunSpec.parse({"model": source.model_dump(), "method": method, "train": train})
    loaded = load(source, "cpu")
    backbone = Backbone(loaded.model)
    backbone.attach("a", spec.method, seed=0, tokenize=lambda text: [3, 4])
    backbone.use([("a", 1.0)])
    parameters = backbone.train("a")
    rows = make_rows(16, vocabulary=64)
    batch = pack(rows, torch.device("cpu"))
    with Live() as live:
        loss = loss_sum(backbone, batch)
    own = {p.untyped_storage()._cdata for p in [*parameters, *loaded.model.parameters()]}
    kept = live.bytes(own)
    assert loss.requires_grad, "it held the graph until here"
    tokens, targets = batch.num_tokens, batch.num_targets
    load_ = BatchLoad(tokens=tokens, targets=targets, step_tokens=tokens, step_targets=targets,
                      share_tokens=tokens, share_targets=targets)  # fmt: skip
    width = 4 if dtype == "float32" else 2
    shape = read_shape(facts(source))
    estimated = kept_activations(spec, shape, load_, products=by_products(spec))
    estimated += 2 * targets * shape.hidden  # of the last norm and the head
    assert kept == pytest.approx(estimated * width, rel=0.05)
