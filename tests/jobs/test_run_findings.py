"""Findings come from the database, and their commands are those of the command line."""

from jobs.claims import Claim
from jobs.job_queue import JobStore
from jobs.run_curves import Progress
from jobs.run_findings import command, reading
from tests.jobs.conftest import a_spec, begin


def risen(store: JobStore) -> Claim:
    """A finished run whose held-out loss rises since step 40."""
    store.submit(a_spec())
    claim = begin(store)
    losses = [("loss", step, 3.0 - 0.02 * step, 0.0) for step in range(1, 101)]
    held = [("eval_loss", step, 1 + abs(step - 40) / 50, 0.0) for step in range(10, 101, 10)]
    store.claims.report(claim, Progress(metrics=losses + held, step=100, total_steps=100))
    return claim


def test_a_run_is_read_with_its_checkpoints(store, tmp_path):
    claim = risen(store)
    (before,) = reading(store, store.get(claim.job))
    assert before["remedy"]["values"] == {"train.load_best_model_at_end": True}
    store.claims.report(claim, Progress(checkpoints=[(46, str(tmp_path), 1.1)]))
    store.claims.finish(claim, "succeeded")
    (found,) = reading(store, store.get(claim.job))
    assert found["rule"] == "memorises" and found["remedy"]["values"] == {"step": 46}
    assert before["queues"] == {"steps": 20, "seconds": 0} and found["queues"] is None
    job = {"id": 7, "spec": {"model": {"path": "starter"}}}
    assert command(job, found["remedy"]) == (
        "studio compare --lane starter --lane starter~7@46:1 --prompt …"
    )
    assert command(job, before["remedy"]) == (
        "studio duplicate 7 --set train.load_best_model_at_end=true"
    )
    longer = {"action": "extend", "values": {"epochs": 2}}
    assert command(job, longer) == "studio extend 7 --epochs 2"


def test_a_remedy_says_what_it_would_queue(store, tmp_path):
    store.submit(a_spec(num_train_epochs=6, steps=-1))
    claim = begin(store)
    losses = [("loss", step, 2.0 - 0.01 * step, 9 + step / 2) for step in range(1, 41)]
    store.claims.report(claim, Progress(metrics=losses, step=40, total_steps=40))
    store.claims.report(claim, Progress(checkpoints=[(40, str(tmp_path), 1.1)]))
    store.claims.finish(claim, "succeeded", result={"rows": {"held_out": 3}})
    (found,) = reading(store, store.get(claim.job))
    assert found["remedy"]["values"] == {"epochs": 14}  # 40 steps were 6 epochs
    assert found["queues"] == {"steps": 94, "seconds": 47.0}  # half a second a step


def test_pairs_whose_chosen_answer_is_always_the_shorter_one_are_named(store):
    store.submit(a_spec(loss="dpo"))
    claim = begin(store)
    points = [("loss", 0.5), ("rewards_accuracies", 1.0)]
    metrics = [(name, step, value, 0.0) for name, value in points for step in range(1, 101)]
    store.claims.report(claim, Progress(metrics=metrics, step=100, total_steps=100))
    store.claims.finish(claim, "succeeded", result={"longer_chosen": 0.0})
    texts = [one["text"] for one in reading(store, store.get(claim.job))]
    assert any("the shorter one in 100% of the pairs" in text for text in texts)


def test_other_jobs_and_new_runs_have_no_reading(store):
    new = store.get(store.submit(a_spec()).id)
    other = store.submit({"data": {"path": "starter:terse"}}, kind="import")
    assert reading(store, new) == reading(store, other) == []
