"""Adapter files: PEFT's and AdapterHub's formats, written, read, and refused."""

import json
import pickle
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from studio.backbone import Backbone, adapter_files
from studio.backbone.adapter_files import own_keys
from studio.backbone.equalities import attach_random
from studio.backbone.sites import Anatomy
from studio.errors import AdapterError, MethodError
from studio.methods import method_of_config
from studio.methods.bitfit import BitFit
from studio.methods.bottleneck import Bottleneck
from studio.methods.lora import Lora
from studio.methods.prefix_tuning import PrefixTuning
from tests.families import family_model
from tests.studio.methods.cases import ADAPTERS
from tests.studio.methods.test_matrix import attached, logits
from tests.studio.tiny import tiny_model

Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def folder(tmp_path):
    backbone = Backbone(tiny_model("llama"))
    backbone.attach("a", Lora(r=4))
    backbone.save("a", tmp_path)
    return tmp_path


def refused(folder: Path, says: str, model_name: str = "llama") -> None:
    """Loading must say so, attach nothing and leave the base as it was."""
    backbone = Backbone(tiny_model(model_name))
    before = {k: v.clone() for k, v in backbone.model.state_dict().items()}
    with pytest.raises(AdapterError, match=says):
        backbone.load("x", folder)
    assert not backbone.adapters
    assert all(torch.equal(before[k], v) for k, v in backbone.model.state_dict().items())


def cut(folder: Path, kept_bytes: int) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:kept_bytes])


def overwrite_config(folder: Path, text: str) -> None:
    (folder / "adapter_config.json").write_text(text)


def edit_config(folder: Path, **changes) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, **changes) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = {**load_file(path), **changes}
    save_file({k: v for k, v in tensors.items() if v is not None}, path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"r": 10**9}, "r is 1000000000: Input should be less than or equal to 1024"),
        ({"r": -1}, "greater than or equal to 1"),
        ({"r": "many"}, "valid integer"),
        ({"r": 8}, "made for another base or r"),
        ({"lora_dropout": 7}, "less than 1"),
        ({"peft_type": "XLORA"}, "XLORA"),
        ({"peft_type": None}, "peft_type"),
        ({"rank_pattern": {"q_proj": 2}}, "has rank 4, but adapter_config.json says 2"),
        ({"rank_pattern": {"(.+)+q": 4}}, r"rank_pattern has the expression '\(\.\+\)\+q'"),
        ({"alpha_pattern": {"q_proj": -1}}, "alpha_pattern must map names to positive numbers"),
        ({"bias": "all"}, "bias to 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"exotic_new_field": {"a": 1}}, "exotic_new_field"),
        (
            {"auto_mapping": {"parent_library": "os", "base_model_class": "system"}},
            "never run",
        ),
        ({"auto_mapping": "evil"}, "never run"),
    ],
)
def test_a_config_with_other_maths_is_refused(folder, changes, says):
    edit_config(folder, **changes)
    refused(folder, says)


def test_what_a_config_leaves_out_is_pefts_default(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    del config["lora_alpha"], config["r"]
    method = method_of_config.read_method(config)
    theirs = peft.LoraConfig()
    assert (method.r, method.lora_alpha) == (theirs.r, theirs.lora_alpha)


def test_a_rank_that_could_not_be_read_again_is_refused():
    with pytest.raises(ValueError, match="r must be at most 512"):
        Lora(r=520, init_lora_weights="pissa")


def test_a_regular_expression_in_the_config_is_never_run(folder):
    """`([a-z_.0-9]+)+X` hangs PEFT for more than ten seconds; here the tensors name the sites."""
    edit_config(folder, target_modules="([a-z_.0-9]+)+X")
    backbone = Backbone(tiny_model("llama"))
    assert len(backbone.load("x", folder).sites) == 14


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({f"{Q}.lora_B.weight": None}, "lacks the tensor"),
        (
            {"base_model.model.model.layers.0.mlp.up_proj.weight": torch.ones(48, 32)},
            "do not belong",
        ),
        ({"base_model.model.model.embed_tokens.weight": torch.ones(64, 32)}, "do not belong"),
        ({f"{Q}.lora_A.weight": torch.ones(4, 99)}, r"has shape \(4, 99\)"),
        ({f"{Q}.lora_C.weight": torch.ones(4)}, "do not belong"),
    ],
)
def test_tensors_that_are_not_exactly_the_adapters_are_refused(folder, changes, says):
    edit_tensors(folder, **changes)
    refused(folder, says)


def test_an_adapter_for_another_base_is_explained(folder, tmp_path):
    refused(folder, "do not belong to LoRA on this model", model_name="gpt2")
    backbone = Backbone(tiny_model("llama"))
    backbone.attach("p", PrefixTuning(num_virtual_tokens=3))
    (tmp_path / "prefix").mkdir()
    backbone.save("p", tmp_path / "prefix")
    says = r"shape \(3, 64\), but this model needs \(3, 128\)"
    refused(tmp_path / "prefix", says, model_name="gpt2")


@pytest.mark.parametrize(
    ("spoil", "argument", "says"),
    [
        *((cut, kept, "damaged or truncated") for kept in (0, 4, 100, 3000)),
        *((overwrite_config, text, "not valid JSON|must hold a JSON object")
          for text in ("", "[]", "{", '"x"', "[" * 5000, "nul")),
        (overwrite_config, " " * 1_000_001, "is too large"),
        (lambda folder, name: (folder / name).unlink(), "adapter_config.json",
         "has no adapter_config.json"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_refused(folder, spoil, argument, says):
    spoil(folder, argument)
    refused(folder, says)


def test_a_file_in_place_of_a_folder_is_not_called_damaged(tmp_path):
    (file := tmp_path / "a").write_text("")
    with pytest.raises(AdapterError, match=r"a is not an adapter: it has no adapter_config\.json"):
        method_of_config.read_json(file / "adapter_config.json")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle from an adapter folder was opened",))


def test_a_pickle_is_refused_unopened_with_how_to_convert(folder):
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    refused(folder, "pickle.*safe_serialization=True")


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (Lora(r=33), r"r = 33 is larger than model.layers.0.self_attn.q_proj \(32 × 32\)"),
        (
            Lora(r=4, target_modules=("q_porj",)),
            'no linear layer called "q_porj". Did you mean "q_proj"',
        ),
        (BitFit(), "no biases to train: use norm tuning"),
    ],
)
def test_a_method_that_does_not_fit_the_model_says_why(method, says):
    backbone = Backbone(tiny_model("llama"))
    with pytest.raises(MethodError, match=says):
        backbone.attach("a", method)
    assert not backbone.adapters


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


def test_every_size_of_a_bottleneck_is_read_as_it_was_written():
    anatomy = Anatomy(tiny_model("llama"))
    for size in range(1, 40):
        config = adapter_files.write_config(Bottleneck(bottleneck_dim=size), "mine", anatomy)
        assert method_of_config.read_bottleneck(config, 32).bottleneck_dim == size


@pytest.fixture
def hub_folder(tmp_path):
    """A bottleneck as AdapterHub writes it."""
    return hub_adapter(tmp_path, "bottleneck-bottleneck_dim=6")


def hub_adapter(folder: Path, label: str) -> Path:
    backbone, adapter = attached(label, "llama", trained=True)
    adapter_files.write_adapterhub(adapter, folder, backbone.anatomy, name="mine")
    return folder


def test_the_keys_are_theirs_and_only_bottlenecks_can_be_written(hub_folder):
    """As `adapters` 1.3 writes them for Llama (peers study, section 5)."""
    keys = set(load_file(hub_folder / "adapter.safetensors"))
    for place in ("attention_adapters", "output_adapters"):
        start = f"model.layers.0.{place}.adapters.mine"
        assert {f"{start}.adapter_down.0.weight", f"{start}.adapter_up.bias"} <= keys
    assert len(keys) == 2 * 2 * 4
    config = json.loads((hub_folder / "adapter_config.json").read_text())
    assert config["name"] == "mine" and "peft_type" not in config
    assert config["config"]["mh_adapter"] and config["config"]["output_adapter"]
    with pytest.raises(AdapterError, match="LoRA cannot be written"):
        hub_adapter(hub_folder, "lora-r=4")


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
def test_other_architectures_are_refused(hub_folder, changes, says):
    path = hub_folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["config"] |= changes
    path.write_text(json.dumps(config))
    refused(hub_folder, says)


def test_old_files_mean_the_approximate_gelu_which_is_not_here(tmp_path):
    path = hub_adapter(tmp_path, BOTTLENECKS[-1]) / "adapter_config.json"
    config = json.loads(path.read_text())
    del config["version"]
    path.write_text(json.dumps(config))
    refused(tmp_path, "gelu_new")


def test_foreign_tensors_and_pickles_are_refused(hub_folder):
    path = hub_folder / "adapter.safetensors"
    save_file({**load_file(path), "model.embed_tokens.weight": torch.ones(64, 32)}, path)
    refused(hub_folder, "not a tensor of a bottleneck")
    path.rename(hub_folder / "pytorch_adapter.bin")
    refused(hub_folder, "pickle")


TEXT = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
WRAPPED = "base_model.model.model.language_model.layers.1.self_attn.q_proj.lora_A.weight"
OLDER = "base_model.model.language_model.model.layers.1.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize("given", [TEXT, WRAPPED, OLDER])
@pytest.mark.parametrize("wanted", [TEXT, WRAPPED])
def test_a_key_takes_the_name_of_the_loaded_model(given, wanted):
    module = wanted.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
    assert own_keys({given: 1}, ["model.visual.layers.1.q_proj", module]) == {wanted: 1}


def test_keys_of_another_tower_stay():
    key = "base_model.model.model.visual.blocks.0.attn.qkv.lora_A.weight"
    assert own_keys({key: 1}, ["model.language_model.layers.0.q_proj"]) == {key: 1}


def test_an_adapter_of_the_text_class_works_on_the_wrapper(tmp_path):
    backbone = Backbone(family_model("qwen3-vl"))
    attach_random(backbone, "a", Lora(r=4, target_modules="attention"))
    folder = tmp_path / "a"
    folder.mkdir()
    backbone.save("a", folder)
    file = folder / "adapter_model.safetensors"
    saved = load_file(file)
    assert all("model.language_model.layers" in key for key in saved)  # what plain PEFT expects
    save_file({key.replace("language_model.", ""): t for key, t in saved.items()}, file)

    backbone.load("text", folder)

    ids = torch.arange(3, 12)[None]
    logits = []
    for name in ("a", "text"):
        backbone.use([(name, 1.0)])
        logits.append(backbone.model(input_ids=ids).logits)
    assert torch.equal(*logits)


def test_plain_peft_loads_it_on_the_wrapper_class(tmp_path):
    from peft import PeftModel

    backbone = Backbone(family_model("qwen3-vl"))
    attach_random(backbone, "a", Lora(r=4, target_modules="all-linear"))
    backbone.save("a", tmp_path)
    backbone.use([("a", 1.0)])
    ids = torch.arange(3, 12)[None]
    ours = backbone.model(input_ids=ids).logits

    theirs = PeftModel.from_pretrained(family_model("qwen3-vl"), tmp_path).eval()

    assert torch.allclose(theirs(input_ids=ids).logits, ours, atol=1e-5)
