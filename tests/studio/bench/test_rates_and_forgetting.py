"""The table of what methods learn and forget: rates, means, and the pairs that change order."""

import json

import pytest

from studio.errors import MethodError
from tests.served import ROOT
from tests.studio.tiny import tiny_spec
from ui.bench import rates_and_forgetting
from ui.bench.rates_and_forgetting import (
    averaged,
    bench_forgetting,
    page_text,
    swap_text,
    swaps,
    write_page,
)


def runs(method, *figures, rate=0.1, data="d"):
    return [
        {"data": data, "method": method, "seed": seed, "steps": 9, "rate": rate,
         "eval_loss": loss, "forgetting": forgot}
        for seed, (loss, forgot) in enumerate(figures)
    ]  # fmt: skip


def test_means_are_of_the_rate_that_was_best_with_the_first_seed():
    tried = runs("lora", (0.5, 0.2), (0.7, 0.4), rate=0.1) + runs("lora", (0.9, 0.0), rate=1.0)
    tried += runs("lora", (None, None), rate=10.0)  # diverged
    (row,) = averaged([*tried, *[]])
    assert (row["method"], row["rate"], row["seeds"]) == ("LoRA", 0.1, 2)
    assert row["eval_loss"] == pytest.approx(0.6)
    # Student's t of one degree is 12.706; the deviation of 0.5 and 0.7 is 0.1 √2.
    assert row["eval_loss_interval"] == pytest.approx(12.706 * 0.1)
    assert row["forgetting"] == pytest.approx(0.3)


def test_pairs_change_order_only_where_both_intervals_are_apart():
    def row(method, loss, forgot, width=0.0):
        return {"method": method, "eval_loss": loss, "forgetting": forgot,
                "eval_loss_interval": width, "forgetting_interval": width}  # fmt: skip

    one, other, third = row("A", 0.5, 0.9), row("B", 0.8, 0.1), row("C", 0.9, 1.0)
    assert swaps([other, one, third]) == [("A", "B")]
    assert swap_text([("A", "B")]).startswith("One pair of methods changes its order")
    assert swaps([row("A", 0.5, 0.9, 0.4), other]) == []
    assert swap_text([]).startswith("No pair")


def test_the_page_keeps_its_own_text_and_marks_the_best(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\n<!-- methods compared -->\nold\n<!-- end methods compared -->\nend\n"
    )
    rows = averaged(runs("lora", (0.5, 0.2), (0.5, 0.2)) + runs("ia3", (0.9, 0.1), (0.9, 0.1)))
    rows.append({"data": "d", "method": "BitFit", "error": "It has no biases."})
    write_page(page, rows, model="starter", steps=9)
    text = page.read_text()
    assert text.startswith("# Title\n") and text.endswith("-->\nend\n") and "old" not in text
    assert "| LoRA | 0.1 | 2 | **0.500** | 0.2000 |" in text
    assert "| IA³ | 0.1 | 2 | 0.900 | **0.1000** |" in text
    assert "| BitFit | – | – | It has no biases. | – |" in text
    rows += averaged(runs("lora", (0.5, 0.2), data="other"))
    text = page_text(rows, model="starter", steps=9)
    assert "LoRA before IA³" in text
    assert "Of `other` 1 of 3 methods are measured so far." in text and "### other" not in text


def test_runs_are_trained_kept_and_not_repeated(tmp_path, monkeypatch):
    spec = tiny_spec(tmp_path)
    monkeypatch.setattr(rates_and_forgetting, "walk", lambda loss: {0: loss(0), 1: loss(1)})
    asked = {
        "model": spec.model.path, "data": spec.data.path, "methods": "lora,full,bitfit", "steps": 2,
        "seeds": 2, "out": str(tmp_path / "runs.json"), "docs": str(tmp_path / "page.md"),
    }  # fmt: skip
    first = bench_forgetting(tmp_path / "one", **asked)
    assert [row["seeds"] for row in first["rows"]] == [2, 2, 2]
    assert all(row["forgetting"] > 0 for row in first["rows"])
    assert len(first["runs"]) == 3 * 3
    monkeypatch.setattr(
        rates_and_forgetting._Bench, "_trained", lambda *_: pytest.fail("trained again")
    )
    again = bench_forgetting(tmp_path / "two", **asked)
    assert [row["method"] for row in again["rows"]] == ["LoRA", "Full fine-tuning", "BitFit"]
    assert json.loads((tmp_path / "runs.json").read_text())[0] == first["runs"][0]

    def refuse(*_):
        raise MethodError("It has no norms.")

    monkeypatch.setattr(rates_and_forgetting._Bench, "_trained", refuse)
    *_, row = bench_forgetting(tmp_path / "three", **asked | {"methods": "norm_tuning"})["rows"]
    assert row["error"] == "It has no norms."
    assert "| Norm tuning | – | – | It has no norms. | – |" in (tmp_path / "page.md").read_text()


def test_the_page_in_the_docs_is_made_of_the_runs_beside_the_bench():
    runs_kept = rates_and_forgetting.RUNS
    rows = averaged(json.loads(runs_kept.read_text(encoding="utf-8")))
    text = (ROOT / "docs/methods-compared.md").read_text(encoding="utf-8")
    assert page_text(rows, model="starter", steps=60) in text
