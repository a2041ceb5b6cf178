"""`studio bench train --loss dpo`: this studio and TRL take the same steps on the same pairs."""

from contextlib import contextmanager

import numpy as np
import pytest

from studio.errors import InputError
from ui.bench.peer_trainers import PEERS
from ui.bench.train_speed import bench_train
from ui.bench.training_case import SYNTHETIC, BenchCase, make_pairs, prepare_case, read_case

CASE = BenchCase(
    model="llama-tiny", data=SYNTHETIC, method="lora", dtype="float32", batch=2, steps_per_round=1,
    rounds=1, learning_rate=1e-2, loss="dpo",
)  # fmt: skip


class Gate:
    """A turnstile that is always open."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []

    def before(self, step: int) -> None: ...

    def after(self) -> None: ...

    @contextmanager
    def counting(self, step: int):
        yield

    def note(self, *, loss: float, grad_norm: float) -> None:
        self.steps.append((loss, grad_norm))


def test_pairs_share_their_prompt_and_answer_at_lengths_of_their_own():
    rows = make_pairs(20, vocabulary=100)
    assert [row.row for row in rows] == list(range(40))
    for chosen, rejected in zip(rows[::2], rows[1::2], strict=True):
        start = int((chosen.labels != -100).argmax())
        assert start == int((rejected.labels != -100).argmax())
        assert np.array_equal(chosen.input_ids[:start], rejected.input_ids[:start])
        assert len(chosen.input_ids) == len(chosen.labels)
        assert len(rejected.input_ids) == len(rejected.labels) > start


@pytest.mark.filterwarnings("ignore")
def test_both_take_the_same_steps(tmp_path):
    pytest.importorskip("trl", reason='the peer is in the extra "bench"')
    prepare_case(CASE, tmp_path)
    case, rows = read_case(tmp_path)
    found = {}
    for name in ("ours", "trl"):
        gate = Gate()
        PEERS[name](tmp_path, case, rows, gate)
        found[name] = gate.steps
    assert len(found["ours"]) == case.steps
    assert found["ours"][0][0] == pytest.approx(0.6931, abs=1e-3)
    assert np.array(found["trl"]) == pytest.approx(np.array(found["ours"]), rel=1e-2)


def test_a_peer_without_the_loss_is_named(tmp_path):
    with pytest.raises(InputError, match="hf has no dpo"):
        bench_train(tmp_path, CASE, "hf", 0)
