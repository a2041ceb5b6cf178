"""A run on a mix measures the held-out rows of each source; the parts make up the whole."""

import json
from dataclasses import replace

import pytest

from studio.data.import_dataset import Source, mix
from studio.training import training_session
from studio.training.train_run import train
from studio.training.training_events import Evaluated, Finished
from tests.studio.tiny import tiny_spec
from tests.studio.training.conftest import Rows, make_rows, make_session
from tests.studio.training.test_preference_loss import pairs

COUNTS = {"a": (10, 2), "b": (10, 2)}


def named(rows: Rows, width: int = 1) -> Rows:
    """The rows with their sources, in turn."""
    for place, row in enumerate(rows.validation):
        row.source = "ab"[place // width % 2]
    rows.sources = COUNTS
    return rows


@pytest.mark.parametrize("loss", ["sft", "dpo", "orpo"])
def test_a_source_alone_has_the_loss_that_it_has_in_the_mix(loss, tmp_path):
    made, width = (make_rows, 1) if loss == "sft" else (pairs, 2)
    values = {"loss": loss, "max_steps": 6, "num_samples": 0}

    def measured(rows: Rows) -> Evaluated:
        own = make_session(rows, train=values)
        if own.preference:
            list(own.preference.prepare_reference(tmp_path / str(len(rows.validation))))
        return own.evaluate()

    whole, plain = measured(named(made(), width)), measured(made())
    assert whole.eval_loss == pytest.approx(plain.eval_loss, rel=1e-5)
    assert plain.sources is None and [one["name"] for one in whole.sources] == ["a", "b"]
    for found in whole.sources:
        assert (found["rows"], found["held_out"]) == COUNTS[found["name"]]
        rows = named(made(), width)
        rows.validation = [row for row in rows.validation if row.source == found["name"]]
        rows.sources = {}
        assert found["eval_loss"] == pytest.approx(measured(rows).eval_loss, rel=1e-5)


def test_the_report_has_the_sources_of_the_best_checkpoint_also_after_a_stop(
    home, tmp_path, monkeypatch
):
    spec = tiny_spec(
        tmp_path, train__max_steps=8, train__eval_steps=2, train__num_samples=0, seed=1,
        train__load_best_model_at_end=True, train__self_test=False, data__validation_fraction=0.3,
    )  # fmt: skip
    other = tmp_path / "other.jsonl"
    rows = [{"question": f"now {word}", "answer": f"{word}!"} for word in "abcdefghijkl"]
    other.write_text("\n".join(map(json.dumps, rows)))
    made = mix(home, [Source(spec.data.path, 1), Source(str(other), 1)], name="both")
    spec = spec.with_values({"data.path": made.meta.name})
    seen: list[Evaluated] = []
    real = training_session.evaluate_loss

    def worse(backbone, batches):  # each time than before
        found = real(backbone, batches)
        return replace(found, loss_sum=found.loss_sum + 100 * len(seen))

    monkeypatch.setattr(training_session, "evaluate_loss", worse)

    def run(stop_at: int) -> Finished:
        steps = iter(range(1, 99))
        control = lambda: "stop" if next(steps) == stop_at else None  # noqa: E731
        for event in train(spec, run_dir=tmp_path / "run", home=home, control=control):
            if isinstance(event, Evaluated):
                seen.append(event)
        return event

    run(6)
    end = run(-1)
    best = min(seen, key=lambda event: event.eval_loss)
    assert best.step == 2 and [event.step for event in seen] == [2, 4, 6, 8]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert end.facts["sources"] == report["facts"]["sources"] == best.sources
    names = [one["name"] for one in best.sources]
    assert names == [str(tmp_path / "rows.jsonl"), str(other)]
    assert all(one["rows"] + one["held_out"] == 12 for one in best.sources)
    assert all(one["held_out"] == 4 and one["eval_loss"] > 0 for one in best.sources)
