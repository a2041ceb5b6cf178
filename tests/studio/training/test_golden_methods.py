"""What must be exactly so for every method of the registry; a new method file is held to it too."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest

from studio.methods import Phase, methods
from studio.training.batching import pad
from studio.training.loss import loss_sum
from studio.training.training_events import Evaluated, Step
from studio.training.training_session import Session
from tests.studio.methods.cases import SMALL
from tests.studio.training.conftest import make_model, run_all
from tests.studio.training.peer import CPU, train_with_hf
from tests.studio.training.test_golden import adapter_bytes, run_steps

Make = Callable[..., Session]
MORE: dict[str, dict[str, Any]] = {
    "bitfit": {"create_missing": True},  # a Llama has no bias of its own
    "prompt_tuning": {"num_virtual_tokens": 4, "prompt_tuning_init": "RANDOM"},
}
DROPOUT = {"lora": "lora_dropout", "vera": "vera_dropout", "bottleneck": "adapter_dropout"}
VIRTUAL = (Phase.KEYS_VALUES, Phase.PROMPT)
NO_PEFT = {"bitfit", "bottleneck"}


def fields(name: str) -> dict[str, Any]:
    return {"name": name, **(MORE.get(name) or SMALL.get(name, [{}])[0])}


def made(session: Make, name: str, dropout: bool = False, **train: Any) -> Session:
    method = fields(name) | ({DROPOUT[name]: 0.2} if dropout and name in DROPOUT else {})
    return session(
        method=method,
        train={
            "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3,
            "lr_scheduler_type": "constant", "num_samples": 0, **train,
        },
    )  # fmt: skip


def peft_twin(own: Session, folder: Path) -> Any:
    """PEFT's model with the very parameters of the session's adapter, ready to train."""
    method, base = own.adapter.method, make_model()
    if method.phase is Phase.WEIGHTS:
        return base
    if method.phase not in VIRTUAL:
        own.backbone.save("trained", folder)
        return peft.PeftModel.from_pretrained(base, folder, is_trainable=True)
    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[method.peft_type]
    sizes = {k: v for k, v in fields(method.name).items() if k in kind.__dataclass_fields__}
    sizes = {k: v for k, v in sizes.items() if k not in ("name", "prompt_tuning_init")}
    theirs = peft.get_peft_model(base, kind(task_type="CAUSAL_LM", **sizes))
    ((_, params),) = own.adapter.params.items()
    state = {
        f"mlp_head.{name[4:]}" if name.startswith("mlp.") else f"{name}.weight": tensor
        for name, tensor in params.items()
    }
    theirs.prompt_encoder["default"].load_state_dict(state, strict=True)
    return theirs


def assert_same(one: list[Step], other: list[Step]) -> None:
    assert [s.loss for s in one] == pytest.approx([s.loss for s in other], rel=2e-5)
    assert [s.grad_norm for s in one] == pytest.approx([s.grad_norm for s in other], rel=5e-4)


def test_methods_that_peft_lacks_are_named():
    known = peft.PEFT_TYPE_TO_CONFIG_MAPPING
    assert {n for n, m in methods().items() if m.peft_type and m.peft_type not in known} == NO_PEFT


@pytest.mark.parametrize("name", methods())
def test_batches_and_padding_change_nothing(session, name):
    large = made(session, name)
    steps = run_steps(large, 3)
    small = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    for change in (small, {"packing": False}):
        other = made(session, name, **change)
        again = run_steps(other, 3)
        assert_same(steps, again)
        assert [s.tokens for s in steps] == [s.tokens for s in again]
        assert large.evaluate().eval_loss == pytest.approx(other.evaluate().eval_loss, rel=1e-5)


@pytest.mark.parametrize("name", methods())
def test_a_stop_and_a_resume_change_not_one_bit(session, name, tmp_path):
    def new() -> Session:
        own = made(session, name, dropout=True, max_steps=6, save_steps=-1, eval_steps=3)
        own.loaded.tokenizer = SimpleNamespace(save_pretrained=lambda folder: None)
        return own

    whole, second = new(), new()
    straight = run_all(whole, tmp_path / "whole")
    first = run_all(new(), tmp_path / "halves", stop_at=3)
    rest = run_all(second, tmp_path / "halves")
    assert (first[-1].reason, first[-1].adapter) == ("stopped", None)
    assert rest[-1].first_loss == straight[-1].first_loss
    assert adapter_bytes(whole) == adapter_bytes(second)
    for kind, fields_ in ((Step, ("loss", "grad_norm")), (Evaluated, ("eval_loss",))):
        told = [
            [(e.step, *(getattr(e, field) for field in fields_)) for e in events
             if isinstance(e, kind)]
            for events in (straight, first + rest)
        ]  # fmt: skip
        assert told[0] == told[1]


@pytest.mark.parametrize(
    ("name", "accumulation"), [*((n, 1) for n in methods() if n not in NO_PEFT), ("lora", 2)]
)
def test_losses_and_gradients_equal_hf_trainer(session, name, accumulation, tmp_path):
    own = made(session, name, gradient_accumulation_steps=accumulation)
    rows = [own.prepared.train[r] for step in range(3) for r in own.plan.step_rows(step)]
    theirs = peft_twin(own, tmp_path)
    losses, norms = train_with_hf(theirs, rows, tmp_path / "hf", steps=3, accumulation=accumulation)
    ours = run_steps(own, 3)
    assert [s.loss for s in ours] == pytest.approx(losses, rel=2e-5)
    assert [s.grad_norm for s in ours] == pytest.approx(norms, rel=5e-4)


@pytest.mark.parametrize("name", sorted(NO_PEFT))
def test_the_gradient_is_the_slope_of_the_loss(session, name):
    own = made(session, name)
    run_steps(own, 1)
    batch = pad([own.prepared.train[r] for r in range(4)], CPU)
    own.optimizer.zero_grad()
    loss_sum(own.backbone, batch).backward()
    parameter = max(own.parameters, key=lambda p: float(p.grad.abs().max()))
    place = int(parameter.grad.abs().argmax())
    slope, step = float(parameter.grad.view(-1)[place]), 1e-2
    values = []
    for sign in (1, -1):
        parameter.data.view(-1)[place] += sign * step
        values.append(loss_sum(own.backbone, batch).item())
        parameter.data.view(-1)[place] -= sign * step
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=2e-2)
