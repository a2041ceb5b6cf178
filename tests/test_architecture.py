"""The floors hold (studio <- jobs <- ui), the budgets only fall, no torch where it must not be."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ratchet
from tests.ratchet import ROOT, sources

MOST_LINES = 520


def test_the_figures_only_fall():
    assert ratchet.exceeded() == {}, "see `python -m tests.ratchet` and its docstring"


def test_circles_through_imports_inside_functions_are_found(tmp_path, monkeypatch):
    for name, other in (("a", "b"), ("b", "a"), ("c", "a")):
        file = tmp_path / "jobs" / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"def work():\n    from jobs import {other}\n")
    (tmp_path / "jobs" / "d.py").write_text("if TYPE_CHECKING:\n    from jobs import d\n")
    monkeypatch.setattr(ratchet, "ROOT", tmp_path)
    ratchet.forget()
    try:
        assert ratchet.circles() == ["jobs.a <-> jobs.b"]
    finally:
        ratchet.forget()


def test_no_module_imports_a_higher_floor():
    allowed = ratchet.budgets()["upward imports"]
    assert [one for one in ratchet.upward_imports() if one not in allowed] == []


@pytest.mark.parametrize("file", sources(), ids=str)
def test_a_file_is_small_and_says_what_it_is_for(file):
    assert len(ratchet.text_of(file).splitlines()) <= MOST_LINES
    doc = ast.get_docstring(ratchet.tree_of(file))
    sentence = (doc or "").split("\n\n")[0].strip()
    assert sentence.endswith((".", ":", "?")), f"{file} does not say what it is for"


def test_only_the_windows_know_gradio():
    knowing = [
        str(file)
        for file in sources()
        if re.search(r"^\s*(import|from) gradio\b", (ROOT / file).read_text(), re.MULTILINE)
    ]
    assert all(name.startswith("ui/") for name in knowing), knowing


def run(code: str, home: Path) -> str:
    """Run code in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(home)], cwd=ROOT, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


HEAVY = """
import sys
heavy = {"torch", "transformers", "peft", "datasets", "accelerate", "pandas"} & set(sys.modules)
print(",".join(sorted(heavy - set(sys.argv[2:]))))
"""


def test_the_page_holds_no_torch(tmp_path):
    code = f"""
import sys
from pathlib import Path
from studio.home import open_home
from ui.app import build_app
build_app(open_home(Path(sys.argv[1])))
{HEAVY}"""
    # pandas comes with gradio itself.
    assert run(code, tmp_path / "home") in {"", "pandas"}


def test_the_supervisor_holds_no_torch(tmp_path):
    code = f"""
import sys
from pathlib import Path
from studio.home import open_home
import jobs.supervisor, jobs.chat_client, jobs.jobs_table
from jobs.store import JobStore
JobStore(open_home(Path(sys.argv[1]))).close()
{HEAVY}"""
    assert run(code, tmp_path / "home") == ""


def test_the_command_line_starts_without_torch_or_gradio(tmp_path):
    code = f"import sys, ui.cli.main\n{HEAVY}\nprint('gradio' in sys.modules)"
    assert run(code, tmp_path).split() == ["False"]
