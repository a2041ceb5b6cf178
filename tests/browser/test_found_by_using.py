"""Faults that were found by using the pages, each as it was met: they do not come back."""

import json
import re
from contextlib import closing

import pytest
from playwright.sync_api import expect

from jobs import bakeoff
from jobs.job_queue import JobStore
from jobs.run_curves import Progress
from studio.evaluation.bakeoff_measurements import REPORT
from studio.home import open_home
from studio.spec import RunSpec
from tests.browser.test_answering import Host
from tests.browser.test_kept import go
from tests.jobs.conftest import begin, held_queue

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
SHARED_STUDIO = True
AWAY = {"train.device": "cuda:7", "train.max_steps": 2}


@pytest.fixture
def store(studio):
    """The queue, held, so that nothing starts; what a test leaves is deleted."""
    with closing(JobStore(open_home(studio.home))) as opened:
        before = {job.id for job in opened.list()}
        with held_queue(opened):
            yield opened
            for job in opened.list():  # newest first: a later one may wait for an earlier one
                if job.id not in before:
                    if job.state in ("queued", "paused"):
                        opened.cancel(job.id)
                    opened.delete(job.id)


@pytest.fixture
def page(store, page):
    """A page that is closed before what its test left is deleted."""
    return page


def end(store, state: str = "succeeded", device: str = "cuda:7", **result) -> int:
    claim = begin(store, device, wanted=[device])
    told = [("loss", step, 4 / step, 0.0) for step in range(1, 9)]
    store.claims.report(claim, Progress(metrics=told, step=8, total_steps=8))
    store.claims.finish(claim, state, result={"last_loss": 0.5, **result})
    return claim.job


def test_a_conversation_is_there_after_another_page_and_behind_its_tabs(page):
    host = Host(page)
    page.goto("/compare?lane=starter&lane=starter")
    host.asked("one?")
    host.answer("left", "right")
    go(page, "Train")
    go(page, "Compare")
    expect(page.get_by_test_id("answer-1")).to_have_text("right")
    for tab in ("Conversations", "Leaderboard"):
        page.get_by_role("tab", name=tab).click()
        expect(page).to_have_url(re.compile("view="))
        page.go_back()
        expect(page.get_by_test_id("answer-1")).to_have_text("right")


@pytest.mark.refused("/api/data/upload")
def test_leaving_during_an_upload_asks_first(page):
    held, asked = [], []
    page.route("**/api/data/upload**", lambda route: held.append(route))
    page.goto("/data")
    page.get_by_test_id("import-path").click()  # browsers ask only users who did something
    rows = {"name": "rows.csv", "mimeType": "text/csv", "buffer": b"a,b\n1,2\n"}
    page.get_by_test_id("import-file").set_input_files(rows)
    while not held:
        page.wait_for_timeout(50)

    def stay(dialog) -> None:
        asked.append(dialog.type)
        dialog.dismiss()

    page.on("dialog", stay)
    go(page, "Runs")
    page.wait_for_timeout(300)
    assert asked == ["beforeunload"] and page.url.endswith("/data")
    held[0].fulfill(status=400, json={"error": {"kind": "data", "text": "no"}})
    expect(page.get_by_test_id("import-error")).to_have_text("no")
    go(page, "Runs")
    expect(page).to_have_url(re.compile("/runs"))
    assert asked == ["beforeunload"], "it is over, so nothing is asked"


def test_the_final_loss_is_the_same_in_tile_and_legend_however_smooth(page, store):
    store.submit(RunSpec().with_values({"name": "one number", **AWAY}))
    page.goto(f"/runs?run={end(store)}")
    chart = page.locator("[data-metric=loss]")
    expect(chart).to_have_attribute("data-points", "8")
    page.get_by_label("Smoothing").fill("0.9")
    expect(chart.locator(".s-legend b")).to_have_text("0.5000")
    expect(page.locator(".s-figures dd").first).to_contain_text("0.5000")
    expect(chart.locator(".s-legend li")).to_have_attribute("title", re.compile("is smoothed"))


def test_a_run_says_what_was_cut_and_tables_name_methods_as_the_form_does(page, store):
    store.submit(RunSpec().with_values({"name": "cut", "method.name": "ia3", **AWAY}))
    number = end(store, rows={"read": 9, "kept": 9, "dropped": 0, "truncated": 7})
    page.goto(f"/runs?run={number}")
    expect(page.get_by_test_id("detail")).to_contain_text("7 cut at the context")
    expect(page.get_by_test_id(f"run-{number}")).to_contain_text("IA³")


def test_a_run_on_a_mix_shows_each_source_and_pairs_what_their_prompts_save(page, store):
    store.submit(RunSpec().with_values({"name": "mixed", **AWAY}))
    sources = [{"name": "starter:pirate", "rows": 80, "held_out": 9, "eval_loss": 1.25},
               {"name": "<b>own</b>", "rows": 20, "held_out": 2, "eval_loss": None}]  # fmt: skip
    page.goto(f"/runs?run={end(store, sources=sources, tokens_shared=0.234)}")
    rows = page.get_by_test_id("sources").locator("tbody tr")
    expect(rows).to_have_text(["starter:pirate8091.250", "<b>own</b>202–"])
    expect(page.get_by_test_id("detail")).to_contain_text("23\u202f% of all tokens are prompts")


def test_an_ended_group_is_a_table_and_offers_neither_hold_nor_cancel(page, store):
    more = page.get_by_role("button", name="Cancel the group")
    for rank in (2, 4):
        spec = RunSpec().with_values({"name": f"ranks {rank}", "method.r": rank, **AWAY})
        store.submit(spec, sweep="ranks")
    page.goto(f"/runs?run={(first := end(store))}")
    page.get_by_text("More", exact=True).click()
    expect(more).to_be_visible()
    end(store)
    group = page.get_by_test_id("group")
    expect(group.locator("tbody tr")).to_have_count(2)
    expect(group.locator("tbody")).not_to_contain_text("queued")
    page.goto(f"/runs?run={first}")
    expect(page.get_by_test_id("detail")).to_contain_text("in the group ranks")
    group.get_by_role("link", name="ranks 4").click()
    expect(page.get_by_role("heading", name="ranks 4")).to_be_visible()
    page.get_by_text("More", exact=True).click()
    expect(page.get_by_role("button", name="Note and tags …")).to_be_visible()
    expect(more).to_have_count(0)
    expect(page.get_by_role("button", name="Hold the group")).to_have_count(0)


def test_sample_answers_of_a_bake_off_stand_under_their_questions(page, store):
    spec = RunSpec().with_values({"train.max_steps": 2, "train.device": "cpu"})
    jobs = bakeoff.submit(store, spec, ["lora", "ia3"], name="quiz", prompts=["Who?", "Why?"])
    rows = [{"run": end(store, device="cpu", eval_loss=1.0), "answers": [f"I, {number}.", "So."]}
            for number in (1, 2)]  # fmt: skip
    (folder := store.home.run(jobs[-1].id)).mkdir(parents=True, exist_ok=True)
    (folder / REPORT).write_text(json.dumps({"rows": rows}))
    page.goto("/adapters?bakeoff=quiz")
    contest = page.get_by_test_id("bakeoff")
    contest.get_by_text("Sample answers").click()
    expect(contest.get_by_role("heading", level=3)).to_have_text(["Who?", "Why?"])
    asked = contest.locator(".s-sampled").first.get_by_role("article")
    expect(asked).to_have_text(["LoRAI, 1.", "IA³I, 2."])


def test_the_card_of_a_job_is_put_away_for_good(page, store):
    job = store.submit({"name": "gone", "path": "/no/such/adapter"}, kind="import_adapter")
    store.cancel(job.id)
    page.goto("/adapters")
    card = page.get_by_test_id(f"job-{job.id}")
    card.get_by_role("button", name="Put gone away").click()
    expect(card).to_have_count(0)
    page.reload()
    expect(page.get_by_test_id("activity")).to_be_attached()
    expect(card).to_have_count(0)


def test_what_a_model_cannot_take_is_not_offered(page):
    page.goto("/")
    expect(page.locator("#data-note")).to_contain_text("rows")
    page.get_by_role("button", name=re.compile("^Bake-off")).click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("[value=lora]")).to_be_checked()
    expect(dialog.locator("[value=bitfit]")).to_have_count(0)
    expect(dialog).not_to_contain_text("one after the other")


def test_train_pressed_twice_asks_before_it_queues_the_same_again(page, store):
    page.goto("/?set=train.max_steps=2&set=name=pressed")
    expect(page.locator("#data-note")).to_contain_text("rows")
    said = []

    def refuse(dialog) -> None:
        said.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", refuse)
    train = page.get_by_role("button", name="Train", exact=True)
    train.click()
    expect(page.get_by_test_id("launched")).to_contain_text("pressed")
    train.click()
    page.wait_for_timeout(500)
    assert said == ["“pressed” with these very settings is queued. Train them once more?"]
    assert [job.name for job in store.queue() if job.name.startswith("pressed")] == ["pressed"]


@pytest.mark.refused("/api/do/train")
def test_a_method_that_has_no_reference_keeps_the_form_and_says_why(page, store):
    address = "/?set=method.name=full&set=train.loss=dpo&set=name=whole"
    page.goto(address)
    error = page.get_by_test_id("form-error")
    expect(error).to_contain_text("second copy")
    expect(page.locator("#field-name-input")).to_have_value("whole")
    expect(page.locator("#field-train-loss-input")).to_have_value("dpo")
    page.get_by_role("button", name="Train", exact=True).click()
    page.wait_for_timeout(500)
    expect(error).to_contain_text("second copy")
    assert store.queue() == []
    page.locator(".s-method", has_text="IA³").click()
    expect(error).to_be_hidden()


def test_columns_that_are_combined_make_one_question_and_no_system_prompt(page, tmp_path):
    file = tmp_path / "letters.csv"
    file.write_text("title,body,reply\n" + "".join(f"T{n},B{n},R{n}\n" for n in range(9)))
    page.goto("/data")
    page.get_by_test_id("import-path").fill(str(file))
    page.get_by_test_id("look").click()
    page.get_by_test_id("format").select_option("prompt_completion")
    page.get_by_test_id("part-reply").select_option("completion")
    page.get_by_text("More parts").click()
    page.get_by_test_id("pairs-templates").fill("prompt = {title}: {body}")
    page.get_by_test_id("pairs-templates").press("Tab")
    row = page.get_by_test_id("preview").locator("article").first
    expect(row.locator("[data-role=user]")).to_have_text("userT0: B0")
    expect(row.locator("[data-role=assistant]")).to_have_text("assistantR0")
    expect(row.locator("[data-role]")).to_have_count(2)
    expect(page.get_by_test_id("system-prompt")).to_have_value("")
