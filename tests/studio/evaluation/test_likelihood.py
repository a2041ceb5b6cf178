"""Scores of continuations equal sums over the live stack's own forward passes, lane by lane."""

import pytest
import torch

from studio.backbone import Backbone
from studio.evaluation import likelihood
from studio.evaluation.likelihood import Continuations, score
from studio.models.loading import load
from studio.spec import ModelSource
from tests.studio.methods.cases import ADAPTERS, fits
from tests.studio.tiny import tiny_folder, tiny_model

ASKED = [
    Continuations([5, 6, 7, 8], [[20], [21, 22, 1], [21, 23, 24, 25, 1]]),
    Continuations([9], [[30, 31, 32]]),
    Continuations([4, 4, 11, 12, 13, 14, 15, 16, 17, 18], [[33], [34, 35]]),
    Continuations([9, 3], [[40, 41]]),
]
LABELS = {
    "a": "lora-r=4",
    "b": "prefix_tuning-num_virtual_tokens=5",
    "c": "bottleneck-bottleneck_dim=6",
}
STACKS = [(), (("a", 1.0),), (("a", 0.5), ("b", 1.0)), (("c", 1.0), ("a", -1.0))]


@pytest.fixture(params=["llama", "gpt2", "gemma2"])
def resident(request, tmp_path):
    backbone = Backbone(tiny_model(request.param))
    generator = torch.Generator().manual_seed(7)
    for name, label in LABELS.items():
        method = fits(ADAPTERS[label], request.param)
        for parameter in backbone.attach(name, method, seed=3).parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    loaded = load(ModelSource(path=str(tiny_folder(tmp_path / "model"))), "cpu")
    loaded.model = backbone.model
    return loaded, backbone


def by_whole_passes(backbone, stack, context, ids):
    backbone.use(stack)
    with torch.no_grad():
        logits = backbone.model(input_ids=torch.tensor([[*context, *ids]])).logits[0]
    logits = logits[len(context) - 1 : -1]
    best = logits.argmax(-1).tolist() == list(ids)
    return float(logits.log_softmax(-1)[range(len(ids)), ids].sum()), best


@pytest.mark.parametrize("tokens", [8, 2048])
def test_every_lane_of_one_pass_equals_its_own_whole_passes(resident, tokens, monkeypatch):
    monkeypatch.setitem(likelihood.PASS_TOKENS, "cpu", tokens)
    loaded, backbone = resident
    found = dict(score(loaded, backbone, ASKED, STACKS))
    assert sorted(found) == [0, 1, 2, 3]
    seen = set()
    for place, (context, continuations) in enumerate(ASKED):
        for lane, stack in enumerate(STACKS):
            for ids, (total, greedy) in zip(continuations, found[place][lane], strict=True):
                want, best = by_whole_passes(backbone, stack, context, ids)
                assert total == pytest.approx(want, abs=1e-4)
                assert greedy == best
                seen.add(round(want, 3))
    assert len(seen) > 0.9 * len(STACKS) * 7  # the lanes differ


def test_a_greedy_continuation_is_known_as_one(resident):
    loaded, backbone = resident
    context, ids = [5, 6, 7], []
    backbone.use(STACKS[2])
    for _ in range(3):
        with torch.no_grad():
            ids.append(int(backbone.model(torch.tensor([context + ids])).logits[0, -1].argmax()))
    other = [*ids[:-1], (ids[-1] + 1) % 64]
    found = dict(
        score(loaded, backbone, [Continuations(context, [ids, other, ids[:1]])], [STACKS[2]])
    )
    assert [greedy for _, greedy in found[0][0]] == [True, False, True]
