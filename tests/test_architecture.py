"""The floors hold: studio <- jobs <- ui, no cycles, small files, no torch where it must not be."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"studio": 0, "jobs": 1, "ui": 2}
MOST_LINES = 520


def sources() -> list[Path]:
    return sorted(
        file.relative_to(ROOT)
        for package in FLOORS
        for file in (ROOT / package).rglob("*.py")
        if "__pycache__" not in file.parts
    )


def module_of(file: Path) -> str:
    name = ".".join(file.with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_of(file): file for file in sources()}


def imported(file: Path, *, at_import_time: bool = False) -> set[str]:
    """Return our modules that a file imports; only those at import time when asked."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in _nodes(tree, at_import_time):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} imports relatively"
            base = node.module or ""
            found |= {
                name if (name := f"{base}.{alias.name}") in MODULES else base
                for alias in node.names
            }
    return {name for name in found if name.partition(".")[0] in FLOORS}


def _nodes(tree: ast.AST, at_import_time: bool) -> list[ast.AST]:
    if not at_import_time:
        return list(ast.walk(tree))
    found, waiting = [], [tree]
    while waiting:
        node = waiting.pop()
        found.append(node)
        for child in ast.iter_child_nodes(node):
            lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            if not lazy and not typing_only:
                waiting.append(child)
    return found


@pytest.mark.parametrize("file", sources(), ids=str)
def test_no_floor_imports_a_higher_one(file: Path) -> None:
    floor = FLOORS[file.parts[0]]
    higher = {n for n in imported(file) if FLOORS[n.partition(".")[0]] > floor}
    assert not higher, f"{file} reaches up to {sorted(higher)}"


def test_there_are_no_import_cycles() -> None:
    graph = {
        name: {n for n in imported(file, at_import_time=True) if n in MODULES and n != name}
        for name, file in MODULES.items()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, "cycle: " + " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        for other in sorted(graph[name]):
            visit(other, (*path, name))
        done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("file", sources(), ids=str)
def test_a_file_stays_small(file: Path) -> None:
    lines = len((ROOT / file).read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES


@pytest.mark.parametrize("file", sources(), ids=str)
def test_a_file_says_what_it_is_for(file: Path) -> None:
    doc = ast.get_docstring(ast.parse((ROOT / file).read_text(encoding="utf-8")))
    sentence = (doc or "").split("\n\n")[0].strip()
    assert sentence.endswith((".", ":", "?")), f"{file} does not say what it is for"


def test_only_the_windows_know_gradio() -> None:
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


def test_the_page_holds_no_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from studio.home import open_home
from ui.app import build_app
build_app(open_home(Path(sys.argv[1])))
{HEAVY}"""
    # pandas comes with gradio itself.
    assert run(code, tmp_path / "home") in {"", "pandas"}


def test_the_supervisor_holds_no_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from studio.home import open_home
import jobs.supervisor, jobs.chat_client, jobs.jobs_table
from jobs.store import JobStore
JobStore(open_home(Path(sys.argv[1]))).close()
{HEAVY}"""
    assert run(code, tmp_path / "home") == ""


def test_the_command_line_starts_without_torch_or_gradio(tmp_path: Path) -> None:
    code = f"import sys, ui.cli.main\n{HEAVY}\nprint('gradio' in sys.modules)"
    assert run(code, tmp_path).split() == ["False"]
