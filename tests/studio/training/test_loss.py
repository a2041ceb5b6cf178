"""The loss: rows in batches, computed at label positions only."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from studio.backbone import Backbone
from studio.training import loss as head
from studio.training.allocator_and_threads import chunk_numbers
from studio.training.batching import groups, pack, pad
from studio.training.loss import head_loss, head_measured, loss_sum, packed_hidden, plain_head
from tests.studio.tiny import tiny_model
from tests.studio.training.conftest import Example, make_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("chunk", "wide"), [(50, 50), (150, 50), (8_000_000, 8_000_000)])
def test_the_chunked_loss_and_gradient_equal_the_plain_ones(
    chunk, wide, smoothing, dtype, monkeypatch
):
    monkeypatch.setattr(head, "chunk_numbers", lambda memory, vocabulary: max(chunk, vocabulary))
    monkeypatch.setattr(head, "WIDE_NUMBERS", wide)
    torch.manual_seed(0)
    hidden = torch.randn(13, 8).to(dtype).requires_grad_()
    weight, targets = torch.randn(23, 8).to(dtype), torch.randint(0, 23, (13,))
    logits = (hidden @ weight.T).float()
    plain = cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing) / 7
    (expected,) = torch.autograd.grad(plain, hidden)
    ours = head_loss(hidden, weight, targets, smoothing).sum() / 7
    (got,) = torch.autograd.grad(ours, hidden)
    torch.testing.assert_close(ours, plain)
    rounding = {"rtol": 2e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(got, expected, **rounding)
    total, correct = head_measured(hidden.detach(), weight, targets)
    assert total == pytest.approx(
        float(cross_entropy(logits.detach(), targets, reduction="sum")), rel=1e-5
    )
    assert correct == int((logits.argmax(-1) == targets).sum())


def test_the_divergence_of_two_stacks_reads_the_head_once_per_chunk_of_each(monkeypatch):
    class Head:
        products = 0

        @property
        def weight(self) -> torch.Tensor:
            self.products += 1
            return weight

    torch.manual_seed(0)
    weight, own = torch.randn(23, 8), Head()
    hidden = [torch.randn(13, 8), torch.randn(13, 8)]
    p, q = ((one @ weight.T).log_softmax(-1) for one in hidden)
    expected = float(kl_div(q, p, log_target=True, reduction="sum"))
    monkeypatch.setattr(head, "WIDE_NUMBERS", 50)  # two rows in float32
    for found in (iter([(one, own) for one in hidden]),
                  iter([(one @ weight.T, None) for one in hidden])):  # fmt: skip
        monkeypatch.setattr(head, "_forward", lambda *_, found=found: next(found))
        backbone = SimpleNamespace(use=lambda stack: None)
        assert head.token_kl(backbone, None, (), ()) == pytest.approx(expected, rel=1e-5)
    assert own.products == 1 + 2  # the first for its size


def test_the_fast_way_equals_the_plain_way_on_a_model(session, monkeypatch):
    own = session()
    own.step()
    batch = pack(make_rows(8, seed=1).train, torch.device("cpu"))
    results = []
    for plain in (False, True):
        if plain:
            monkeypatch.setattr("studio.training.loss.plain_head", lambda backbone: None)
        own.optimizer.zero_grad()
        loss = loss_sum(own.backbone, batch)
        loss.backward()
        results.append((loss.detach(), [p.grad.clone() for p in own.parameters]))
    torch.testing.assert_close(results[0][0], results[1][0])
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_padded_rows_compute_no_logits_beside_the_chunks_of_the_loss(session):
    own, rows = session(), make_rows(8, seed=1).train
    seen = list[int]()
    module = own.backbone.model.get_output_embeddings()
    handle = module.register_forward_hook(lambda module, args, logits: seen.append(logits.numel()))
    padded, packed = (
        loss_sum(own.backbone, make(rows, torch.device("cpu"))) for make in (pad, pack)
    )
    handle.remove()
    assert seen == [0, 0]
    torch.testing.assert_close(padded, packed)


def test_evaluations_take_fewer_rows_at_once_where_their_logits_are_held(session, monkeypatch):
    backbone = session().backbone
    vocabulary = backbone.model.get_input_embeddings().weight.shape[0]
    monkeypatch.setattr(head, "EVAL_LOGITS", 7 * vocabulary)
    assert head.eval_tokens(backbone) == head.EVAL_TOKENS
    monkeypatch.setattr(head, "plain_head", lambda backbone: None)
    monkeypatch.setattr(head, "_chunk_rows", lambda weight: 5)
    assert head.eval_tokens(backbone) == 7
    monkeypatch.setattr(head, "_chunk_rows", lambda weight: 9)  # a GPU with much memory
    assert head.eval_tokens(backbone) == 9


def test_the_head_leaves_no_hook_behind(session):
    own = session()
    found = plain_head(own.backbone)
    assert found is not None
    batch = pack(make_rows(3).train or make_rows(8).train, torch.device("cpu"))
    hidden = packed_hidden(own.backbone, found, batch)
    assert hidden.shape == (batch.num_targets, 32)
    assert not found._forward_pre_hooks
    capped = Backbone(tiny_model("gemma2"))
    assert plain_head(capped) is None, "a shaped head goes the plain way"


CPU = torch.device("cpu")


def row(ids: list[int], labels: list[int], number: int = 0) -> Example:
    return Example(np.array(ids, np.int32), np.array(labels, np.int32), number)


ROWS = [row([5, 6, 7], [-100, 6, 7], 4), row([8, 9], [8, 9], 2)]


def test_packing_keeps_the_positions_before_labels():
    batch = pack(ROWS, CPU)
    assert batch.ids_T.tolist() == [5, 6, 7, 8, 9]
    assert batch.lengths == (3, 2)
    # 5→6 and 6→7 in the first row, 8→9 in the second; 7→8 would leak between rows
    assert batch.keep_N.tolist() == [0, 1, 3]
    assert batch.targets_N.tolist() == [6, 7, 9]
    assert batch.rows == (4, 2)
    padded = pad(ROWS, CPU)
    assert padded.ids_BT.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert padded.mask_BT.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert padded.targets_N.tolist() == batch.targets_N.tolist() and padded.num_tokens == 5


def test_groups_hold_every_row_within_the_budget():
    rows = [row([1] * n, [1] * n, n) for n in (2, 9, 4, 3)]
    found = groups(rows, max_tokens=7)
    assert [[len(e.input_ids) for e in g] for g in found] == [[9], [4, 3], [2]]


def test_a_gpu_takes_larger_chunks_of_logits_by_its_memory():
    """2 % of 24 GiB at 6 bytes a logit; never less than a CPU's, never more than 256 million."""
    assert chunk_numbers(24 << 30, 32_000) == int(0.02 * (24 << 30) / 6) == 85_899_345
    assert chunk_numbers(0, 32_000) == 8_000_000
    assert chunk_numbers(0, 256_000) == 128 * 256_000
    assert chunk_numbers(141 << 30, 32_000) == 256_000_000
