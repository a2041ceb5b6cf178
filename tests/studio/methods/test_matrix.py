"""Every method on every architecture: shapes, formulas by hand, and the probed capabilities."""

import json
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from studio.backbone import Adapter, Backbone, adapter_files
from studio.backbone.dense_weights import fold
from studio.chat.decoding import cache_argument
from studio.methods import Phase, methods
from tests import method_capabilities
from tests.studio.methods import by_hand
from tests.studio.methods.cases import ADAPTERS, MODELS, fits
from tests.studio.tiny import tiny_model

VIRTUAL = (Phase.KEYS_VALUES, Phase.PROMPT)
PAIRS = [(label, model) for model in MODELS for label in ADAPTERS]
pairs = pytest.mark.parametrize(("label", "model_name"), PAIRS)
IDS = torch.randint(0, 64, (3, 11), generator=torch.Generator().manual_seed(1))


def attached(label: str, model_name: str, *, trained: bool) -> tuple[Backbone, Adapter]:
    """A backbone with one active adapter, its parameters moved away from their start."""
    backbone = Backbone(tiny_model(model_name))
    adapter = backbone.attach("a", fits(ADAPTERS[label], model_name), seed=3)
    if trained:
        generator = torch.Generator().manual_seed(7)
        for parameter in adapter.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    backbone.use([("a", 1.0)])
    return backbone, adapter


def logits(backbone: Backbone, ids: torch.Tensor = IDS, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        return backbone.model(ids, **kwargs).logits


@cache
def base_logits(model_name: str) -> torch.Tensor:
    """Return the base's logits of `IDS`, seen through a backbone without adapters."""
    return logits(Backbone(tiny_model(model_name)))


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def pair(request):
    """A method on a model, moved away from its start; no test may change it."""
    label, model_name = request.param
    backbone, adapter = attached(label, model_name, trained=True)
    return SimpleNamespace(model_name=model_name, backbone=backbone, adapter=adapter)


@pytest.fixture
def backbone(pair):
    pair.backbone.use([("a", 1.0)])
    return pair.backbone


def test_the_forward_equals_the_formula_by_hand(pair, backbone):
    expected = by_hand.logits(pair.model_name, pair.adapter, IDS)
    assert (expected - base_logits(pair.model_name)).abs().max() > 1e-2, (
        "the adapter must matter for this test to mean anything"
    )
    torch.testing.assert_close(logits(backbone), expected, atol=5e-4, rtol=1e-4)


def test_a_loaded_copy_has_equal_logits_and_leaves_the_exact_base(pair, backbone, tmp_path):
    backbone.save("a", tmp_path)
    other = Backbone(tiny_model(pair.model_name))
    other.load("b", tmp_path)
    other.use([("b", 1.0)])
    torch.testing.assert_close(logits(other), logits(backbone), atol=5e-5, rtol=1e-4)
    other.detach("b")
    assert torch.equal(logits(other), base_logits(pair.model_name))


def test_packed_rows_equal_rows_alone(backbone):
    lengths = [4, 11, 7]
    rows = [IDS[i, :n] for i, n in enumerate(lengths)]
    with torch.no_grad():
        packed = backbone.packed_logits(torch.cat(rows), lengths, torch.arange(sum(lengths)))
    alone = torch.cat([logits(backbone, row[None])[0] for row in rows])
    torch.testing.assert_close(packed, alone, atol=5e-5, rtol=1e-4)


def test_each_row_can_have_its_own_stack(pair, backbone):
    whole, base = logits(backbone), base_logits(pair.model_name)
    backbone.use([("a", 0.5)])
    half = logits(backbone)
    backbone.use_rows([[("a", 1.0)], [], [("a", 0.5)]])
    mixed = logits(backbone)
    expected = torch.stack([whole[0], base[1], half[2]])
    torch.testing.assert_close(mixed, expected, atol=5e-5, rtol=1e-4)
    lengths = [11, 11, 11]
    with torch.no_grad():
        packed = backbone.packed_logits(IDS.flatten(), lengths, torch.arange(33)).view(3, 11, -1)
    torch.testing.assert_close(packed, expected, atol=5e-5, rtol=1e-4)


def test_cache_and_left_padding_equal_a_plain_forward(backbone):
    lengths, width = [5, 9], 9
    ids = torch.zeros(2, width, dtype=torch.long)
    mask = torch.zeros(2, width, dtype=torch.long)
    for row, n in enumerate(lengths):
        ids[row, width - n :], mask[row, width - n :] = IDS[row, :n], 1
    cache = DynamicCache(config=backbone.model.config)
    keeping = {cache_argument(backbone.model): cache}
    step = lambda t, m, p: logits(  # noqa: E731
        backbone, t, attention_mask=m, position_ids=p, use_cache=True, **keeping
    )
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    first = step(ids, mask, positions)[:, -1]
    mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
    second = step(IDS[:2, 10:11], mask, positions[:, -1:] + 1)[:, -1]
    for row, n in enumerate(lengths):
        whole = torch.cat([IDS[row, :n], IDS[row, 10:11]])[None]
        expected = logits(backbone, whole)[0]
        torch.testing.assert_close(first[row], expected[-2], atol=5e-5, rtol=1e-4)
        torch.testing.assert_close(second[row], expected[-1], atol=5e-5, rtol=1e-4)


def test_folding_into_the_weights_equals_the_live_adapter(pair, backbone):
    backbone.use([("a", 0.7)])
    live = logits(backbone)
    folded = fold(backbone, (("a", 0.7),))
    if folded.left:
        pytest.skip(f"{pair.adapter.method.title} does not fold here")
    merged = tiny_model(pair.model_name)
    missing = merged.load_state_dict(folded.tensors, strict=False)
    assert folded.tensors and not missing.unexpected_keys
    torch.testing.assert_close(merged(IDS).logits, live, atol=5e-4, rtol=1e-4)


@pairs
def test_it_begins_as_the_base_and_training_lowers_the_loss_alone(label, model_name):
    backbone, adapter = attached(label, model_name, trained=False)
    if adapter.method.phase not in VIRTUAL:  # virtual tokens change the output by definition
        begun = logits(backbone)
        torch.testing.assert_close(begun, base_logits(model_name), atol=2e-5, rtol=0)
    before = {k: v.clone() for k, v in backbone.model.state_dict().items()}
    parameters = backbone.train("a")
    assert all(p.requires_grad for p in parameters)
    assert not any(p.requires_grad for p in backbone.model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=0.04)
    lengths, flat = [11, 11, 11], IDS.flatten()
    keep = torch.cat([torch.arange(10) + 11 * row for row in range(3)])
    losses = []
    for _ in range(6):
        loss = cross_entropy(backbone.packed_logits(flat, lengths, keep), flat[keep + 1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01, losses
    after = backbone.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("label", ADAPTERS)
@pytest.mark.parametrize("model_name", ["llama", "gpt2"])
def test_gradient_checkpointing_gives_the_same_gradients(label, model_name):
    backbone, _ = attached(label, model_name, trained=True)
    parameters = backbone.train("a")
    found = []
    for checkpointing in (False, True):
        backbone.checkpointing(checkpointing)
        loss = cross_entropy(backbone.packed_logits(IDS[0], [11], torch.arange(10)), IDS[0, 1:])
        found.append(torch.autograd.grad(loss, parameters))
    for plain, recomputed in zip(*found, strict=True):
        largest = float(plain.abs().max())  # what rounds is a sum of numbers of that size
        torch.testing.assert_close(recomputed, plain, atol=max(5e-6, 5e-5 * largest), rtol=1e-4)


def test_the_table_is_what_the_probe_finds():
    assert json.loads(method_capabilities.CAPABILITIES.read_text()) == method_capabilities.table()


@pytest.mark.parametrize("name", methods())
def test_every_method_has_a_manual(name):
    cls = methods()[name]
    assert all(part in cls.manual() for part in ("When to use it:", "Cost:", "Source: ", "arXiv:"))
    assert cls.paper.startswith("arXiv:") and cls.title
    for field, info in cls.model_fields.items():
        assert field == "name" or info.description, f"{name}.{field} has no help"


MATHS = {
    Phase.DELTA: ["delta"],
    Phase.GAIN: ["gain_in", "gain_out"],
    Phase.TRANSFORM: ["transform"],
    Phase.KEYS_VALUES: ["virtual_tokens"],
    Phase.PROMPT: ["virtual_tokens"],
}


@pytest.mark.parametrize("label", ADAPTERS)
def test_a_broken_formula_is_noticed(label, monkeypatch):
    backbone, adapter = attached(label, "qwen2", trained=True)
    cls = type(adapter.method)
    for name in MATHS[adapter.method.phase]:
        right = getattr(cls, name)

        def wrong(*args, _right=right, **kwargs):
            result = _right(*args, **kwargs)
            return None if result is None else result * 1.1

        monkeypatch.setattr(cls, name, wrong)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            logits(backbone), by_hand.logits("qwen2", adapter, IDS), atol=1e-4, rtol=1e-4
        )


def test_a_file_name_that_peft_does_not_know_is_noticed(tmp_path):
    backbone, _ = attached("lora-r=4", "llama", trained=True)
    backbone.save("a", tmp_path)
    text = (tmp_path / adapter_files.CONFIG).read_text()
    (tmp_path / adapter_files.CONFIG).write_text(text.replace('"LORA"', '"LORAX"'))
    with pytest.raises(adapter_files.AdapterError, match="LORAX"):
        adapter_files.read_method(adapter_files.read_json(tmp_path / adapter_files.CONFIG))
