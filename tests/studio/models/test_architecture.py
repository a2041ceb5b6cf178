"""A model loaded, and its architecture as read from its files."""

from pathlib import Path

import pytest
import torch
from safetensors.numpy import save_file

from studio.errors import ModelError
from studio.models.architecture import linear_modules, targets
from studio.models.loading import load
from studio.spec import ModelSource


def llama(folder: Path) -> ModelSource:
    import numpy as np

    folder.mkdir()
    names = ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"]
    tensors = {
        f"model.layers.{layer}.{name}.weight": np.zeros((4, 2), np.float32)
        for layer in range(11)
        for name in names
    }
    tensors |= {
        "model.embed_tokens.weight": np.zeros((9, 2), np.float32),
        "lm_head.weight": np.zeros((9, 2), np.float32),
        "model.layers.0.input_layernorm.weight": np.zeros(2, np.float32),
        "model.layers.0.self_attn.q_proj.bias": np.zeros(4, np.float32),
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return ModelSource(path=str(folder))


def test_only_linear_layers_inside_layers_are_named(tmp_path):
    found = linear_modules(llama(tmp_path / "m"))
    assert len(found) == 33
    assert [module.name for module in found[:3]] == [
        "mlp.up_proj", "self_attn.o_proj", "self_attn.q_proj"
    ]  # fmt: skip
    assert [module.layer for module in found[-3:]] == [10, 10, 10]
    assert found[0].shape == (4, 2)


def test_the_shortest_words_mean_the_same(tmp_path):
    found = linear_modules(llama(tmp_path / "m"))
    every = [module.key for module in found]
    queries = [key for key in every if key.endswith("q_proj")]
    assert targets(every, found) == ["all-linear"]
    assert targets(queries, found) == ["q_proj"]
    one = "model.layers.1.mlp.up_proj"
    assert set(targets([*queries, one], found)) == {"q_proj", one}
    assert targets([], found) == []


def test_a_last_word_that_two_modules_share_is_not_enough(real):
    source = ModelSource(path=str(real / "models" / "tarot-gpt2"))
    found = linear_modules(source)
    names = {module.name for module in found}
    assert names == {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}
    chosen = [module.key for module in found if module.name == "attn.c_proj"]
    assert targets(chosen, found) == ["attn.c_proj"]


def test_a_model_loads_frozen_and_in_eval_mode(real):
    loaded = load(ModelSource(path=str(real / "models" / "stories260k")), "cpu")
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.dtype == torch.float32
    assert loaded.model.num_parameters() == loaded.facts.parameters


def test_a_dtype_is_the_users_and_what_is_not_there_is_one_sentence(real, monkeypatch):
    def stories(**values: str) -> ModelSource:
        return ModelSource(path=str(real / "models" / "stories260k"), **values)

    half = load(stories(dtype="bfloat16"), "cpu").model
    assert next(half.parameters()).dtype == torch.bfloat16
    for device, words in (("cuda:7", "cuda:7"), ("toaster", 'Invalid device "toaster"')):
        with pytest.raises(ModelError, match=words):
            load(stories(), device)
    monkeypatch.setattr("studio.models.quantize_on_load.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install bitsandbytes"):
        load(stories(quantization="nf4"), "cpu")
