"""The app: gradio writes no stubs and does not poll while idle; below a path of a reverse proxy."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import gradio as gr
import pytest
from fastapi.testclient import TestClient
from gradio.queueing import Queue

from studio.errors import ServeError
from studio.home import open_home
from ui import app
from ui.app import QUEUE_INTERVALS, QUEUE_SECONDS, build_app, checked_root, without_stubs

ROOT = Path(__file__).resolve().parents[2]


def test_gradio_works_and_writes_no_stub():
    code = """
from pathlib import Path
from ui.app import import_gradio
import_gradio()
import gradio as gr
package = Path(gr.__file__).parent
times = {file: file.stat().st_mtime_ns for file in package.rglob("*.pyi")}
with gr.Blocks():
    gr.Textbox().change(lambda x: x)
print(all(file.stat().st_mtime_ns == time for file, time in times.items()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True"]


def test_only_gradio_is_kept_from_its_sources():
    usual = inspect.getfile
    with without_stubs():
        assert inspect.getfile(Path).endswith(".py")
    assert inspect.getfile is usual


@pytest.mark.parametrize("name", QUEUE_INTERVALS)
def test_gradio_still_polls_its_queue_at_this_interval(name):
    with gr.Blocks() as blocks:
        pass
    assert getattr(blocks._queue, name) < QUEUE_SECONDS
    source = inspect.getsource(Queue.start_processing) + inspect.getsource(
        Queue.start_progress_updates
    )
    assert f"asyncio.sleep(self.{name})" in source
    assert source.count("asyncio.sleep(") == sum(
        source.count(f"asyncio.sleep(self.{one})") for one in QUEUE_INTERVALS
    )


def test_the_queue_of_our_pages_is_slow_and_unused(tmp_path, monkeypatch):
    mounted = []
    mount = gr.mount_gradio_app
    monkeypatch.setattr(
        gr, "mount_gradio_app",
        lambda own, pages, **options: mounted.append(pages) or mount(own, pages, **options),
    )  # fmt: skip
    app.build_app(open_home(tmp_path / "home"))
    (pages,) = mounted
    assert [getattr(pages._queue, name) for name in QUEUE_INTERVALS] == [QUEUE_SECONDS] * 2
    assert not any(fn.queue for fn in pages.fns.values())


BELOW = "/box/studio"


@pytest.fixture(scope="module")
def below(tmp_path_factory):
    app = build_app(open_home(tmp_path_factory.mktemp("home")), token="t" * 32, root=BELOW)
    client = TestClient(app, base_url="http://127.0.0.1:7860", follow_redirects=False)
    client.headers["authorization"] = f"Bearer {'t' * 32}"
    return client


@pytest.mark.parametrize("path", ["/runs", f"{BELOW}/runs", "/no/such/page"])
def test_links_and_scripts_of_a_page_have_the_root_path(below, path):
    html = below.get(path, headers={"sec-fetch-dest": "document"}).text

    assert f'<html data-root="{BELOW}"' in html
    places = re.findall(r'(?:href|src)="(/[^/"][^"]*|/)"', html)
    assert len(places) > 8 and all(place.startswith(f"{BELOW}/") for place in places), places


def test_requests_and_redirects_keep_the_root_path(below):
    assert below.get(f"{BELOW}/api/queue").json() == below.get("/api/queue").json()
    assert below.get(f"{BELOW}/train").headers["location"] == f"{BELOW}/"
    entrance = below.get(f"{BELOW}/runs?token={'t' * 32}", headers={"authorization": ""})
    assert entrance.headers["location"] == f"{BELOW}/runs"
    assert below.get(f"{BELOW}/studio/main.js").status_code == 200
    assert below.get(f"{BELOW}/config").json()["root"].endswith(BELOW)


def test_a_root_path_loses_its_last_slash_and_what_is_none_is_refused():
    for path, root in (("", ""), ("/", ""), ("/a/", "/a"), ("/a/b", "/a/b")):
        assert checked_root(path) == root
    for wrong in ("a", "//a", "/a b", '/a"><script>', "http://a"):
        with pytest.raises(ServeError, match="Invalid root path"):
            checked_root(wrong)
