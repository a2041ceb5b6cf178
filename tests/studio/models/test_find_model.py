import errno
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.numpy import save_file

from studio.errors import DiskFull, ModelError, Unreached
from studio.models.find_model import facts, linear_modules, resolve, targets
from studio.models.loading import load
from studio.spec import ModelSource


def make_model(folder: Path, **config: object) -> Path:
    """A two-tensor Llama folder: 6 + 4 numbers in bfloat16."""
    folder.mkdir(parents=True)
    values = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2,
        "num_hidden_layers": 1, "vocab_size": 3, "max_position_embeddings": 16, **config,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "tokenizer.json").write_text("{}")
    table = {
        "model.embed_tokens.weight": {"dtype": "BF16", "shape": [3, 2], "data_offsets": [0, 12]},
        "model.q.weight": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [12, 20]},
    }
    head = json.dumps(table).encode()
    data = struct.pack("<Q", len(head)) + head + bytes(range(20))
    (folder / "model.safetensors").write_bytes(data)
    return folder


def test_facts_come_from_the_config_and_the_header(tmp_path):
    known = facts(ModelSource(path=str(make_model(tmp_path / "m"))))
    assert known.parameters == 10
    assert (known.hidden_size, known.num_layers, known.context_length) == (2, 1, 16)
    assert known.architecture == "LlamaForCausalLM"
    assert not known.has_chat_template


def test_the_fingerprint_tells_the_weights_and_the_shapes_apart(tmp_path):
    first = facts(ModelSource(path=str(make_model(tmp_path / "a")))).fingerprint
    again = facts(ModelSource(path=str(make_model(tmp_path / "b")))).fingerprint
    other = make_model(tmp_path / "c") / "model.safetensors"
    other.write_bytes(other.read_bytes()[:-1] + b"\xff")
    changed = facts(ModelSource(path=str(other.parent))).fingerprint
    assert first == again
    assert changed.split("-")[0] == first.split("-")[0]
    assert changed != first


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def leave_an_adapter(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")


INDEX = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
NAMED = {"architectures": ["LlammaForCausalLM"]}


@pytest.mark.parametrize(
    ("config", "spoil", "words"),
    [
        ({}, shutil.rmtree, ["no model folder"]),
        ({}, remove("config.json"), ["no config.json"]),
        ({}, leave_an_adapter, ["is an adapter"]),
        ({}, remove("tokenizer.json"), ["no tokenizer"]),
        (NAMED, lambda _: None, ["LlammaForCausalLM", '"LlamaForCausalLM"']),
        ({"auto_map": {"AutoModel": "x.Y"}}, lambda _: None, ["auto_map"]),
        ({}, lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
         ["save_pretrained"]),
        ({}, cut, ["truncated"]),
        ({}, lambda folder: (folder / "model.safetensors").write_bytes(b"hello"),
         ["truncated or not a safetensors file"]),
        ({}, lambda folder: (folder / "model.safetensors.index.json").write_text(INDEX),
         ["model-00001-of-00002.safetensors"]),
    ],
)  # fmt: skip
def test_what_is_no_model_is_refused_in_one_sentence(tmp_path, config, spoil, words):
    folder = make_model(tmp_path / "m", **config)
    spoil(folder)
    with pytest.raises(ModelError) as error:
        facts(ModelSource(path=str(folder)))
    for word in words + ([f"{(folder / 'model.safetensors').stat().st_size:,}"]
                         if spoil is cut else []):  # fmt: skip
        assert word in error.value.text


def test_an_unknown_hub_id_is_one_sentence_offline():
    with pytest.raises(Unreached, match='"no-such-org/no-such-model" is not a folder here'):
        facts(ModelSource(path="no-such-org/no-such-model"))


@pytest.mark.parametrize(
    ("fault", "kind", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DiskFull, "free some room"),
        (ConnectionResetError(errno.ECONNRESET, "reset by peer"), Unreached, "try again"),
        (PermissionError(errno.EACCES, "Permission denied"), ModelError, "Permission denied"),
    ],
    ids=["disk", "network", "permission"],
)
def test_a_download_that_breaks_off_says_why(monkeypatch, fault, kind, sentence):
    def broken(*_: object, **__: object) -> str:
        raise fault

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", broken)
    with pytest.raises(kind, match=f'"org/model".*{sentence}'):
        facts(ModelSource(path="org/model"))


def test_real_models_are_read(real):
    llama = facts(ModelSource(path=str(real / "models" / "stories260k")))
    gpt2 = facts(ModelSource(path=str(real / "models" / "tarot-gpt2")))
    assert (llama.hidden_size, llama.num_layers, llama.context_length) == (64, 5, 512)
    assert (gpt2.hidden_size, gpt2.num_layers, gpt2.context_length) == (128, 4, 64)
    # 512x64 embeddings + 5 layers of (2*64*64 + 2*64*32 + 3*64*172 + 2*64) + the last norm
    assert llama.parameters == 512 * 64 + 5 * (2 * 4096 + 2 * 2048 + 3 * 11008 + 128) + 64
    assert resolve(ModelSource(path=str(real / "models" / "tarot-gpt2"))) == gpt2.path


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0,
                           "original_max_position_embeddings": 16}}, 64),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 64),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2}}, 32),
        ({"rope_scaling": {"type": "yarn", "factor": 40,
                           "original_max_position_embeddings": 16},
          "max_position_embeddings": 640}, 640),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 16),
        ({"rope_scaling": {"type": "yarn", "factor": "a lot"}}, 16),
    ],
)  # fmt: skip
def test_yarn_in_the_configuration_extends_the_context_as_model_cards_write(
    tmp_path, config, length
):
    assert (
        facts(ModelSource(path=str(make_model(tmp_path / "m", **config)))).context_length == length
    )


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
    monkeypatch.setattr("studio.models.quantization.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install bitsandbytes"):
        load(stories(quantization="nf4"), "cpu")
