"""The search of a learning rate: it takes the best trial and leaves no trace in the run."""

import json
from dataclasses import replace

import pytest

from jobs.job_inputs import admit_each
from studio.errors import SpecError
from studio.home import open_home
from studio.spec import RunSpec
from studio.training import objectives, train_run
from studio.training.steps_and_learning_rate import MOST_EVAL_ROWS
from studio.training.train_run import open_session, train
from studio.training.training_events import Finished, Loading, Started


def spec(method: str, **train_args) -> RunSpec:
    values = {
        "method.name": method, "train.max_steps": 8, "train.num_samples": 0, "train.save_steps": -1,
        "data.max_length": 64, "train.self_test": False, "train.measure_forgetting": False,
        **{f"train.{name}": value for name, value in train_args.items()},
    }  # fmt: skip
    return RunSpec().with_values(values)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_best_trial_trains_as_if_it_had_been_given(method, tmp_path, monkeypatch):
    home, trial_plans = open_home(tmp_path / "home"), []

    def opened(*given, **options):
        session = open_session(*given, **options)
        if session.name == train_run.TRIAL:
            trial_plans.append(session.plan)
        return session

    monkeypatch.setattr(train_run, "open_session", opened)
    searched = list(train(spec(method, find_learning_rate=True), run_dir=tmp_path / "a", home=home))
    (rate,) = (event.learning_rate for event in searched if isinstance(event, Started))
    trials = [e.text for e in searched if isinstance(e, Loading) and "trial" in e.text]
    assert len(trials) == len(train_run.FACTORS)
    assert {plan.eval_rows for plan in trial_plans} == {MOST_EVAL_ROWS}
    given = list(train(spec(method, learning_rate=rate), run_dir=tmp_path / "b", home=home))
    ends = [events[-1] for events in (searched, given)]
    assert all(isinstance(end, Finished) for end in ends)
    one, other = (replace(end, adapter="", facts=None, seconds=0) for end in ends)
    assert one == other


def test_a_search_that_was_interrupted_repeats_no_trial_and_a_run_under_way_none(tmp_path):
    home, trials = open_home(tmp_path / "home"), []

    def events(folder, *, until=("never",), control=lambda: None):
        wanted = spec("lora", find_learning_rate=True)
        for event in train(wanted, run_dir=tmp_path / folder, home=home, control=control):
            yield event
            if isinstance(event, Loading) and ": trial " in event.text:
                trials.append(event.text.partition(": ")[2])
                if event.text.endswith(until):
                    return

    def rate(found):
        return next(one.learning_rate for one in found if isinstance(one, Started))

    whole = rate(events("whole"))
    trials.clear()
    list(events("cut", until="trial 3 of 4"))
    list(events("cut", control=lambda: "stop"))  # after a step, with a checkpoint
    assert [text[:7] for text in trials] == [f"trial {n}" for n in (1, 2, 3, 3, 4)]
    assert rate(events("cut")) == whole
    (tmp_path / "cut" / train_run.TRIALS).unlink()  # a run on a cluster brings none
    assert rate(events("cut")) == whole
    assert len(trials) == 5


def test_the_search_needs_held_out_rows_and_one_process(tmp_path, monkeypatch):
    with pytest.raises(SpecError, match="needs a single process"):
        objectives.check(spec("lora", find_learning_rate=True, num_processes=2))
    home, few = open_home(tmp_path / "home"), tmp_path / "few.jsonl"
    few.write_text("\n".join(json.dumps({"question": f"{n}?", "answer": "yes"}) for n in "abc"))
    wanted = spec("lora", find_learning_rate=True)
    monkeypatch.setattr(train_run, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    for none_held in ({"data.validation_fraction": 0}, {"data.path": str(few)}):
        with pytest.raises(SpecError, match="no row is held out"):
            list(train(wanted.with_values(none_held), run_dir=tmp_path / "a", home=home))
        with pytest.raises(SpecError, match="no row is held out"):
            admit_each([wanted.with_values(none_held)], home)
    objectives.check_held_out(wanted, home)
    own_split = {"data.validation_fraction": 0, "data.validation_path": "starter:json"}
    objectives.check_held_out(wanted.with_values(own_split), home)
