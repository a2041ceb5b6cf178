from dataclasses import dataclass

import numpy as np
import torch

from studio.training.batch import groups, pack, pad

CPU = torch.device("cpu")


@dataclass
class Row:
    input_ids: np.ndarray
    labels: np.ndarray
    row: int


def row(ids: list[int], labels: list[int], number: int = 0) -> Row:
    return Row(np.array(ids, np.int32), np.array(labels, np.int32), number)


ROWS = [row([5, 6, 7], [-100, 6, 7], 4), row([8, 9], [8, 9], 2)]


def test_packing_keeps_the_positions_before_labels():
    batch = pack(ROWS, CPU)
    assert batch.ids_T.tolist() == [5, 6, 7, 8, 9]
    assert batch.lengths == (3, 2)
    # 5→6 and 6→7 in the first row, 8→9 in the second; 7→8 would leak between rows
    assert batch.keep_N.tolist() == [0, 1, 3]
    assert batch.targets_N.tolist() == [6, 7, 9]
    assert batch.rows == (4, 2)


def test_padding_carries_the_same_targets():
    batch = pad(ROWS, CPU)
    assert batch.ids_BT.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch.mask_BT.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.targets_N.tolist() == pack(ROWS, CPU).targets_N.tolist()
    assert batch.num_tokens == 5


def test_groups_hold_every_row_within_the_budget():
    rows = [row([1] * n, [1] * n, n) for n in (2, 9, 4, 3)]
    found = groups(rows, max_tokens=7)
    assert [[len(e.input_ids) for e in g] for g in found] == [[9], [4, 3], [2]]
