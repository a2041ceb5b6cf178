"""A packed row as a padded batch: every token in its place, and a mask of its own row."""

import torch

from studio.backbone.attention import AttentionState
from studio.backbone.row_isolation import isolate, undo, unpack


class Running(torch.nn.Module):
    """A running sum over tokens: the smallest causal mixer."""

    def forward(self, x):
        return x.cumsum(1), x.shape


def test_an_isolated_module_sees_rows_padded_on_the_right():
    state, module = AttentionState(), Running()
    isolate(module, state)
    x = torch.arange(1.0, 7.0).view(1, 6, 1)
    state.lengths = (2, 1, 3)
    output, shape = module(x)
    assert tuple(shape) == (3, 3, 1)
    assert output.flatten().tolist() == [1, 3, 3, 4, 9, 15]
    assert state.lengths == (2, 1, 3)
    undo([module])
    assert module(x)[0].flatten().tolist() == [1, 3, 6, 10, 15, 21]


def test_a_mask_is_divided_into_those_of_its_rows():
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    first, second = unpack(mask, (2, 1))[:, 0].tolist()
    assert first == [[True, False], [True, True]]
    assert second == [[True, False], [True, False]]  # the second query is padding


def test_other_tensors_stay_as_they_are():
    x = torch.zeros(5, 6)
    assert unpack(x, (2, 4)) is x
