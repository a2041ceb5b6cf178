"""The balance of routers, by hand."""

from types import SimpleNamespace

import pytest
import torch

from studio.training.training_session import ExpertBalance, evenness


def test_evenness_is_the_entropy_as_a_part_of_its_largest_value():
    assert evenness(torch.tensor([5, 5, 5, 5])) == pytest.approx(1)
    assert evenness(torch.tensor([9, 0, 0, 0])) == 0
    assert evenness(torch.tensor([4, 4, 0, 0])) == pytest.approx(0.5)  # log 2 / log 4


def test_each_step_counts_its_own_tokens_and_unused_experts_are_named_at_the_end():
    layer = SimpleNamespace(key="layers.0.experts", tokens_E=torch.tensor([3, 3]))
    balance, sibling = ExpertBalance([layer]), ExpertBalance([layer])
    balance.begin_step()
    layer.tokens_E += torch.tensor([2, 0])
    assert balance.of_step() == 0
    sibling.begin_step()
    layer.tokens_E += torch.tensor([0, 7])
    assert sibling.of_step() == 0
    balance.begin_step()
    layer.tokens_E += torch.tensor([4, 0])
    assert balance.of_step() == 0
    site = SimpleNamespace(key="layers.0.experts.down_proj", num_experts=2)
    adapter = SimpleNamespace(sites=[site])
    assert "1 of 2 experts saw no token" in balance.warning(adapter, steps=2, processes=1)
    assert balance.warning(adapter, steps=7, processes=1) == "", "resumed at step 5"
    assert balance.warning(adapter, steps=2, processes=2) == "", "rank 0 saw a half"
    balance.begin_step()
    layer.tokens_E += torch.tensor([0, 1])
    assert balance.of_step() == 1 - 1
    assert balance.warning(adapter, steps=3, processes=1) == ""


def test_a_dense_model_has_no_balance():
    assert ExpertBalance([]).of_step() is None
