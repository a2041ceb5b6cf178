"""A real Chromium on a real studio; every page is watched for errors and outside requests."""

import os
import shutil
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from tests.served import served

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="session")
def chromium():
    """The machine's own Chromium or Chrome."""
    from playwright.sync_api import expect

    expect.set_options(timeout=30_000)  # a busy machine is slow, not wrong
    found = os.environ.get("STUDIO_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if found:
        return found
    message = "no Chromium or Chrome on this machine: install one, or set STUDIO_BROWSER to it"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="package")
def browser(chromium):
    """One browser for the tests of this folder; each page has a context of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        yield opened
        opened.close()


@pytest.fixture(scope="package")
def shared(chromium, nursery, tmp_path_factory):
    """One running studio for the modules that leave neither runs nor votes behind."""
    with served(tmp_path_factory.mktemp("shared") / "home", nursery=nursery) as running:
        yield running


@pytest.fixture(scope="module")
def studio(request, chromium, nursery, tmp_path_factory):
    """A running studio with an empty home, or the one of all modules with `SHARED_STUDIO`."""
    if getattr(request.module, "SHARED_STUDIO", False):
        yield request.getfixturevalue("shared")
        return
    with served(tmp_path_factory.mktemp("browser") / "home", nursery=nursery) as running:
        yield running


def surely(scope, name: str, question: str) -> None:
    """Press a button and, before it calms down again, what it asks."""
    from playwright.sync_api import TimeoutError

    for _ in range(5):
        scope.get_by_role("button", name=name, exact=True).click()
        try:
            scope.get_by_role("button", name=question, exact=True).click(timeout=2500)
            return
        except TimeoutError:
            continue
    pytest.fail(f"{question} was never there for long enough")


def longest_answer(page, tokens: int, **settings: str) -> None:
    """Set the length of answers, and other settings by label, on the Compare page."""
    page.get_by_role("button", name="Settings").click()
    for label, value in ({"Longest answer": str(tokens)} | settings).items():
        page.get_by_label(label).fill(value)
        page.get_by_label(label).press("Tab")


def train(studio, name: str, method: dict, seed: int = 0) -> None:
    """Queue two steps on the starter; the studio's own supervisor runs them."""
    from jobs.job_queue import JobStore
    from studio.home import open_home
    from studio.spec import RunSpec

    values = {
        "name": name, "seed": seed, "method": method, "train": {"max_steps": 2},
        "data": {"max_length": 64},
    }  # fmt: skip
    with closing(JobStore(open_home(studio.home))) as store:
        store.submit(RunSpec.parse(values))


def put_adapters(studio, methods: dict[str, tuple[str, dict]], noise: float) -> None:
    """Write adapters of the starter, moved by noise, into the home: name, method and its fields."""
    import torch
    from transformers import AutoModelForCausalLM

    from studio import starter
    from studio.backbone import Backbone
    from studio.methods import named

    backbone = Backbone(AutoModelForCausalLM.from_pretrained(starter.MODEL_DIR))
    for name, (method, values) in methods.items():
        adapter = backbone.attach(name, named(method)(**values))
        generator = torch.Generator().manual_seed(1)
        for parameter in adapter.parameters():
            parameter.data += torch.randn(parameter.shape, generator=generator) * noise
        folder = studio.home / "adapters" / name
        folder.mkdir(parents=True)
        backbone.save(name, folder, base=starter.MODEL)


class Watch:
    """What a page did that it should not have done."""

    def __init__(self, address: str, refused: tuple[str, ...]) -> None:
        self.refused = refused
        self.host = urlsplit(address).netloc
        self.outside: list[str] = []
        self.errors: list[str] = []
        self.leaving = False

    def follow(self, page) -> None:
        page.on("request", lambda request: self._request(request.url))
        page.on("console", lambda message: self._console(message))
        page.on("pageerror", lambda error: self._thrown(str(error)))

    def _request(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in {"http", "https", "ws", "wss"} and parts.netloc != self.host:
            self.outside.append(url)

    def _thrown(self, words: str) -> None:
        # The browser's own word on a cross-fade between pages that came too late, no fault of ours.
        if not words.startswith("Transition was "):
            self.errors.append(words)

    def _console(self, message) -> None:
        url = message.location.get("url", "")
        if message.type == "error" and urlsplit(url).path not in self.refused:
            self.errors.append(f"{message.text} ({url})")


@pytest.fixture
def page(request, browser, studio):
    """A page of a fresh context; the test fails on a console error or an outside request.

    The mark `refused` names the routes whose refusal the test is about; the browser logs it.
    """
    mark = request.node.get_closest_marker("refused")
    context = browser.new_context(viewport={"width": 1280, "height": 800}, base_url=studio.address)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened, watch = context.new_page(), Watch(studio.address, mark.args if mark else ())
    opened.set_default_timeout(30_000)
    watch.follow(opened)
    yield opened
    context.close()
    assert watch.outside == []
    assert watch.errors == []
