"""banking77 through the page: accuracy before and after training, and the confusions, by hand."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
import torch
from playwright.sync_api import expect

from studio.backbone import Backbone
from studio.data.prepare_run_data import prepare
from studio.models.loading import load
from studio.spec import DataSource, ModelSource

pytestmark = [pytest.mark.browser, pytest.mark.long, pytest.mark.timeout(600)]
SLOW = 240_000  # a busy machine with two cores
ROWS = 20  # of the 154, two of each label, are measured


@pytest.fixture
def banking(real, tmp_path):
    """Two rows of each of the 77 labels, those of a label far apart."""
    seen: Counter[str] = Counter()
    found: list[list[dict[str, str]]] = [[], []]
    with (real / "data/banking77_train.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if seen[row["category"]] < 2:
                found[seen[row["category"]]].append(row)
                seen[row["category"]] += 1
    path = tmp_path / "banking.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ("text", "category"))
        writer.writeheader()
        writer.writerows([*found[0], *found[1]])
    assert len(seen) == 77
    return path


def by_hand(path, adapter=None):
    """Return right and predicted labels, each label scored by a whole forward pass."""
    loaded = load(ModelSource(), "cpu")
    backbone = Backbone(loaded.model)
    if adapter:
        backbone.load("a", adapter)
        backbone.use((("a", 1.0),))
    source = DataSource(path=str(path), validation_fraction=0)
    rows = prepare(source, loaded.tokenizer, context_length=512, seed=0).train
    trained = [(row.labels != -100).tolist() for row in rows]
    prompts = [
        row.input_ids[: t.index(True)].tolist() for row, t in zip(rows, trained, strict=True)
    ]
    answers = [
        tuple(row.input_ids[len(p) :].tolist()) for row, p in zip(rows, prompts, strict=True)
    ]
    labels = sorted(set(answers))
    assert len(labels) == 77 and all(all(t[t.index(True) :]) for t in trained)
    names = [loaded.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in labels]
    found = []
    for place in sorted(np.random.default_rng(0).permutation(len(rows))[:ROWS]):  # as drawn
        prompt, answer = prompts[place], answers[place]
        whole = [[*prompt, *label] for label in labels]
        width = max(map(len, whole))
        ids = torch.tensor([one + [0] * (width - len(one)) for one in whole])
        with torch.no_grad():
            logs = backbone.model(input_ids=ids).logits.log_softmax(-1)
        scores = [
            sum(float(logs[n, at - 1, one[at]]) for at in range(len(prompt), len(one)))
            for n, one in enumerate(whole)
        ]
        found.append((names[labels.index(answer)], names[scores.index(max(scores))]))
    return found


def figures(pairs):
    """Return accuracy, macro F1 and the confusions of (right, predicted) labels."""
    counts = Counter(pairs)
    names = {name for pair in pairs for name in pair}
    f1 = []
    for name in names:
        hits = counts[name, name]
        there = sum(n for (right, _), n in counts.items() if right == name)
        given = sum(n for (_, taken), n in counts.items() if taken == name)
        f1.append(2 * hits / (there + given))
    return sum(a == b for a, b in pairs) / len(pairs), sum(f1) / len(f1), counts


def evaluate(page, path, name):
    """Ask for a classification in the dialog of the Adapters page and return its outcome."""
    page.get_by_role("button", name="Evaluate …").click()
    dialog = page.get_by_role("dialog")
    dialog.locator("[name='data.path']").fill(str(path))
    dialog.get_by_label("Classify").check()
    dialog.locator("[name=name]").fill(name)
    dialog.get_by_text("Advanced").click()
    dialog.locator("[name=set]").fill(f"max_rows={ROWS}")
    dialog.get_by_role("button", name="Evaluate").click()
    done = page.get_by_test_id("activity").locator("li", has_text=name)
    expect(done).to_contain_text("Accuracy", timeout=SLOW)
    return done


def test_banking77_before_and_after(page, studio, banking):
    settings = {"train.max_steps": 120, "train.per_device_train_batch_size": 8,
                "data.path": banking, "data.validation_fraction": 0.05,
                "train.eval_steps": -1, "train.learning_rate": 0.01}  # fmt: skip
    page.goto("/?" + "&".join(f"set={key}={value}" for key, value in settings.items()))
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_test_id("launched")).to_contain_text("succeeded", timeout=SLOW)
    page.goto("/adapters")
    expect(page.locator(".s-adapter")).to_have_count(1)
    evaluate(page, banking, "before")
    page.locator(".s-adapter").get_by_role("checkbox").check()
    after = evaluate(page, banking, "after")
    jobs = {job["name"]: job["id"] for job in studio.jobs()}
    (run,) = (job["id"] for job in studio.jobs() if job["kind"] == "train")
    adapter = studio.home / f"runs/{run}/adapter"
    losses = []
    for name, folder in (("before", None), ("after", adapter)):
        report = json.loads((studio.home / f"runs/{jobs[name]}/evaluation.json").read_text())
        accuracy, macro, counts = figures(by_hand(banking, folder))
        assert report["accuracy"] == pytest.approx(accuracy)
        assert report["macro_f1"] == pytest.approx(macro)
        assert {(right, taken): n for right, taken, n in report["confusions"]} == counts
        losses.append(report["eval_loss"])
    assert losses[1] < losses[0]
    after.get_by_text("Accuracy").first.click()
    wrong = sum(right != taken for right, taken in counts)
    table = after.get_by_test_id("confusions")
    expect(table.locator("tbody tr")).to_have_count(min(20, wrong))
