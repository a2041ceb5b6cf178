"""A judge in a real browser: asked from a suite, calibrated on votes, its pairs opened."""

import contextlib
import json

import pytest
from playwright.sync_api import expect

from jobs.compare_tables import Votes
from jobs.job_queue import JobStore
from studio.evaluation.suites import RESULTS, SCORES
from studio.home import open_home
from tests.browser.conftest import put_adapters
from tests.judges import judging

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
SLOW = 240_000  # a busy machine with two cores
NAMES = ("starter", "starter~loud:1")


@pytest.fixture
def suite(studio):
    """An answered suite of two lanes, and eleven votes for the second."""
    put_adapters(studio, {"loud": ("lora", {})}, noise=0.1)
    lanes = [{"model": "starter"}, {"model": "starter", "stack": [{"name": "loud"}]}]
    rows = [
        {"case": n, "prompt": f"Say {n}.", "expected": None, "pattern": None, "answers": [
            {"text": f"score {n + place}", "error": None, "reason": "stop"}
            | dict.fromkeys((*SCORES, "tokens", "tokens_per_second", "first_token_seconds"))
            | {"seconds": None} for place in (0, 1)
        ]}
        for n in range(3)
    ]  # fmt: skip
    with contextlib.closing(JobStore(open_home(studio.home))) as store:
        values = {"name": "quiz", "lanes": lanes, "cases": [{"prompt": r["prompt"]} for r in rows]}
        job = store.submit(values, kind="suite", held=True).id
        store.home.run(job).mkdir()
        (store.home.run(job) / RESULTS).write_text("".join(json.dumps(r) + "\n" for r in rows))
        for number in range(11):
            texts = ("score 1", "score 2") if number else ("score 2", "score 1")
            Votes(store.database).cast("Hi.", NAMES, winner=1, answers=texts)
    return job


@pytest.mark.refused("/api/do/judge")
def test_a_judge_is_asked_trusted_and_opened(page, studio, suite):
    with judging("good") as (address, _):
        page.goto("/compare?lane=starter&lane=starter~loud:1&view=suites")
        page.get_by_test_id("ask-judge").click()
        dialog = page.get_by_role("dialog")
        dialog.locator("[name=address]").fill("https://judge.example.org")
        dialog.get_by_role("button", name="Judge").click()
        expect(dialog.get_by_role("alert")).to_contain_text("another machine")
        dialog.locator("[name=address]").fill(address)
        dialog.get_by_role("button", name="Judge").click()
        found = page.get_by_test_id("judgement")
        expect(found.locator(".s-badge")).to_have_text("succeeded", timeout=SLOW)
    expect(found).to_contain_text("10 of 11 (95 %")
    expect(found.locator(".s-heat tbody tr")).to_have_count(2)
    found.get_by_text("Verdicts and reasons").click()
    expect(found.locator("details table tbody tr")).to_have_count(14)
    expect(found.locator("details")).to_contain_text("The scores decide.")
    found.get_by_role("button", name="Make a dataset").click()
    page.get_by_role("dialog").get_by_label("Name").fill("judged")
    page.get_by_role("dialog").get_by_role("button", name="Make").click()
    expect(page).to_have_url(f"{studio.address}/data?name=judged")
    expect(page.locator("studio-data")).to_contain_text("3 rows")
