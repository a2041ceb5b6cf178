"""Merged models: every one carries a certificate, and a wrong one never appears."""

import contextlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from studio.adapters import merge as merging
from studio.adapters.merge import merge, read_certificate
from studio.adapters.verify_logits import VerificationError
from studio.backbone import Backbone
from studio.backbone.dense_weights import fold
from studio.errors import InputError, MethodError
from studio.methods.bottleneck import Bottleneck
from studio.methods.ia3 import IA3
from studio.methods.lora import Lora
from studio.methods.norm_tuning import NormTuning
from studio.models.loading import load
from studio.spec import ModelSource
from tests.families import write_family
from tests.studio.tiny import tiny_folder, tiny_model, verifying_here

METHODS = {
    "lora": Lora(r=4),
    "dora": Lora(r=4, use_dora=True),
    "ia3": IA3(),
    "norm": NormTuning(),
    "bottleneck": Bottleneck(bottleneck_dim=4),
    "head": Lora(r=4, target_modules=("lm_head",)),
}


def saved(
    tmp_path: Path, *names: str, model_name: str = "llama", base: Path | None = None
) -> list[tuple[Path, float]]:
    """Adapter folders whose parameters matter, for a tiny model or that of a folder."""
    stack = []
    for seed, name in enumerate(names):
        source = ModelSource(path=str(base))
        backbone = Backbone(load(source).model if base else tiny_model(model_name))
        adapter = backbone.attach(name, METHODS[name], seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in adapter.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        folder = tmp_path / name
        folder.mkdir()
        backbone.save(name, folder)
        stack.append((folder, 1.0 if name == "head" else 0.7))
    return stack


def run(source: ModelSource, stack, out: Path, *, fresh: bool = False):
    with contextlib.nullcontext() if fresh else verifying_here():
        return list(merge(source, stack, out, device="cpu"))


@pytest.mark.parametrize("model_name", ["llama", "gpt2"])
def test_a_mixed_stack_is_merged_with_a_certificate(tmp_path, model_name):
    base = tiny_folder(tmp_path / "base", model_name)
    stack = saved(tmp_path, "lora", "dora", "ia3", "norm", "bottleneck", model_name=model_name)
    fresh = model_name == "llama"
    events = run(ModelSource(path=str(base)), stack, tmp_path / "out", fresh=fresh)
    assert events[-1].adapter == str(tmp_path / "out")
    certificate = read_certificate(tmp_path / "out")
    assert certificate["max_error"] <= 1e-4
    assert certificate["tokens_changed"] == 0 < certificate["tokens_compared"]
    assert certificate["base_precision"] == "float32"
    assert certificate["merged"] == ["lora", "dora", "ia3", "norm"]
    assert certificate["left"] == [str(tmp_path / "bottleneck")]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    base_state = tiny_model(model_name).state_dict()
    assert any(not torch.equal(v, base_state[k]) for k, v in merged.state_dict().items())


def test_bfloat16_is_merged_in_float32_and_then_cast(tmp_path):
    base = tiny_folder(tmp_path / "base")
    run(ModelSource(path=str(base), dtype="bfloat16"), saved(tmp_path, "lora"), tmp_path / "out")
    certificate = read_certificate(tmp_path / "out")
    assert certificate["merged_precision"] == certificate["base_precision"] == "bfloat16"
    assert (
        load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"].dtype == torch.bfloat16
    )


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_what_is_written_has_the_precision_that_was_computed_with(tmp_path, dtype):
    base = tiny_folder(tmp_path / "base")
    tiny_model("llama").bfloat16().save_pretrained(base)
    written = "float32" if dtype == "auto" else dtype  # so that nothing is rounded on a CPU
    run(ModelSource(path=str(base), dtype=dtype), saved(tmp_path, "lora"), tmp_path / "out")
    assert read_certificate(tmp_path / "out")["merged_precision"] == written
    tensors = load_file(tmp_path / "out" / "model.safetensors").values()
    assert {tensor.dtype for tensor in tensors} == {getattr(torch, written)}


def test_only_what_changes_is_copied_in_the_precision_of_the_base(tmp_path, monkeypatch):
    """So a merge needs room for the base and its changed weights, not for float32 copies of all."""
    source = ModelSource(path=str(tiny_folder(tmp_path / "base")), dtype="bfloat16")
    loaded, given = load(source, "cpu"), {}
    monkeypatch.setattr(
        type(loaded.model), "save_pretrained", lambda *_, state_dict: given.update(state_dict)
    )
    backbone = Backbone(loaded.model)
    for folder, _ in (stack := saved(tmp_path, "lora", "ia3")):
        backbone.load(folder.name, folder)
    live = tuple((folder.name, weight) for folder, weight in stack)
    exact, folded = fold(backbone, live).tensors, fold(backbone, live, to_host=True).tensors
    assert all(torch.equal(exact[name].bfloat16(), tensor) for name, tensor in folded.items())
    loaded.tokenizer = SimpleNamespace(save_pretrained=lambda folder: None)

    merging.write_model(loaded, source, folded, tmp_path / "out")

    own = loaded.model.state_dict()
    for name, tensor in given.items():
        source_of = folded.get(name, own[name])
        assert tensor.data_ptr() == source_of.data_ptr(), name


@pytest.mark.parametrize("model_name", ["llama", "gpt2"])
def test_a_nf4_base_is_dequantised_and_says_so(tmp_path, model_name):
    pytest.importorskip("bitsandbytes", reason="QLoRA needs bitsandbytes")
    base = tiny_folder(tmp_path / "base", model_name)
    stack = saved(tmp_path, "lora", model_name=model_name)
    run(ModelSource(path=str(base), quantization="nf4"), stack, tmp_path / "out")
    certificate = read_certificate(tmp_path / "out")
    assert certificate["base_precision"] == "nf4"
    assert certificate["merged_precision"] == "float32"
    assert certificate["max_error"] <= certificate["tolerance"]


def test_a_tied_head_is_untied_when_it_changes(tmp_path):
    model = tiny_model("llama")
    base = tiny_folder(tmp_path / "base")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(base)
    run(ModelSource(path=str(base)), saved(tmp_path, "head"), tmp_path / "out")
    assert read_certificate(tmp_path / "out")["max_error"] <= 1e-4
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert not torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])


def test_a_block_that_several_layers_share_is_merged_at_each_of_them(tmp_path):
    base = write_family("zamba2", tmp_path / "base")
    run(ModelSource(path=str(base)), saved(tmp_path, "norm", "ia3", base=base), tmp_path / "out")
    certificate = read_certificate(tmp_path / "out")
    assert len(certificate["merged"]) == 2
    assert certificate["max_error"] <= 1e-4
    state, shared = load_file(tmp_path / "out" / "model.safetensors"), "shared_transformer"
    for name in ("input_layernorm", "self_attn.k_proj"):
        own = [state[f"model.layers.{depth}.{shared}.{name}.weight"] for depth in (1, 3)]
        assert not torch.equal(*own)


def corrupt(path: Path) -> None:
    state = load_file(path)
    state["model.layers.1.mlp.down_proj.weight"][3] *= 1.01
    save_file(state, path, metadata={"format": "pt"})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "words"), [(corrupt, "differs from the live stack.*not kept"), (cut, "not kept")]
)
def test_a_spoiled_merge_is_caught_and_not_kept(tmp_path, monkeypatch, spoil, words):
    base = tiny_folder(tmp_path / "base")
    write = merging.write_model

    def write_then_spoil(loaded, source, tensors, folder):
        precision = write(loaded, source, tensors, folder)
        spoil(folder / "model.safetensors")
        return precision

    monkeypatch.setattr(merging, "write_model", write_then_spoil)
    with pytest.raises(VerificationError, match=words):
        out = tmp_path / "out"
        run(ModelSource(path=str(base)), saved(tmp_path, "lora"), out, fresh=spoil is cut)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "lora"]


def test_what_cannot_be_merged_is_refused(tmp_path):
    base = tiny_folder(tmp_path / "base")
    with pytest.raises(MethodError, match="Nothing in this stack can be merged: .*bottleneck"):
        run(ModelSource(path=str(base)), saved(tmp_path, "bottleneck"), tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="exists already"):
        run(ModelSource(path=str(base)), [], tmp_path / "out")
