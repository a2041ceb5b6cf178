"""AdapterHub's bottleneck format: round trips, their defaults, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from studio.backbone import Backbone, adapter_files
from studio.errors import AdapterError
from studio.methods.lora import Lora
from tests.studio.methods.cases import ADAPTERS
from tests.studio.methods.test_matrix import attached, logits
from tests.studio.tiny import tiny_model

BOTTLENECKS = [label for label, method in ADAPTERS.items() if method.name == "bottleneck"]


@pytest.mark.parametrize("model_name", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("label", BOTTLENECKS)
def test_a_bottleneck_round_trips(label, model_name, tmp_path):
    backbone, adapter = attached(label, model_name, trained=True)
    adapter_files.write_adapterhub(adapter, tmp_path, backbone.anatomy, name="mine")
    other = Backbone(tiny_model(model_name))
    other.load("theirs", tmp_path)
    other.use([("theirs", 1.0)])
    torch.testing.assert_close(logits(other), logits(backbone), atol=1e-5, rtol=1e-5)


def test_the_keys_are_theirs(tmp_path):
    """As `adapters` 1.3 writes them for Llama (peers study, section 5)."""
    backbone, adapter = attached("bottleneck-bottleneck_dim=6", "llama", trained=True)
    adapter_files.write_adapterhub(adapter, tmp_path, backbone.anatomy, name="mine")
    keys = set(load_file(tmp_path / "adapter.safetensors"))
    for place in ("attention_adapters", "output_adapters"):
        start = f"model.layers.0.{place}.adapters.mine"
        assert {f"{start}.adapter_down.0.weight", f"{start}.adapter_up.bias"} <= keys
    assert len(keys) == 2 * 2 * 4
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["name"] == "mine" and "peft_type" not in config
    assert config["config"]["mh_adapter"] and config["config"]["output_adapter"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"phm_layer": True}, "phm_layer"),
        ({"inv_adapter": "nice"}, "inv_adapter"),
        ({"reduction_factor": {"0": 4}}, "one number"),
        ({"reduction_factor": 0}, "one number"),
        ({"reduction_factor": 1e-9}, "less than or equal to 16384"),
        ({"reduction_factor": 8}, "made for another base"),
        ({"non_linearity": "mish"}, "non_linearity"),
        ({"original_ln_before": True}, "Unsupported placement"),
        ({"mh_adapter": False, "original_ln_before": True}, "does not have"),
    ],
)
def test_other_architectures_are_refused(changes, says, tmp_path):
    backbone, adapter = attached("bottleneck-bottleneck_dim=6", "llama", trained=True)
    adapter_files.write_adapterhub(adapter, tmp_path, backbone.anatomy, name="mine")
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    config["config"] |= changes
    path.write_text(json.dumps(config))
    with pytest.raises(AdapterError, match=says):
        Backbone(tiny_model("llama")).load("x", tmp_path)


def test_old_files_mean_the_approximate_gelu_which_is_not_here(tmp_path):
    backbone, adapter = attached(BOTTLENECKS[-1], "llama", trained=True)
    adapter_files.write_adapterhub(adapter, tmp_path, backbone.anatomy, name="mine")
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    del config["version"]
    path.write_text(json.dumps(config))
    with pytest.raises(AdapterError, match="gelu_new"):
        Backbone(tiny_model("llama")).load("x", tmp_path)


def test_foreign_tensors_and_pickles_are_refused(tmp_path):
    backbone, adapter = attached("bottleneck-bottleneck_dim=6", "llama", trained=True)
    adapter_files.write_adapterhub(adapter, tmp_path, backbone.anatomy, name="mine")
    path = tmp_path / "adapter.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "model.embed_tokens.weight": torch.ones(64, 32)}, path)
    with pytest.raises(AdapterError, match="not a tensor of a bottleneck"):
        Backbone(tiny_model("llama")).load("x", tmp_path)
    path.rename(tmp_path / "pytorch_adapter.bin")
    with pytest.raises(AdapterError, match="pickle"):
        Backbone(tiny_model("llama")).load("x", tmp_path)


def test_only_bottlenecks_can_be_written(tmp_path):
    backbone = Backbone(tiny_model("llama"))
    adapter = backbone.attach("a", Lora(r=2))
    with pytest.raises(AdapterError, match="LoRA cannot be written"):
        adapter_files.write_adapterhub(adapter, tmp_path, backbone.anatomy, name="a")
