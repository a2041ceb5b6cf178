"""Gradio is imported whole but writes no stubs, and its queue does not poll while idle."""

import inspect
import subprocess
import sys
from pathlib import Path

import gradio as gr
import pytest
from gradio.queueing import Queue

from studio.home import open_home
from ui import app
from ui.app import QUEUE_INTERVALS, QUEUE_SECONDS, without_stubs

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
