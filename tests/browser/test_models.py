"""What the hub offers, in a browser: models and datasets are found, looked at, downloaded, used."""

import re
import shutil
from urllib.parse import parse_qs, urlsplit

import pytest

from studio.starter import MODEL_DIR
from tests import hub as hubs
from tests.served import served

NAME = "org/small-chat"


@pytest.fixture(scope="module")
def hub():
    with hubs.running() as running:
        running.repos[NAME] = hubs.repo_of(MODEL_DIR)
        running.datasets["org/sums"] = hubs.dataset(300)
        running.repos["org/small-gated"] = hubs.repo_of(MODEL_DIR, gated="manual")
        yield running


@pytest.fixture(scope="module")
def studio(chromium, tmp_path_factory, hub):
    """A running studio that uses the test hub, with one model of its own."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(MODEL_DIR, folder / "home" / "models" / "mine")
    with served(folder / "home", **hubs.environment(hub, folder / "cache")) as running:
        yield running


def row(page, name: str):
    return page.get_by_test_id(f"model-{name}")


def test_a_model_is_searched_confirmed_downloaded_used_and_deleted(page, studio, hub):
    from playwright.sync_api import expect

    page.goto(f"/?set=model.path={NAME}")
    page.get_by_role("link", name="Look at it on the Models page").click()
    expect(row(page, NAME)).to_contain_text("apache-2.0")
    page.goto("/models")
    expect(row(page, "starter")).to_contain_text("2.36")
    expect(row(page, "Qwen/Qwen3.5-0.8B")).to_contain_text("apache-2.0")
    page.get_by_label("Search models").fill("small")
    page.get_by_role("button", name="Search the hub").first.click()
    row(page, NAME).get_by_role("button", name="Download …").click()
    confirm = page.get_by_role("dialog")
    for words in (
        "4.69",
        "in 6 files",
        "apache-2.0",
        hub.repos[NAME].sha[:12],
        "models--org--small",
    ):
        expect(confirm).to_contain_text(words)
    assert hub.sent < 500_000  # of 4.7 MB: the headers of the weights
    confirm.get_by_role("button", name="Download").click()

    here = row(page, NAME).filter(has=page.get_by_role("link", name="Train"))
    expect(here).to_contain_text("downloaded", timeout=90_000)
    target = here.get_by_role("link", name="Train").get_attribute("href")
    assert parse_qs(urlsplit(target).query)["set"] == [f"model.path={NAME}"]

    here.get_by_role("button", name="Delete …").click()
    expect(page.get_by_role("dialog")).to_contain_text("This frees 4.69")
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(here).to_have_count(0)


def test_a_gated_model_shows_its_steps_and_offline_is_said(page, studio, hub):
    from playwright.sync_api import expect

    page.goto("/models?q=org/small-gated&hub=1")
    row(page, "org/small-gated").get_by_role("button", name="Download …").click()
    expect(page.get_by_role("dialog").get_by_role("link", name="its page")).to_have_attribute(
        "href", f"{hub.url}/org/small-gated"
    )
    page.keyboard.press("Escape")
    page.goto("/system")
    page.get_by_role("button", name="Go offline").click()
    expect(page.get_by_role("button", name="Go online")).to_be_visible()
    page.goto("/models")
    expect(page.get_by_text("This studio is offline")).to_be_visible()
    page.get_by_role("button", name="Go online").click()
    expect(page.get_by_text("This studio is offline")).to_be_hidden()
    page.set_viewport_size({"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_a_dataset_is_searched_seen_as_tokens_taken_in_part_and_mixed(page, studio):
    from playwright.sync_api import expect

    page.goto("/data")
    page.get_by_test_id("import-path").fill("sums")
    page.get_by_role("button", name="Search the hub").click()
    page.get_by_test_id("found").get_by_role("button", name="org/sums").click()
    parts = page.get_by_test_id("hub-parts")
    expect(parts.get_by_role("radio", name="train")).to_be_checked()
    expect(parts).to_contain_text("300")
    parts.get_by_role("radio", name="test").check()
    expect(page.get_by_test_id("guess")).to_contain_text("question answer")
    page.get_by_text("X-ray of the first rows").click()
    rays = page.get_by_test_id("import-xray")
    expect(rays).to_contain_text("65 tokens in the first 5 rows · 10 trained")
    page.get_by_test_id("part-question").select_option("answer")  # the parts change places
    page.get_by_test_id("part-answer").select_option("question")
    expect(rays).not_to_contain_text("· 10 trained")
    page.locator("[name=rows]").fill("5")
    page.get_by_test_id("import-go").click()
    expect(page).to_have_url(re.compile(r"/data\?name=sums$"), timeout=90_000)
    expect(page.get_by_test_id("family")).to_have_text("Taken in part (pick first, rows 5)")
    assert studio.json("/api/data/sums")["mapping"]["columns"]["answer"] == "question"

    page.get_by_role("button", name="Mix …").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Weight 2").fill("0.25")
    dialog.get_by_label("Rows").fill("5")
    dialog.get_by_role("button", name="Mix datasets", exact=True).click()
    expect(page.get_by_test_id("family")).to_have_text(
        "Mixed of sums (4 of 5 rows), starter:pirate (1 of 320 rows)", timeout=90_000
    )
