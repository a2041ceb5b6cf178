"""Gradio is imported whole, only without writing about itself."""

import inspect
import subprocess
import sys
from pathlib import Path

from ui.wake import without_stubs

ROOT = Path(__file__).resolve().parents[2]


def test_gradio_works_and_writes_no_stub() -> None:
    code = """
from pathlib import Path
from ui.wake import import_gradio
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


def test_only_gradio_is_kept_from_its_sources() -> None:
    usual = inspect.getfile
    with without_stubs():
        assert inspect.getfile(Path).endswith(".py")
    assert inspect.getfile is usual
