"""The floors hold (studio <- jobs <- ui), the budgets only fall."""

import ast
import re

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


def test_a_file_is_small_and_says_what_it_is_for():
    for file in sources():
        assert len(ratchet.text_of(file).splitlines()) <= MOST_LINES, file
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


def test_a_digit_is_one_that_int_reads():
    """`"²".isdigit()` holds, and `int("²")` fails; `isdecimal` agrees with `int`."""
    found = [
        f for f in sources() if re.search(r"(?<!lengths\[0\])\.isdigit\(\)", ratchet.text_of(f))
    ]
    assert found == []  # ui/security.py reads bytes, where both agree
