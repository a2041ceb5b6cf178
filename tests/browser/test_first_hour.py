"""The first hour as one story: from an empty home to an adapter of one's own and its report.

`STUDIO_PICTURES=docs/first-hour` writes a picture of each step into that folder.
"""

import json
import os
import re
import signal
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest
from playwright.sync_api import expect

from jobs.job_queue import JobStore
from studio.home import open_home
from studio.starter import MODEL_DIR
from tests import hub as hubs
from tests.browser.conftest import longest_answer
from tests.browser.test_guide import XLSX, sheet
from tests.served import served

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
MODEL = "Qwen/Qwen3.5-0.8B"  # of the curated list; here with the starter's weights
SLOW = 240_000
LARGE = 24 << 20  # bytes of one more file: the hub's library writes pieces of 10 MiB
ROWS = [[f"What is {n} plus one?", f"Arr, it be {n + 1}, matey!"] for n in range(60)]


@pytest.fixture(scope="module")
def hub():
    with hubs.running() as running:
        running.repos[MODEL] = hubs.repo_of(MODEL_DIR)
        more = {"more": {"dtype": "U8", "shape": [LARGE], "data_offsets": [0, LARGE]}}
        header = json.dumps(more).encode()
        content = len(header).to_bytes(8, "little") + header + bytes(LARGE)
        running.repos[MODEL].files["more.safetensors"] = content
        yield running


@pytest.fixture(scope="module")
def studio(chromium, tmp_path_factory, hub):
    folder = tmp_path_factory.mktemp("first")
    with served(folder / "home", **hubs.environment(hub, folder / "cache")) as running:
        yield running


@pytest.mark.long
def test_from_an_empty_home_to_a_report_that_opens_from_disk(page, studio, hub, tmp_path):
    number = count(1)

    def picture(name: str, whole: bool = False) -> None:
        if folder := os.environ.get("STUDIO_PICTURES"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.wait_for_timeout(400)
            paths = page.locator(".s-path")  # of the machine that made the picture
            file = f"{folder}/{next(number):02}-{name}.jpg"
            page.screenshot(path=file, type="jpeg", quality=60, full_page=whole, mask=[paths],
                            mask_color="#ccc")  # fmt: skip

    page.goto("/")
    welcome = page.get_by_test_id("welcome")
    expect(welcome.get_by_test_id("machine")).to_contain_text("memory free")
    picture("welcome")

    # Guided start: the goal, a spreadsheet of one's own, a model of the curated list and its fit.
    welcome.get_by_role("button", name="With my data").click()
    dialog = page.get_by_role("dialog", name="Guided start")
    upload = {
        "name": "sums.xlsx",
        "mimeType": XLSX,
        "buffer": sheet([["prompt", "completion"], *ROWS]),
    }
    page.get_by_test_id("guide-file").set_input_files(upload)
    expect(page.get_by_test_id("guide-checked")).to_contain_text("60 rows")
    page.get_by_test_id("guide-model").select_option(MODEL)
    expect(page.get_by_test_id("guide-plan")).to_contain_text("About")
    picture("guided-start")
    dialog.get_by_role("button", name="Fill the form").click()
    expect(dialog).to_be_hidden()

    # What it needs is known before its download.
    expect(page.locator("#model-note")).to_contain_text("to download, for which a run waits")
    expect(page.get_by_test_id("preflight")).to_contain_text("Base weights")
    expect(page.get_by_test_id("first-rows")).to_contain_text("matey")
    assert hub.sent < 1 << 20
    picture("fit-before-the-download")

    # Download it; the process is killed in the middle and the rest is fetched.
    page.get_by_role("link", name="Look at it on the Models page").click()
    row = page.get_by_test_id(f"model-{MODEL}")
    row.get_by_role("button", name="Download …").first.click()
    expect(page.get_by_role("dialog")).to_contain_text("in 7 files")
    picture("what-is-downloaded")
    large = hub.repos[MODEL].etag("more.safetensors")
    hub.fail(f"GET /storage/.*{large}", stall_after=21 << 20, times=1)
    page.get_by_role("dialog").get_by_role("button", name="Download").click()
    expect(page.get_by_test_id("downloads")).to_contain_text(re.compile(r"2[0-5]\.\d MiB of"))
    with closing(JobStore(open_home(studio.home))) as store:
        job = next(one for one in store.list() if one.kind == "download")
        os.kill(store.get(job.id).pid, signal.SIGKILL)
    picture("download")
    expect(row.get_by_role("link", name="Train")).to_be_visible(timeout=SLOW)
    expect(row.get_by_role("button", name="Download …")).to_have_count(0)
    firsts = [first for _, path, first in hub.asked if large in path]
    assert 20 << 20 in firsts

    # The form is as it was left; QLoRA by its card; train.
    page.get_by_role("link", name="Train", exact=True).first.click()
    expect(page.locator("#field-data-path-input")).to_have_value("sums")
    page.locator("label", has=page.get_by_role("radio", name="QLoRA")).click()
    page.get_by_label("Steps", exact=True).fill("40")
    expect(page.get_by_test_id("says")).to_contain_text("Trains QLoRA")
    picture("qlora")
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_test_id("launched")).to_contain_text("succeeded", timeout=SLOW)
    picture("trained")

    # Its curves and what they say; base and adapter side by side.
    page.get_by_role("link", name="Open in Runs").click()
    expect(page.get_by_test_id("reading")).to_be_visible()
    picture("reading")
    run = page.url
    page.get_by_role("link", name="Compare", exact=True).last.click()
    longest_answer(page, 16)
    page.get_by_test_id("prompt").fill("What is 5 plus one?")
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("answer-1")).to_contain_text("Arr", timeout=SLOW)
    picture("compare")

    # The report opens from disk, without a server.
    page.goto(run)
    page.get_by_text("More", exact=True).click()
    with page.expect_download() as found:
        page.get_by_role("button", name="Save a report").first.click()
    file = tmp_path / "report.html"
    found.value.save_as(file)
    page.goto(file.as_uri())
    expect(page.get_by_role("img", name="Training loss")).to_be_visible()
    expect(page.get_by_text(re.compile("Arr, it be")).first).to_be_visible()
    picture("report", whole=True)
