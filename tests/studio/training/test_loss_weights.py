"""Rows with weights: the loss is `Σ w_n loss_n / Σ w_n` over the tokens of a step."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from studio.training.batching import pack, pad
from studio.training.loss import evaluate_loss
from studio.training.training_session import Session, forward_backward
from tests.studio.training import conftest, test_siblings
from tests.studio.training.conftest import make_rows

CPU = torch.device("cpu")


def weighed(count: int = 24, *, ones: bool = False):
    """Rows, two of three of which have a weight for each half of what they train."""
    made = make_rows(count, shortest=6)
    for number, row in enumerate([*made.train, *made.validation]):
        if number % 3:
            row.weights = np.ones(len(row.labels), np.float32)
            if not ones:
                row.weights[-3:], row.weights[-1] = 0.25, 3.5
    return made


def by_formula(own, rows, smoothing):
    """Return the weighted mean of plain cross entropies, one row at a time."""
    total, weight = 0.0, 0.0
    for row in rows:
        logits = own.loaded.model(input_ids=torch.tensor(row.input_ids)[None].long()).logits[0]
        labels = torch.tensor(row.labels).long()
        weights = torch.ones(len(labels)) if row.weights is None else torch.tensor(row.weights)
        losses = cross_entropy(
            logits[:-1], labels[1:], reduction="none", ignore_index=-100, label_smoothing=smoothing
        )
        total = total + (losses * weights[1:]).sum()
        weight += float(weights[1:][labels[1:] != -100].sum())
    return total / weight


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("head", ["fast", "plain"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradient_are_those_of_the_formula(session, monkeypatch, packing, head, smoothing):
    if head == "plain":
        monkeypatch.setattr("studio.training.loss.plain_head", lambda backbone: None)
    own = session(weighed(), train={
        "packing": packing, "label_smoothing_factor": smoothing, "max_steps": 6,
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
    })  # fmt: skip
    own.step()  # else one factor of the adapter is zero
    rows = [own.prepared.train[i] for some in own.next_rows() for i in some]
    assert {row.weights is None for row in rows} == {True, False}
    passed = own.forward_backward(own)
    found = [p.grad.clone() for p in own.parameters]
    own.optimizer.zero_grad()
    wanted = by_formula(own, rows, smoothing)
    wanted.backward()

    torch.testing.assert_close(sum(passed.losses), wanted.detach())
    for one, parameter in zip(found, own.parameters, strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-4, atol=1e-7)


def test_four_batches_of_one_row_are_one_of_four(session):
    steps = [
        session(weighed(), train={
            "max_steps": 6, "per_device_train_batch_size": size, "gradient_accumulation_steps": more
        }).step()
        for size, more in ((4, 1), (1, 4))
    ]  # fmt: skip

    assert steps[0].loss == pytest.approx(steps[1].loss, rel=1e-6)
    assert steps[0].grad_norm == pytest.approx(steps[1].grad_norm, rel=1e-5)


def test_weights_of_one_change_not_one_bit(session):
    alike = [session(rows).step() for rows in (make_rows(24, shortest=6), weighed(ones=True))]

    assert (alike[0].loss, alike[0].grad_norm) == (alike[1].loss, alike[1].grad_norm)


def test_weights_change_what_is_learned(session):
    first, second = [session(rows).step() for rows in (make_rows(24, shortest=6), weighed())]

    assert first.loss != pytest.approx(second.loss, rel=1e-3)


@pytest.mark.parametrize("make", [pack, pad])
def test_the_held_out_loss_is_weighed_and_the_accuracy_is_not(session, make):
    own = session(weighed())
    rows = own.prepared.validation

    found = evaluate_loss(own.backbone, [make(rows[:2], CPU), make(rows[2:], CPU)])

    assert found.loss == pytest.approx(float(by_formula(own, rows, 0.0).detach()), rel=1e-5)
    plain = evaluate_loss(own.backbone, [make(make_rows(24, shortest=6).validation, CPU)])
    assert (found.accuracy, found.tokens) == (plain.accuracy, plain.tokens)


def test_siblings_have_the_weights_of_their_own_rows(monkeypatch):
    for module in (conftest, test_siblings):
        monkeypatch.setattr(module, "make_rows", weighed)
    _, sessions = test_siblings.grouped(*test_siblings.SWEEP)
    steps = test_siblings.rounds(sessions)
    for session, taken, values in zip(sessions, steps, test_siblings.SWEEP, strict=True):
        test_siblings.assert_equals_alone(session, taken, values)


def test_a_rank_without_rows_has_a_sum_of_weights_with_its_fraction(session, monkeypatch):
    """The sum over ranks has the type of the rank's own number."""
    own, sums = session(), list[object]()
    monkeypatch.setattr(Session, "next_rows", lambda self: [])
    monkeypatch.setattr(Session, "sum_over_ranks", lambda self, value: sums.append(value) or value)
    forward_backward(own)
    assert [type(one) for one in sums] == [float]
