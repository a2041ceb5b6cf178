"""Goals: their templates are what their checker accepts, and their settings are of the form."""

import pytest

from studio import goals
from studio.data.import_dataset import check_file
from studio.errors import InputError
from studio.spec import RunSpec


@pytest.mark.parametrize("kind", ["xlsx", "csv", "jsonl"])
@pytest.mark.parametrize("goal", goals.GOALS, ids=lambda one: one.name)
def test_a_template_is_read_as_what_its_goal_needs(tmp_path, goal, kind):
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(goals.template(goal, kind))
    report = check_file(path)
    assert report.ok and report.rows.kept == len(goal.examples), report.error
    ok, sentence = goals.verdict(goal, report.rows.kept, report.format)
    assert ok and "are the least" in sentence


@pytest.mark.parametrize("goal", goals.GOALS, ids=lambda one: one.name)
def test_settings_are_valid_and_each_has_a_reason(goal):
    usual, most = goal.epochs
    for rows, epochs in (
        (0, usual),
        (60, min(19, most)),
        (1000, max(usual, min(most, 2))),
        (9000, 1),
    ):
        found = goals.settings(goal, rows)
        spec = RunSpec().with_values({name: value for name, (value, _) in found.items()})
        assert all(reason.endswith(".") for _, reason in found.values())
        assert spec.train.num_train_epochs == epochs
        assert spec.method.lora_alpha == 2 * spec.method.r
    quantized = goals.settings(goal, 0, "qlora")
    assert RunSpec().with_values({"method.name": quantized["method.name"][0]}).model.quantization


def test_few_rows_get_epochs_for_enough_steps_up_to_a_maximum():
    chosen = goals.goal("answers")
    epochs, reason = goals.settings(chosen, 60)["train.num_train_epochs"]
    assert (epochs, "19 passes make about 136 steps" in reason) == (19, True)
    epochs, reason = goals.settings(chosen, 16)["train.num_train_epochs"]
    assert (epochs, "20 passes, about 38 steps, are the most" in reason) == (20, True)


def test_the_best_checkpoint_is_kept_only_where_enough_rows_choose_it():
    labels = goals.goal("classify")
    kept = [rows for rows in (0, 100, 150, 160) if "train.load_best_model_at_end" in goals.settings(
        labels, rows)]  # fmt: skip
    assert kept == [0, 160]


def test_rows_of_another_kind_name_the_goal_they_fit():
    ok, sentence = goals.verdict(goals.goal("prefer"), 300, "question_answer")
    assert not ok and "needs prompt and chosen and rejected" in sentence
    assert 'They fit "A voice or a format".' in sentence
    assert goals.verdict(goals.goal("voice"), 300, "messages")[1].endswith("usual are 300.")
    assert "rarely help" in goals.verdict(goals.goal("voice"), 5000, "messages")[1]
    with pytest.raises(InputError, match="voice"):
        goals.goal("voices")
