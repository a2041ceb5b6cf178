import json
from typing import Any

import pytest
import torch
from torch import nn

from studio.errors import SpecError
from studio.train_args import TrainArgs
from studio.training.optimizer import make_optimizer, restore, set_learning_rate, state_tensors

CPU_OPTIMIZERS = ["adamw", "adafactor", "lion", "muon"]


def made(optim: str, **args: Any) -> tuple[list[tuple[str, nn.Parameter]], Any]:
    torch.manual_seed(0)
    named = [
        ("q/lora_A", nn.Parameter(torch.randn(4, 6))),
        ("q/lora_B", nn.Parameter(torch.randn(6, 4))),
        ("q/bias", nn.Parameter(torch.randn(6))),
    ]
    return named, make_optimizer(named, TrainArgs(optim=optim, **args))


def walk(named: list[tuple[str, nn.Parameter]], optimizer: Any, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        torch.manual_seed(100 + step)
        for _, parameter in named:
            parameter.grad = torch.randn_like(parameter)
        set_learning_rate(optimizer, 1e-2)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("optim", CPU_OPTIMIZERS)
def test_a_restored_optimizer_goes_on_bit_for_bit(optim):
    whole, one = made(optim)
    walk(whole, one, 6)
    halves, first = made(optim)
    walk(halves, first, 3)
    again, second = made(optim)
    for (_, a), (_, b) in zip(again, halves, strict=True):
        a.data.copy_(b)
    restore(second, *state_tensors(first))
    walk(again, second, 3, first=3)
    for (_, a), (_, b) in zip(whole, again, strict=True):
        assert torch.equal(a, b)


def test_lion_is_the_sign_of_its_interpolated_moment():
    named, optimizer = made("lion", weight_decay=0.5)
    parameter = named[0][1]
    expected, moment = parameter.detach().clone(), torch.zeros(4, 6)
    for step in range(3):
        torch.manual_seed(100 + step)
        gradient = torch.randn(4, 6)
        update = (0.9 * moment + 0.1 * gradient).sign()
        expected = expected - 1e-2 * (update + 0.5 * expected)
        moment = 0.99 * moment + 0.01 * gradient
    walk(named, optimizer, 3)
    torch.testing.assert_close(parameter.detach(), expected)


def test_muons_update_is_orthogonal_and_vectors_go_with_adamw():
    named, optimizer = made("muon")
    before = [p.detach().clone() for _, p in named]
    walk(named, optimizer, 1)
    moved = before[0] - named[0][1].detach()
    sizes = torch.linalg.svdvals(moved)
    assert float(sizes.max() / sizes.min()) < 2  # Newton-Schulz leaves 0.7 to 1.2 of each
    # 0.2 √max(4, 6) of the rate, the size of AdamW's updates
    assert float(sizes.mean()) == pytest.approx(1e-2 * 0.2 * 6**0.5, rel=0.3)
    torch.testing.assert_close(
        (before[2] - named[2][1].detach()).abs(), torch.full((6,), 1e-2), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("first", [0, 1])
def test_muon_takes_the_matrices_of_a_group_and_adamw_the_stacks_of_experts(first):
    named = [("q/lora_A", nn.Parameter(torch.randn(4, 6))),
             ("experts/lora_A", nn.Parameter(torch.randn(3, 4, 6)))]  # fmt: skip
    optimizer = make_optimizer(named[first:] + named[:first], TrainArgs(optim="muon"))
    walk(named, optimizer, 1)
    kinds = [(type(part).__name__, part.param_groups[0]["params"]) for part in optimizer.parts]
    assert [kind for kind, _ in kinds] == ["Muon", "AdamW"]
    assert [one is p for (_, (one,)), (_, p) in zip(kinds, named, strict=True)] == [True, True]


def test_quantised_state_is_kept_as_tensors_and_restored():
    bitsandbytes = pytest.importorskip("bitsandbytes")

    def fresh() -> tuple[list[tuple[str, nn.Parameter]], Any]:
        torch.manual_seed(0)
        named = [("q/lora_A", nn.Parameter(torch.randn(64, 64)))]  # fewer numbers stay in 32 bit
        groups = [{"params": [p for _, p in named], "scale": 1.0}]
        return named, bitsandbytes.optim.AdamW8bit(groups, lr=0.0)

    whole, one = fresh()
    walk(whole, one, 2)
    tensors, numbers = state_tensors(one)
    assert json.loads(json.dumps(numbers)) == {"0/step": 2}
    assert {t.dtype for t in tensors.values()} == {torch.uint8, torch.float32}
    again, other = fresh()
    again[0][1].data.copy_(whole[0][1])
    restore(other, tensors, numbers)
    walk(whole, one, 2, first=2)
    walk(again, other, 2, first=2)
    assert torch.equal(whole[0][1], again[0][1])


def test_lora_plus_lets_b_learn_faster():
    plain, fast = made("adamw"), made("adamw", loraplus_lr_ratio=16)
    for named, optimizer in (plain, fast):
        walk(named, optimizer, 1)
    start = made("adamw")[0]
    moved = [
        [(p - s).abs().mean().item() for (_, p), (_, s) in zip(named, start, strict=True)]
        for named, _ in (plain, fast)
    ]
    assert [fast / slow for slow, fast in zip(*moved, strict=True)] == pytest.approx(
        [1, 16, 1], rel=1e-4
    )


def test_vectors_are_never_decayed():
    named, optimizer = made("adamw", weight_decay=0.1)
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert [decays[id(p)] for _, p in named] == [0.1, 0.1, 0.0]


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
def test_eight_bits_without_a_gpu_is_one_sentence(optim):
    with pytest.raises(SpecError, match=f"train.optim is {optim}, which needs a CUDA GPU"):
        made(optim)
