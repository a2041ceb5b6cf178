import pytest

from studio.errors import DataError
from studio.methods.lora import Lora
from studio.spec import RunSpec
from studio.training.steps_and_learning_rate import Plan, epoch_order, lr_at, lr_for, plan_run


def make_plan(num_rows: int, *, num_held_out: int = 64, **train: object) -> Plan:
    spec = RunSpec.parse({"train": train})
    return plan_run(spec, num_rows=num_rows, hidden_size=2000, num_held_out=num_held_out)


def test_an_epoch_visits_every_row_once_in_an_order_of_seed_and_epoch():
    plan = make_plan(10, per_device_train_batch_size=5, num_train_epochs=2)
    assert plan.total_steps == 4
    first = plan.step_rows(0) + plan.step_rows(1)
    second = plan.step_rows(2) + plan.step_rows(3)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    orders = [epoch_order(50, seed=seed, epoch=2).tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_the_number_of_steps_follows_rows_epochs_and_max_steps():
    assert make_plan(100, max_steps=7, num_train_epochs=50).total_steps == 7
    small = make_plan(3, per_device_train_batch_size=8, num_train_epochs=4)
    assert small.total_steps == 4, "less than a batch is one full batch"
    assert sorted(small.step_rows(2)) == [0, 1, 2]
    with pytest.raises(DataError, match="no usable row"):
        make_plan(0)


def test_steps_run_over_the_end_of_an_epoch():
    plan = make_plan(3, per_device_train_batch_size=2, num_train_epochs=2)
    rows = plan.step_rows(0) + plan.step_rows(1) + plan.step_rows(2)
    assert plan.total_steps == 3
    assert sorted(rows[:3]) == sorted(rows[3:]) == [0, 1, 2]


def test_accumulation_and_processes_share_a_steps_rows_without_overlap():
    large = make_plan(64, per_device_train_batch_size=4)
    small = make_plan(64, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert large.micro_batches(7) == [small.step_rows(7)]
    assert small.micro_batches(7) == [[row] for row in large.step_rows(7)]
    plan = make_plan(64, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    shares = [plan.micro_batches(3, process=p, processes=3) for p in range(3)]
    rows = [row for share in shares for batch in share for row in batch]
    assert sorted(rows) == sorted(plan.step_rows(3))


def test_evaluations_take_the_same_rows_however_long_a_run_is_and_a_users_interval_all():
    few = make_plan(100, max_steps=95, num_held_out=16)
    assert few.eval_every == 10, "0 means about ten evaluations"
    assert make_plan(100, max_steps=95, eval_steps=-1).eval_every > 95
    assert make_plan(100, max_steps=95, save_steps=4).save_every == 4
    assert make_plan(5000, max_steps=30).eval_rows == make_plan(5000, max_steps=500).eval_rows == 64
    assert make_plan(5000, max_steps=30, eval_steps=10).eval_rows > 5000
    assert make_plan(5000, max_steps=30).eval_every == 15, "a sixth of the work at most"


def test_schedules_rise_linearly_and_end_where_they_should():
    rates = [lr_at(s, peak=1.0, total=10, warmup=4, scheduler="linear") for s in range(5)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0]

    def rate(step: int, scheduler: str) -> float:
        return lr_at(step, peak=2.0, total=100, warmup=0, scheduler=scheduler)

    assert rate(50, "cosine") == pytest.approx(1.0)
    assert rate(75, "linear") == pytest.approx(0.5)
    assert rate(79, "warmup_stable_decay") == 2.0
    assert rate(90, "warmup_stable_decay") == pytest.approx(1.0)  # halfway down the last fifth
    assert rate(99, "constant") == rate(99, "constant_with_warmup") == 2.0


def test_auto_learning_rate_follows_the_width_and_is_bounded():
    assert lr_for(Lora(), 2000) == pytest.approx(5e-4)
    # 5e-4 * (2000 / 500) ** 0.775 = 5e-4 * 2.928
    assert lr_for(Lora(), 500) == pytest.approx(1.4641e-3, rel=1e-3)
    assert lr_for(Lora(), 64) == 5e-3
