"""The first hour: welcome, guided start with a spreadsheet, help, and what the curves say."""

import io
import json
import re
from contextlib import closing

import pytest
from openpyxl import Workbook, load_workbook
from playwright.sync_api import expect

from jobs.job_queue import JobStore
from studio.home import open_home
from studio.spec import RunSpec

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"


def sheet(rows: list[list[str]]) -> bytes:
    book, stream = Workbook(), io.BytesIO()
    for row in rows:
        book.active.append(row)
    book.save(stream)
    return stream.getvalue()


def fields_of(page) -> dict[str, str]:
    names = ("data-path", "train-num_train_epochs", "method-r")
    return {name: page.locator(f"#field-{name}-input").input_value() for name in names}


def test_from_what_one_wants_to_a_filled_form(page, studio):
    page.goto("/")
    welcome = page.get_by_test_id("welcome")
    expect(welcome.get_by_test_id("machine")).to_contain_text("memory free")
    expect(welcome).not_to_contain_text("SQLite")  # nothing that the user should do
    welcome.get_by_role("button", name="With my data").click()
    dialog = page.get_by_role("dialog", name="Guided start")
    expect(dialog.get_by_role("radio", name="A voice or a format")).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(dialog).to_contain_text("A text and its label")
    with page.expect_download() as template:
        dialog.get_by_role("button", name="Excel", exact=True).click()
    file = io.BytesIO(template.value.path().read_bytes())
    first = next(load_workbook(file).active.iter_rows(values_only=True))
    assert template.value.suggested_filename == "classify.xlsx"
    assert first == ("text", "label")

    # No data is refused; a file whose columns tell nothing leads to its mapping.
    upload, checked = page.get_by_test_id("guide-file"), page.get_by_test_id("guide-checked")
    odd = {"name": "odd.csv", "mimeType": "text/csv", "buffer": b"a,b\n1,2\n3,4\n"}
    upload.set_input_files(odd)
    mapped = dialog.get_by_role("link", name="Choose what its columns are …")
    expect(mapped).to_have_attribute("href", re.compile(r"^/data\?import=.*odd\.csv$"))
    expect(dialog).not_to_contain_text("studio data import")
    dialog.get_by_role("button", name="Fill the form").click()
    expect(dialog.get_by_role("alert")).to_contain_text("upload a file, first")

    # Its own spreadsheet, first one that does not fit the goal.
    pairs = [["question", "answer"]] + [[f"What is {i}?", f"It is {i}."] for i in range(30)]
    for name, rows in (("pairs", pairs), ("letters", [["text", "label"]] + [
        [f"Letter {i} says {i % 3}", ("praise", "request", "complaint")[i % 3]] for i in range(150)
    ])):  # fmt: skip
        upload.set_input_files({"name": f"{name}.xlsx", "mimeType": XLSX, "buffer": sheet(rows)})
        expect(page.get_by_test_id("guide-data")).to_have_value(name)
        expect(checked).to_contain_text("rows" if name == "letters" else "needs text and label")
    expect(checked).to_have_text("150 usable rows of labelled: enough, usual are 1,000.")
    expect(dialog).to_contain_text("only models on this computer are listed")
    page.get_by_test_id("guide-model").select_option("starter")
    expect(page.get_by_test_id("guide-settings")).to_contain_text("150 rows are few")
    expect(page.get_by_test_id("guide-plan")).to_contain_text("steps on cpu")
    dialog.get_by_role("button", name="Fill the form").click()
    expect(dialog).to_be_hidden()
    expect(page.locator("#field-data-path-input")).to_have_value("letters")
    assert fields_of(page) == {
        "data-path": "letters", "train-num_train_epochs": "8", "method-r": "8",
    }  # fmt: skip
    expect(page.get_by_test_id("says")).to_contain_text("of letters")

    # Shown once; Help has it again.
    page.goto("/runs")
    page.goto("/")
    expect(page.locator("#data-note")).to_contain_text("rows")
    expect(page.get_by_test_id("welcome")).to_be_hidden()
    guided = page.get_by_role("button", name="Guided start …")
    assert guided.bounding_box()["y"] < 400
    guided.click()
    expect(page.get_by_role("dialog", name="Guided start")).to_be_visible()


def test_what_the_curves_say_has_a_button_that_mends_it(page, studio):
    with closing(JobStore(open_home(studio.home))) as store:
        job = store.submit(RunSpec(name="memory"), held=True).id
        with store.database.writing() as db:
            points = [(job, "loss", s, 3 - 0.02 * s, s) for s in range(1, 101)]
            points += [(job, "eval_loss", s, 1 + abs(s - 40) / 50, s) for s in range(10, 101, 10)]
            db.conn.executemany(_POINT, points)
            result = json.dumps({"learning_rate": 0.001, "last_loss": 1.0})
            db.conn.execute(_STEPS, (result, job))
    page.goto(f"/runs?run={job}")
    reading = page.get_by_test_id("reading")
    expect(reading).to_contain_text("lowest at step 40")
    reading.get_by_role("button", name="Train again and keep the best checkpoint").click()
    asks = page.get_by_role("dialog", name="Train again and keep the best checkpoint")
    expect(asks).to_contain_text("A run of 100 steps is queued")
    with closing(JobStore(open_home(studio.home))) as store:
        assert store.list(limit=1)[0].id == job
    asks.get_by_role("button", name="Queue it").click()
    page.wait_for_url(lambda address: not address.endswith(f"run={job}"))
    with closing(JobStore(open_home(studio.home))) as store:
        made = store.list(limit=1)[0]
        assert made.parent == job and made.spec["train"]["load_best_model_at_end"]
        store.cancel(made.id)


_POINT = "INSERT INTO metrics(job, name, step, value, time, seq) VALUES (?, ?, ?, ?, 0, ?)"
_STEPS = "UPDATE jobs SET step = 100, total_steps = 100, result = ? WHERE id = ?"
