"""The leaner forwards give the plain ones' losses and gradients, and keep less."""

from collections.abc import Sequence

import pytest
import torch
import transformers
from transformers.models.llama import modeling_llama

from studio.backbone import Backbone, activation_memory
from studio.methods.full import Full
from studio.methods.lora import Lora
from tests.studio.methods.cases import ADAPTERS, MODELS, adapted, fits
from tests.studio.tiny import tiny_model

LENGTHS = (5, 3, 9)
IDS = torch.arange(3, 20)
KEEP = torch.tensor([2, 3, 6, 10, 11, 15])  # 2, 1 and 3 of each row


def passed(backbone: Backbone, *, lean: bool, kept: list[int]) -> tuple[torch.Tensor, ...]:
    backbone.set_lean(lean)
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
def test_every_method_on_llama(label):
    compare(adapted("llama", fits(ADAPTERS[label], "llama"))[0], ["a"])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", [Lora(r=4), Full()], ids=["lora", "full"])
def test_every_model(model, method):
    compare(adapted(model, method)[0], ["a"])


SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
UNUSUAL = {
    "a feed-forward with factors": transformers.FalconH1Config(
        **SMALL, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=1,
        mamba_d_state=8, mlp_multipliers=[2.0, 0.5],
    ),
    "norms with a gate": transformers.Qwen3_5TextConfig(
        **SMALL | {"num_hidden_layers": 4}, linear_num_key_heads=2, linear_num_value_heads=2,
        linear_key_head_dim=8, linear_value_head_dim=8,
    ),
    "linear attention": transformers.MiniMaxConfig(**SMALL, num_local_experts=2),
    "masks of its own": transformers.DogeConfig(**SMALL),
}  # fmt: skip


@pytest.mark.parametrize("config", UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_layers_train_as_written_packed_or_not(config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    rows_BT = torch.arange(3, 27).reshape(2, 12)
    with torch.no_grad():
        plain = model(input_ids=rows_BT, use_cache=False).logits
    backbone = Backbone(model)
    backbone.attach("a", Lora(r=2))
    backbone.use([("a", 1.0)])
    backbone.train("a")
    torch.testing.assert_close(model(input_ids=rows_BT, use_cache=False).logits, plain)
    packed = backbone.packed_logits(rows_BT.flatten(), (12, 12), torch.arange(24))
    torch.testing.assert_close(packed, plain.flatten(0, 1), atol=1e-5, rtol=1e-4)


def test_rows_with_adapters_of_their_own():
    backbone = Backbone(tiny_model("llama"))
    for name in "ab":
        backbone.attach(name, Lora(r=4), seed=ord(name))
    backbone.use_rows([[("a", 1.0)], [], [("b", 1.0), ("a", 0.5)]])
    compare(backbone, ["a", "b"])


def test_less_is_kept_for_the_backward_pass():
    plain, lean = compare(adapted("llama", Lora(r=4))[0], ["a"])
    assert lean < 0.8 * plain


def test_nothing_changes_where_gradients_are_off():
    backbone = Backbone(tiny_model("llama"))
    with torch.no_grad():
        lean = backbone.packed_logits(IDS, LENGTHS, KEEP)
        backbone.set_lean(False)
        torch.testing.assert_close(lean, backbone.packed_logits(IDS, LENGTHS, KEEP))


@pytest.mark.parametrize("model", ["llama", "qwen2", "qwen3", "gemma", "gemma2", "mistral"])
def test_rotary_positions_are_one_node(model, monkeypatch):
    calls, node, own = [], activation_memory.RotaryNode, activation_memory.RotaryNode.apply
    monkeypatch.setattr(node, "apply", lambda *x: calls.append(x) or own(*x))
    backbone = adapted(model, Lora(r=4))[0]
    backbone.packed_logits(IDS, LENGTHS, KEEP)
    assert len(calls) == 2 * backbone.anatomy.num_layers
    x, cos, sin = torch.randn(1, 3, 9, 8), torch.randn(9, 8), torch.randn(9, 8)
    plain, _ = modeling_llama.apply_rotary_pos_emb(x, x, cos[None], sin[None])
    torch.testing.assert_close(own(x, cos, sin), plain)
    x, cos, sin = (each.double().requires_grad_(each is x) for each in (x, cos, sin))
    assert torch.autograd.gradcheck(lambda x: own(x, cos, sin), [x])
