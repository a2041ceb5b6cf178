"""Curves: thinned without losing a spike, and a cursor that misses nothing."""

import math
import random
from contextlib import closing

from jobs.claims import Claim
from jobs.job_queue import JobStore
from jobs.progress_reporter import Reporter
from jobs.run_curves import Progress
from studio.training.training_events import Forgotten
from tests.jobs.conftest import a_spec, begin, curve


def running(store: JobStore) -> Claim:
    store.submit(a_spec())
    return begin(store)


def write(store: JobStore, claim: Claim, values: dict[int, float], name: str = "loss") -> None:
    rows = [(name, step, value, 0.0) for step, value in values.items()]
    store.claims.report(claim, Progress(metrics=rows, step=max(values)))


def test_the_cursor_brings_only_what_is_new_and_steps_done_again(store):
    claim = running(store)
    write(store, claim, {1: 3.0, 2: 2.0})
    whole = store.metrics([claim.job], ["loss", "eval_loss"])
    seq, key = whole["seq"], str(claim.job)
    assert whole["snapshot"] and whole["data"] == {"loss": {key: {"x": [1, 2], "y": [3.0, 2.0]}}}
    assert store.metrics([claim.job], ["loss"], after_seq=seq)["data"] == {}
    write(store, claim, {2: 2.5, 3: 1.0})
    delta = store.metrics([claim.job], ["loss"], after_seq=seq)
    assert delta["snapshot"] is False
    assert delta["data"]["loss"][str(claim.job)] == {"x": [2, 3], "y": [2.5, 1.0]}
    assert store.metrics([claim.job], ["loss"], after_seq=delta["seq"])["data"] == {}


def test_points_of_the_forgetting_curve_become_a_series(store):
    claim = running(store)
    reporter = Reporter(store, claim)
    reporter.start()
    for step, value in ((0, 0.0), (5, 0.25)):
        reporter.record(Forgotten(step=step, forgetting=value))
    reporter.close()
    found = store.metrics([claim.job], ["forgetting"])["data"]["forgetting"][str(claim.job)]
    assert found == {"x": [0, 5], "y": [0.0, 0.25]}


def test_the_cursor_never_goes_back_when_a_job_is_deleted(store):
    claim = running(store)
    write(store, claim, {1: 1.0})
    seq = store.metrics([claim.job], ["loss"])["seq"]
    store.claims.finish(claim, "succeeded")
    store.delete(claim.job)
    other = running(store)
    write(store, other, {1: 4.0})
    assert curve(store, other.job, after_seq=seq)["y"] == [4.0]


def test_what_is_no_finite_number_is_a_gap_with_a_flag(store):
    claim = running(store)
    write(store, claim, {1: math.nan, 2: math.inf, 3: -math.inf, 4: 1.0})
    assert curve(store, claim.job)["y"] == [
        None, None, None, 1.0,
    ]  # fmt: skip
    with store.database.reading() as db:
        flags = db.conn.execute("SELECT flag FROM metrics ORDER BY step").fetchall()
    assert flags == [("nan",), ("inf",), ("-inf",), (None,)]
    folder = str(store.home.path)
    store.claims.report(claim, Progress(step=4, checkpoints=[(4, folder, math.inf)]))
    assert [row["eval_loss"] for row in store.checkpoints(claim.job)] == [None]


def test_thinning_keeps_spikes_gaps_and_ends(store):
    claim = running(store)
    values = {step: 1.0 / step for step in range(1, 5001)}
    values[2345], values[3456] = 99.0, math.nan
    write(store, claim, values)
    series = curve(store, claim.job, bins=100)
    assert len(series["x"]) <= 2 * 100 + 2
    assert series["x"] == sorted(series["x"])
    assert series["y"][series["x"].index(2345)] == 99.0
    assert series["y"][series["x"].index(3456)] is None
    assert (series["x"][0], series["x"][-1]) == (1, 5000)
    window = curve(store, claim.job, bins=100, window=(1000, 1050))
    assert window["x"] == list(range(1000, 1051)), "every point inside"
    everything = curve(store, claim.job, bins=0)
    assert everything["x"] == list(range(1, 5001))
    assert series["thinned"] and "thinned" not in window.keys() | everything.keys()


def test_a_growing_curve_keeps_its_drawn_points(store):
    claim = running(store)
    write(store, claim, {step: math.sin(step) for step in range(1, 3001)})
    before = curve(store, claim.job, bins=200)["x"]
    write(store, claim, {step: math.sin(step) for step in range(3001, 3101)})
    after = curve(store, claim.job, bins=200)["x"]
    kept = len(set(before) & set(after)) / len(before)
    assert kept > 0.98  # bins are anchored at step 0, so only the last one may change


def test_the_cursor_uses_its_index(store):
    from jobs.run_curves import _DELTA

    with store.database.reading() as db:
        plan = db.conn.execute("EXPLAIN QUERY PLAN " + _DELTA, (1, 2, "[1]", '["a"]')).fetchall()
    text = " ".join(row[3] for row in plan)
    assert "metrics_by_seq" in text
    assert "TEMP B-TREE FOR ORDER BY" not in text


def test_what_a_process_keeps_of_a_curve_is_never_another_answer(store):
    """Any mixture of growing, redoing, gaps, restarts and deletions: warm equals cold."""
    dice, claim, step = random.Random(5), running(store), 0
    for _ in range(60):
        what = dice.choice(["grow", "grow", "grow", "redo", "gap", "restart", "other", "delete"])
        if what == "grow":
            write(store, claim, {step + n: dice.random() for n in range(1, dice.randint(2, 300))})
            step = store.get(claim.job).step
        elif what == "redo" and step > 10:
            step -= dice.randint(1, 9)
            write(store, claim, {step: dice.random()})
        elif what == "gap":
            step += 1
            write(store, claim, {step: math.nan})
        elif what == "other":
            write(store, claim, {step + 1: 1.0}, "grad_norm")
        elif what in ("restart", "delete"):
            store.claims.finish(claim, "failed", error=("run", "because"))
            if what == "delete":
                store.delete(claim.job)
                claim = running(store)
            else:
                store.resume(claim.job, restart=True)
                claim = begin(store)
            step = 0
        with closing(JobStore(store.home)) as cold:
            for bins, window in ((40, None), (40, (3, max(3, step // 2)))):
                asked = {"bins": bins, "window": window}
                names = ["loss", "grad_norm"]
                warm = store.metrics([claim.job], names, **asked)
                assert warm == cold.metrics([claim.job], names, **asked), what
