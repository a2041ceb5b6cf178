"""Siblings on one base: each run is what it would have been alone, whatever the others do."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from studio.errors import DataError, Diverged, SpecError
from studio.methods import Phase, methods
from studio.spec import RunSpec
from studio.training import siblings, training_loop
from studio.training.siblings import Sibling, SiblingGroup, train_siblings
from studio.training.starting_point import sibling_key
from studio.training.train_run import open_session
from studio.training.training_events import Event, Finished, Saved, Step
from studio.training.training_session import Session
from tests.studio.training.conftest import make_loaded, make_rows, make_session
from tests.studio.training.test_golden import adapter_bytes
from tests.studio.training.test_golden_methods import fields

TRAIN = {
    "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "num_samples": 0,
    "eval_steps": -1, "save_steps": -1,
}  # fmt: skip
SWEEP: list[dict[str, Any]] = [
    {"method": {"name": "lora", "r": 4}},
    {"method": {"name": "lora", "r": 8}, "train": {"learning_rate": 3e-3, "optim": "lion"}},
    {"method": {"name": "lora", "r": 2}, "train": {"label_smoothing_factor": 0.1}, "seed": 3},
    {
        "method": {"name": "lora", "r": 4, "use_rslora": True},
        "train": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
    },
]


def spec_of(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "train": TRAIN | values.get("train", {})}


def grouped(*specs: dict[str, Any]) -> tuple[SiblingGroup, list[Session]]:
    """Siblings on one tiny base, each with the rows a lonely session has."""
    loaded = make_loaded()
    loaded.tokenizer = SimpleNamespace(save_pretrained=lambda folder: None)  # type: ignore[assignment]
    group = SiblingGroup(loaded)
    made = []
    for number, values in enumerate(specs):
        session = open_session(
            RunSpec.parse(spec_of(values)), loaded=loaded, prepared=make_rows(),  # type: ignore[arg-type]
            backbone=group.backbone, name=f"run-{number}",
        )  # fmt: skip
        group.join(session)
        made.append(session)
    return group, made


def alone(values: dict[str, Any], steps: int = 4) -> tuple[Session, list[Step]]:
    session = make_session(**spec_of(values))
    return session, [session.step() for _ in range(steps)]


def rounds(sessions: list[Session], steps: int = 4) -> list[list[Step]]:
    taken = [[session.step() for session in sessions] for _ in range(steps)]
    return [list(own) for own in zip(*taken, strict=True)]


def assert_equals_alone(own: Session, steps: list[Step], values: dict[str, Any]) -> None:
    """Up to the order of float sums: 1e-5 of a loss or a gradient's length after four steps."""
    lonely, expected = alone(values)
    assert [s.loss for s in steps] == pytest.approx([s.loss for s in expected], rel=1e-5)
    assert [s.grad_norm for s in steps] == pytest.approx([s.grad_norm for s in expected], rel=1e-4)
    assert [s.tokens for s in steps] == [s.tokens for s in expected]
    assert [s.learning_rate for s in steps] == [s.learning_rate for s in expected]
    theirs = lonely.adapter.state()
    for name, tensor in own.adapter.state().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-5)


def test_a_sweep_in_one_pass_is_as_if_each_run_were_alone(monkeypatch, caplog):
    passes: list[int] = []
    own = SiblingGroup._loss_sums
    monkeypatch.setattr(
        SiblingGroup,
        "_loss_sums",
        lambda self, crew, b: passes.append(len(crew)) or own(self, crew, b),
    )
    _, sessions = grouped(*SWEEP)
    for session, steps, values in zip(sessions, rounds(sessions), SWEEP, strict=True):
        assert_equals_alone(session, steps, values)
    assert not caplog.records  # no shared pass failed
    assert passes == [4, 1, 1] * 4  # the last run's second and third micro-batch stand alone


@pytest.mark.parametrize("name", [n for n, m in methods().items() if m.phase is not Phase.WEIGHTS])
def test_any_method_is_a_sibling_of_any(name, caplog):
    mixed = [{"method": fields(name)}, *SWEEP[:1], {"method": fields(name), "seed": 1}]
    _, sessions = grouped(*mixed)
    for session, steps, values in zip(sessions, rounds(sessions), mixed, strict=True):
        assert_equals_alone(session, steps, values)
    assert not caplog.records


def test_what_is_random_or_padded_passes_alone_and_not_one_bit_differs():
    specs = [
        {"method": {"name": "lora", "r": 4, "lora_dropout": 0.3}},
        {"method": {"name": "lora", "r": 4}, "train": {"packing": False}},
        {"method": {"name": "lora", "r": 8, "lora_dropout": 0.1}},
    ]
    _, sessions = grouped(*specs)
    found = rounds(sessions)
    for session, steps, values in zip(sessions, found, specs, strict=True):
        lonely, expected = alone(values)
        assert [s.loss for s in steps] == [s.loss for s in expected]
        assert adapter_bytes(session) == adapter_bytes(lonely)


def fail(self: SiblingGroup, *rest: Any) -> None:
    raise RuntimeError("CUDA out of memory.")


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [(siblings.PASS_NUMBERS, "cpu", 0), (SiblingGroup, "_loss_sums", fail)],
    ids=["too large", "out of memory"],
)
def test_rows_that_do_not_fit_into_one_pass_take_turns(monkeypatch, place, name, value):
    (monkeypatch.setitem if isinstance(place, dict) else monkeypatch.setattr)(place, name, value)
    _, sessions = grouped(*SWEEP)
    rounds(sessions)
    for session, values in zip(sessions, SWEEP, strict=True):
        assert adapter_bytes(session) == adapter_bytes(alone(values)[0])


def test_a_loss_that_is_no_number_ends_its_own_run_alone():
    group, sessions = grouped(*SWEEP[:3])
    first = [session.step() for session in sessions]
    with torch.no_grad():
        sessions[1].parameters[1].fill_(float("nan"))
    later = []
    for _ in range(3):
        for number, session in enumerate(list(sessions)):
            if number != 1:
                later.append((number, session.step()))
            elif session in group._sessions:
                with pytest.raises(Diverged, match="at step 2, in rows"):
                    session.step()
                group.leave(session)
    for number in (0, 2):
        steps = [first[number], *(step for n, step in later if n == number)]
        assert_equals_alone(sessions[number], steps, SWEEP[number])


def run_group(
    specs: list[dict[str, Any]], folder: Path, *, stop_at: dict[int, int] | None = None
) -> tuple[list[Session], list[tuple[int, Event | Exception]]]:
    """The whole loop of each run in turns; `stop_at` is the step at which a run is told to stop."""
    group, sessions = grouped(*specs)

    def control(number: int) -> Any:
        wanted = (stop_at or {}).get(number)
        return lambda: "stop" if sessions[number].progress.step == wanted else None

    def events(session: Session, place: Path, control: Any) -> Iterator[Event]:
        yield from training_loop.run(session, run_dir=place, control=control)
        group.leave(session)

    runs: dict[int, Iterator[Event]] = {}
    for number, session in enumerate(sessions):
        place = folder / str(number)
        place.mkdir(parents=True, exist_ok=True)
        runs[number] = events(session, place, control(number))
    return sessions, list(group.interleave(runs))


def test_a_run_that_is_stopped_leaves_the_others_untouched_and_goes_on_later(tmp_path):
    specs = [{**values, "train": {"max_steps": 6, **values.get("train", {})}} for values in SWEEP]
    _, straight = run_group(specs, tmp_path / "whole")
    _, heard = run_group(specs, tmp_path / "halves", stop_at={1: 3})
    told = [(n, e.step, e.loss) for n, e in straight if isinstance(e, Step)]
    first = [(n, e.step, e.loss) for n, e in heard if isinstance(e, Step)]
    assert len([n for n, *_ in first if n == 1]) == 3
    for number in (0, 2, 3):
        ours = [loss for n, _, loss in first if n == number]
        assert ours == pytest.approx([loss for n, _, loss in told if n == number], rel=1e-5)
    ended = {n: e.reason for n, e in heard if isinstance(e, Finished)}
    assert ended == {0: "completed", 1: "stopped", 2: "completed", 3: "completed"}
    later = tmp_path / "later"
    later.mkdir()
    (tmp_path / "halves" / "1").rename(later / "0")
    _, rest = run_group(specs[1:2], later)
    late = [(e.step, e.loss) for _, e in rest if isinstance(e, Step)]
    assert [step for step, _ in late] == [4, 5, 6]
    expected = [loss for n, step, loss in told if n == 1 and step > 3]
    assert [loss for _, loss in late] == pytest.approx(expected, rel=1e-5)


def test_all_killed_and_resumed_is_not_one_bit_different(tmp_path):
    specs = [
        {**v, "train": {"max_steps": 10, "save_steps": 5, **v.get("train", {})}} for v in SWEEP
    ]
    whole, straight = run_group(specs, tmp_path / "whole")
    run_group(specs, tmp_path / "halves", stop_at=dict.fromkeys(range(4), 5))
    second, rest = run_group(specs, tmp_path / "halves")
    assert [e.step for n, e in rest if isinstance(e, Step) and n == 0] == [6, 7, 8, 9, 10]
    told = {(n, e.step): e.loss for n, e in straight if isinstance(e, Step)}
    assert all(told[n, e.step] == e.loss for n, e in rest if isinstance(e, Step))
    for one, other in zip(whole, second, strict=True):
        assert adapter_bytes(one) == adapter_bytes(other)
    kept = {n for n, e in straight if isinstance(e, Saved)}
    assert kept == {0, 1, 2, 3}


def test_one_call_trains_siblings_on_the_starter(home, tmp_path):
    base = {"train": TRAIN | {"eval_steps": 2, "num_samples": 1, "max_steps": 4}}
    specs = [
        RunSpec.parse({**base, "method": {"name": "lora", "r": 4}}),
        RunSpec.parse({**base, "method": {"name": "ia3"}}),
        RunSpec.parse({**base, "method": {"name": "lora", "r": 512}}),  # larger than the model
    ]
    runs = [
        Sibling(spec, tmp_path / str(number), lambda: None) for number, spec in enumerate(specs)
    ]
    heard = list(train_siblings(runs, home=home))
    ended = {n: e for n, e in heard if isinstance(e, Finished | Exception)}
    assert "r = 512 is larger than" in str(ended[2])
    for number in (0, 1):
        finished = ended[number]
        assert isinstance(finished, Finished) and finished.reason == "completed"
        assert (tmp_path / str(number) / "adapter" / "passport.json").is_file()
        assert finished.eval_loss is not None
    again = list(train_siblings(runs[:2], home=home))
    assert [type(e) for _, e in again if not hasattr(e, "text")] == [Finished, Finished]


def test_a_base_that_cannot_be_loaded_ends_every_sibling(home, tmp_path):
    spec = RunSpec.parse({"model": {"path": str(tmp_path / "none")}})
    runs = [Sibling(spec, tmp_path / str(number), lambda: None) for number in range(2)]
    ends = [(n, type(e)) for n, e in train_siblings(runs, home=home) if isinstance(e, Exception)]
    assert [n for n, _ in ends] == [0, 1]


def test_a_run_that_cannot_be_opened_leaves_the_others_training(tmp_path, home, monkeypatch):
    group, sessions = grouped(SWEEP[0])

    def opens(spec: RunSpec, *, name: str, **_: Any) -> Iterator[Event]:
        for one in (name, f"{name}-start-0", "another"):
            group.backbone.attach(one, spec.method)
        group.backbone.train(name)
        raise SpecError("no such optimizer here")
        yield

    monkeypatch.setattr(siblings, "train_on_base", opens)
    with pytest.raises(SpecError):
        list(group.train(Sibling(RunSpec(), tmp_path / "1", lambda: None), home))
    assert {*group.backbone.adapters} == {"run-0", "another"}
    assert_equals_alone(sessions[0], [sessions[0].step() for _ in range(4)], SWEEP[0])


def test_rows_of_another_vocabulary_end_only_the_run_that_has_them():
    _, sessions = grouped(*SWEEP[:2])
    bad = make_rows()
    bad.train[0].input_ids[:] = 4000
    sessions[1].prepared = bad  # type: ignore[assignment]
    steps = []
    for _ in range(4):
        steps.append(sessions[0].step())
        with pytest.raises(DataError):
            while True:
                sessions[1].step()
    assert_equals_alone(sessions[0], steps, SWEEP[0])


def test_kin_share_base_data_and_place_and_nothing_else():
    spec = RunSpec()
    for same in (
        {"method.r": 4}, {"train.learning_rate": 0.1}, {"seed": 4}, {"name": "x"},
        {"method.name": "ia3"}, {"train.max_steps": 4}, {"train.optim": "lion"},
    ):  # fmt: skip
        assert sibling_key(spec.with_values(same)) == sibling_key(spec)
    for other in (
        {"data.path": "starter:shouting"}, {"data.max_length": 64}, {"model.dtype": "bfloat16"},
        {"train.device": "cpu"}, {"train.gradient_checkpointing": True},
        {"train.tf32": not spec.train.tf32},
        {"train.triton_kernels": not spec.train.triton_kernels}, {"train.loss": "grpo"},
    ):  # fmt: skip
        assert sibling_key(spec.with_values(other)) != sibling_key(spec)
    for alone_ in (
        {"train.together": False}, {"method.name": "full"}, {"train.neftune_noise_alpha": 5},
        {"train.num_processes": 2}, {"train.retry_when_out_of_memory": True},
    ):  # fmt: skip
        assert sibling_key(spec.with_values(alone_)) is None
