"""PEFT files made elsewhere: equal logits, with PEFT as the oracle."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from studio.backbone import Backbone
from studio.backbone.dense_weights import fold
from studio.errors import AdapterError
from tests.studio.tiny import tiny_model

IDS = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(5))
A = ["q_proj", "v_proj", "up_proj"]


def made(folder: Path, **fields: object) -> Tensor:
    """Save a random adapter with PEFT; return its logits."""
    fields = {"target_modules": A, "task_type": "CAUSAL_LM", **fields}
    config = LoraConfig(r=4, lora_alpha=8, **fields)
    theirs = get_peft_model(tiny_model("qwen2"), config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        expected = theirs(input_ids=IDS).logits
    theirs.save_pretrained(folder)
    return expected


def base() -> Tensor:
    with torch.no_grad():
        return tiny_model("qwen2")(input_ids=IDS).logits


def ours(folder: Path) -> Tensor:
    backbone = Backbone(tiny_model("qwen2"))
    backbone.load("a", folder)
    backbone.use([("a", 1.0)])
    with torch.no_grad():
        return backbone.model(input_ids=IDS).logits


@pytest.mark.parametrize(
    "fields",
    [
        {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"q_proj": 32}},
        {"alpha_pattern": {r".*\.self_attn\.q_proj": 32, "up_proj": 2}},
        {"alpha_pattern": {r"^model\.layers\.\d+\.mlp\.up_proj": 32}, "use_rslora": True},
        {"rank_pattern": {"layers.0.self_attn.q_proj": 2}, "use_dora": True},
    ],
)
def test_patterns_of_rank_and_alpha_load_with_equal_logits(fields, tmp_path):
    expected = made(tmp_path / "theirs", **fields)
    torch.testing.assert_close(ours(tmp_path / "theirs"), expected, rtol=1e-5, atol=1e-5)


BESIDE = [
    {"lora_bias": True},
    {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
    {"modules_to_save": ["norm", "embed_tokens"], "target_modules": ["q_proj"]},
    {"target_modules": ["q_proj", "embed_tokens"]},
    {
        "target_modules": ["q_proj", "embed_tokens"], "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"embed_tokens": 32},
    },
    {"trainable_token_indices": [5, 6, 40], "target_modules": ["q_proj"]},
    {"trainable_token_indices": {"model.embed_tokens": [5, 6]}, "target_modules": ["q_proj"]},
]  # fmt: skip


@pytest.mark.parametrize("fields", BESIDE, ids=str)
def test_what_a_file_holds_beside_the_factors_loads_and_is_written_again(fields, tmp_path):
    from peft import PeftModel

    expected = made(tmp_path / "theirs", **fields)
    backbone = Backbone(tiny_model("qwen2"))
    backbone.load("a", tmp_path / "theirs")
    backbone.use([("a", 1.0)])
    with torch.no_grad():
        found = backbone.model(input_ids=IDS).logits
        backbone.use_rows([[], [("a", 1.0)]])
        rows = backbone.model(input_ids=IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rows[1], expected[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rows[0], base()[0], rtol=1e-5, atol=1e-5)
    (tmp_path / "ours").mkdir()
    backbone.save("a", tmp_path / "ours")
    again = PeftModel.from_pretrained(tiny_model("qwen2"), tmp_path / "ours").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fields", BESIDE[1:], ids=str)
def test_what_a_file_holds_beside_the_factors_folds_into_the_weights(fields, tmp_path):
    expected = made(tmp_path, **fields)
    backbone = Backbone(tiny_model("qwen2"))
    backbone.load("a", tmp_path)
    folded = fold(backbone, (("a", 1.0),))
    assert folded.left == ()
    merged = tiny_model("qwen2")
    merged.load_state_dict(folded.tensors, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_ranks_of_their_own_survive_being_saved_and_opened_with_peft(tmp_path):
    from peft import PeftModel

    expected = made(
        tmp_path / "theirs", rank_pattern={"layers.0.self_attn.q_proj": 2},
        alpha_pattern={"up_proj": 32},
    )  # fmt: skip
    backbone = Backbone(tiny_model("qwen2"))
    backbone.load("a", tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    backbone.save("a", tmp_path / "ours")
    again = PeftModel.from_pretrained(tiny_model("qwen2"), tmp_path / "ours").eval()
    with torch.no_grad():
        found = again(input_ids=IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: key.replace("base_model.model.", "base_model.model._orig_mod.", 1),
        lambda key: key.replace("lora_A.weight", "lora_A.default.weight").replace(
            "lora_B.weight", "lora_B.default.weight"
        ),
    ],
    ids=["compiled", "named"],
)
def test_keys_as_other_trainers_save_them_load(rename, tmp_path):
    expected = made(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    tensors = {rename(key): value for key, value in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    torch.testing.assert_close(ours(tmp_path), expected, rtol=1e-5, atol=1e-5)


def test_a_copy_of_the_base_in_less_precision_is_known_as_one(tmp_path):
    expected = made(tmp_path, target_modules=["q_proj", "lm_head"])
    weights = tmp_path / "adapter_model.safetensors"
    tensors = load_file(weights)
    (key,) = (key for key in tensors if key.endswith("lm_head.base_layer.weight"))
    save_file({**tensors, key: tensors[key].half()}, weights, metadata={"format": "pt"})
    torch.testing.assert_close(ours(tmp_path), expected, rtol=1e-5, atol=1e-5)


def test_dora_of_embeddings_is_refused_by_its_name(tmp_path):
    made(tmp_path, target_modules=["q_proj", "embed_tokens"], use_dora=True)
    with pytest.raises(AdapterError, match=r"embed_tokens has DoRA of embeddings in the file"):
        ours(tmp_path)


def test_fields_without_meaning_for_the_maths_load(tmp_path):
    expected = made(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    config["auto_mapping"] = {
        "base_model_class": "Qwen2ForCausalLM", "unsloth_fixed": True,
        "parent_library": "transformers.models.qwen2.modeling_qwen2",
    }  # fmt: skip
    path.write_text(json.dumps(config))
    torch.testing.assert_close(ours(tmp_path), expected, rtol=1e-5, atol=1e-5)
