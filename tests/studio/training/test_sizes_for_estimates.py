"""Bytes that training keeps between forward and backward, against the estimate made from files."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from studio.backbone import Backbone
from studio.backbone.sites import Anatomy
from studio.methods.lora import Lora
from studio.models.find_model import facts
from studio.models.loading import load
from studio.spec import ModelSource, RunSpec
from studio.training.batching import pack
from studio.training.estimate_memory_and_time import attention_kernel
from studio.training.loss import loss_sum
from studio.training.sizes_for_estimates import (
    BatchLoad,
    kept_activations,
    read_mixture,
    read_shape,
)
from tests.fakegpu import fake_gpu
from tests.families import family_config, family_model
from tests.studio.tiny import tiny_tokenizer
from ui.bench.training_case import make_rows

SIZES = {
    "vocab_size": 64, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "lora": {"name": "lora", "r": 8},
    "dropout": {"name": "lora", "r": 8, "lora_dropout": 0.1},
    "dora": {"name": "lora", "r": 8, "use_dora": True},
    "pissa": {"name": "lora", "r": 8, "init_lora_weights": "pissa"},
    "attention": {"name": "lora", "r": 8, "target_modules": "attention"},
    "vera": {"name": "vera", "r": 16, "vera_dropout": 0.1},
    "loha": {"name": "loha", "r": 4},
    "lokr": {"name": "lokr", "r": 4},
    "ia3": {"name": "ia3"},
    "bitfit": {"name": "bitfit", "create_missing": True},
    "norm_tuning": {"name": "norm_tuning"},
    "houlsby": {"name": "bottleneck", "bottleneck_dim": 8, "adapter_dropout": 0.1},
    "pfeiffer": {"name": "bottleneck", "bottleneck_dim": 8, "placement": "pfeiffer"},
    "parallel": {"name": "bottleneck", "bottleneck_dim": 8, "placement": "parallel"},
    "prefix_tuning": {"name": "prefix_tuning", "num_virtual_tokens": 4},
    "prompt_tuning": {"name": "prompt_tuning", "num_virtual_tokens": 4,
                      "prompt_tuning_init": "RANDOM"},
    "p_tuning": {"name": "p_tuning", "num_virtual_tokens": 4},
}  # fmt: skip
PRECISIONS = {
    "float32": ("float32", "none"), "bfloat16": ("bfloat16", "none"),
    "float16": ("float16", "none"), "nf4": ("bfloat16", "nf4"), "int8": ("bfloat16", "int8"),
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


def moved(model, device):
    """Return the model on a device, where a quantised weight has its scales too."""
    for parameter in model.parameters():
        for state in filter(None, (state_of(parameter), state_of(state_of(parameter)))):
            state.__dict__.update({
                name: each.to(device) for name, each in vars(state).items()
                if isinstance(each, torch.Tensor)
            })  # fmt: skip
        parameter.data = parameter.data.to(device)
    return model.to(device)


def state_of(x):
    return getattr(x, "quant_state", None) or getattr(x, "state2", None)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", METHODS)
def test_what_a_forward_keeps_is_what_the_estimate_says(folder, method, precision, device):
    dtype, quantization = PRECISIONS[precision]
    if method == "full" and quantization != "none":
        pytest.skip("weights in 4 or 8 bit do not train")
    if quantization != "none":
        pytest.importorskip("bitsandbytes")  # before torch seems to have a GPU
    source = ModelSource(path=str(folder), dtype=dtype, quantization=quantization)
    train = {"per_device_train_batch_size": 16}
    spec = RunSpec.parse({"model": source.model_dump(), "method": METHODS[method], "train": train})
    loaded = load(source, "cpu")
    with fake_gpu() if device != "cpu" else nullcontext():
        backbone = Backbone(moved(loaded.model, device))
        backbone.attach("a", spec.method, seed=0, tokenize=lambda text: [3, 4])
        backbone.use([("a", 1.0)])
        parameters = backbone.train("a")
        batch = pack(make_rows(16, vocabulary=64), torch.device(device))
        with Live() as live:
            loss = loss_sum(backbone, batch)
        own = {p.untyped_storage()._cdata for p in [*parameters, *loaded.model.parameters()]}
        kept = live.bytes(own)
        assert loss.requires_grad, "it held the graph until here"
    tokens, targets = batch.num_tokens, batch.num_targets
    load_ = BatchLoad(tokens=tokens, targets=targets, step_tokens=tokens, step_targets=targets,
                      share_tokens=tokens, share_targets=targets)  # fmt: skip
    width = 4 if dtype == "float32" else 2
    shape, kernel = read_shape(facts(source)), attention_kernel(spec, on_gpu=device != "cpu")
    estimated = kept_activations(spec, shape, load_, kernel=kernel)
    estimated += 2 * targets * shape.hidden  # of the last norm and the head
    softmax = 4 * targets * (shape.vocabulary + shape.hidden) * spec.method.trains_base
    assert kept == pytest.approx(estimated * width + softmax, rel=0.05)


FAMILIES = ["mixtral", "qwen3-moe", "gpt-oss", "glm4-moe", "deepseek-v3", "gemma4-moe", "lfm2-moe"]


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_and_their_adapters_have_the_counted_sizes(family):
    config = family_config(family).get_text_config()
    found = read_mixture(
        config.to_dict(), hidden=config.hidden_size, layers=config.num_hidden_layers
    )
    sites = Anatomy(family_model(family)).experts()
    assert found is not None and found.layers == len({site.layer for site in sites})
    assert found.parameters == sum(site.parameter.numel() for site in sites)
    assert found.largest_parameter == max(site.parameter.numel() for site in sites)
    method = Lora(r=4, expert_r=2)
    ranks = [s.num_experts * method.rank(s) * (s.in_features + s.out_features) for s in sites]
    assert found.trained(method) == sum(ranks)
    assert found.trained(Lora(r=4, target_modules="attention")) == 0


def test_a_dense_model_has_no_mixture():
    config = family_config("llama")
    assert read_mixture(config.to_dict(), hidden=32, layers=4) is None
