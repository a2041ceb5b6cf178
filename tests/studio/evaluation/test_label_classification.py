"""Label scoring equals sums over whole forward passes, and its figures those by hand."""

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax

from studio.backbone import Backbone
from studio.data.token_arrays import Example
from studio.errors import DataError
from studio.evaluation.label_classification import (
    Task,
    classification,
    numbers_of,
    score,
    task_of,
)
from studio.models.loading import load
from studio.spec import ModelSource
from tests.studio.methods.test_matrix import attached
from tests.studio.tiny import tiny_folder, tiny_model

PROMPTS = [[5, 6, 7, 8], [9], [4, 4, 11, 12, 13, 14, 15]]
LABELS = [[20], [21, 22, 1], [21, 23, 24, 25, 1], [30, 1]]


def row(prompt, ids):
    return Example(
        np.array([*prompt, *ids], np.int32), np.array([*[-100] * len(prompt), *ids], np.int32), 0
    )


@pytest.mark.parametrize("model", ["llama", "gpt2", "gemma2", "mixtral"])
@pytest.mark.parametrize("label", ["lora-r=4", "prefix_tuning-num_virtual_tokens=5", ""])
def test_scores_equal_sums_over_whole_passes(tmp_path, model, label):
    backbone = attached(label, model, trained=True)[0] if label else Backbone(tiny_model(model))
    loaded = load(ModelSource(path=str(tiny_folder(tmp_path / "model"))), "cpu")
    loaded.model = backbone.model
    found = score(loaded, backbone, Task(list("abcd"), LABELS, PROMPTS, [0, 1, 2]))
    for r, prompt in enumerate(PROMPTS):
        for place, ids in enumerate(LABELS):
            with torch.no_grad():
                whole = backbone.model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0]
            logs = log_softmax(whole[len(prompt) - 1 : -1], -1)
            want = sum(float(logs[at, token]) for at, token in enumerate(ids))
            assert float(found[r, place]) == pytest.approx(want, abs=2e-4)


def test_the_figures_are_those_by_hand():
    # Right: rows 0, 1 and 3; row 2 is a b that was taken for an a. Probabilities are given.
    shares = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]]).log()
    found = classification(Task(["a", "b"], [], [[1]] * 4, [0, 1, 1, 0]), shares)
    assert found["accuracy"] == 0.75
    f1 = [
        2 * 2 / (2 + 3),
        2 * 1 / (2 + 1),
    ]  # a: 2 hits, 2 there, 3 given; b: 1 hit, 2 there, 1 given
    assert found["macro_f1"] == pytest.approx(sum(f1) / 2)
    # Each row has a bin of its own: gaps 0.1, 0.2, 0.7 and 0.4.
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
    rows = [row([40], ids) for ids in answers]
    with pytest.raises(DataError, match=words):
        task_of(rows, rows, Letters())


def test_rows_without_a_prompt_cannot_be_classified():
    rows = [row([], [1, 30]), row([], [2, 30])]
    with pytest.raises(DataError, match="No row has a prompt"):
        task_of(rows, rows, Letters())


def test_the_answers_of_the_rows_are_the_labels():
    rows = [row([40, 41], [1, 30]), row([42], [2, 3, 30]), row([43], [1, 30])]
    task = task_of(rows[1:], rows, Letters())
    assert task.labels == ["a", "bc"]
    assert (task.prompts, task.wanted) == ([[42], [43]], [1, 0])
