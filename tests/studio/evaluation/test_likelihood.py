"""Scores of continuations and labels equal sums over whole forward passes; figures by hand."""

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax

from studio.backbone import Backbone
from studio.data.token_arrays import Example
from studio.errors import DataError
from studio.evaluation import likelihood
from studio.evaluation.likelihood import (
    Continuations,
    Task,
    classification,
    numbers_of,
    score,
    score_labels,
    task_of,
)
from studio.models.loading import load
from studio.spec import ModelSource
from tests.studio.methods.cases import ADAPTERS, fits
from tests.studio.methods.test_matrix import attached
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


PROMPTS = [[5, 6, 7, 8], [9], [4, 4, 11, 12, 13, 14, 15]]
LABEL_IDS = [[20], [21, 22, 1], [21, 23, 24, 25, 1], [30, 1]]


def example(prompt, ids):
    return Example(
        np.array([*prompt, *ids], np.int32), np.array([*[-100] * len(prompt), *ids], np.int32), 0
    )


@pytest.mark.parametrize("model", ["llama", "gpt2", "gemma2", "mixtral"])
@pytest.mark.parametrize("label", ["lora-r=4", "prefix_tuning-num_virtual_tokens=5", ""])
def test_scores_equal_sums_over_whole_passes(tmp_path, model, label):
    backbone = attached(label, model, trained=True)[0] if label else Backbone(tiny_model(model))
    loaded = load(ModelSource(path=str(tiny_folder(tmp_path / "model"))), "cpu")
    loaded.model = backbone.model
    found = score_labels(loaded, backbone, Task(list("abcd"), LABEL_IDS, PROMPTS, [0, 1, 2]))
    for r, prompt in enumerate(PROMPTS):
        for place, ids in enumerate(LABEL_IDS):
            with torch.no_grad():
                whole = backbone.model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0]
            logs = log_softmax(whole[len(prompt) - 1 : -1], -1)
            want = sum(float(logs[at, token]) for at, token in enumerate(ids))
            assert float(found[r, place]) == pytest.approx(want, abs=2e-4)


def test_the_figures_are_those_by_hand():
    # Right: rows 0, 1 and 3; example 2 is a b that was taken for an a. Probabilities are given.
    shares = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]]).log()
    found = classification(Task(["a", "b"], [], [[1]] * 4, [0, 1, 1, 0]), shares)
    assert found["accuracy"] == 0.75
    f1 = [
        2 * 2 / (2 + 3),
        2 * 1 / (2 + 1),
    ]  # a: 2 hits, 2 there, 3 given; b: 1 hit, 2 there, 1 given
    assert found["macro_f1"] == pytest.approx(sum(f1) / 2)
    # Each example has a bin of its own: gaps 0.1, 0.2, 0.7 and 0.4.
    assert found["ece"] == pytest.approx((0.1 + 0.2 + 0.7 + 0.4) / 4)
    assert sorted(found["confusions"]) == [["a", "a", 2], ["b", "a", 1], ["b", "b", 1]]


def test_labels_that_are_numbers_are_a_scale_too():
    # Means under the probabilities: 1·0.5 + 2·0.5 = 1.5, 2·0.2 + 4·0.8 = 3.6, and 4.
    shares = torch.tensor([[0.5, 0.5, 1e-30], [1e-30, 0.2, 0.8], [1e-30, 1e-30, 1.0]]).log()
    found = classification(Task(["1", "2.0", "4"], [], [[1]] * 3, [0, 1, 2]), shares)
    assert found["mae"] == pytest.approx((0.5 + 1.6 + 0) / 3)
    assert found["rmse"] == pytest.approx(((0.25 + 2.56 + 0) / 3) ** 0.5)
    # Deviations from the means 3.033 and 2.333: products 2.044 - 0.189 + 1.611, squares by hand.
    assert found["pearson"] == pytest.approx(3.4667 / (3.6067 * 4.6667) ** 0.5, abs=1e-3)
    flat = classification(Task(["1", "2", "3"], [], [[1]] * 2, [1, 1]), shares[:2])
    assert flat["pearson"] is None and flat["mae"] > 0
    for labels in (["1", "2", "three"], ["0", "1"], ["1", "2", "nan"]):
        assert numbers_of(labels) is None


class Letters:
    def decode(self, ids, skip_special_tokens):
        return "".join(" " if i == 0 else chr(96 + i) for i in ids if i < 27)


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([[1, 2], [1, 2, 3], [1, 2]], 'The label "ab" tokenises to the beginning of "abc"'),
        ([[1, 30], [1, 0, 30], [1, 30]], 'Two labels are both "a"'),
        ([[1], [2], [3]], "3 different answers in 3 rows"),
        ([[1], [1]], "1 different answers in 2 rows"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_one_sentence(answers, words):
    rows = [example([40], ids) for ids in answers]
    with pytest.raises(DataError, match=words):
        task_of(rows, rows, Letters())


def test_rows_without_a_prompt_cannot_be_classified():
    rows = [example([], [1, 30]), example([], [2, 30])]
    with pytest.raises(DataError, match="No row has a prompt"):
        task_of(rows, rows, Letters())


def test_the_answers_of_the_rows_are_the_labels():
    rows = [example([40, 41], [1, 30]), example([42], [2, 3, 30]), example([43], [1, 30])]
    task = task_of(rows[1:], rows, Letters())
    assert task.labels == ["a", "bc"]
    assert (task.prompts, task.wanted) == ([[42], [43]], [1, 0])
