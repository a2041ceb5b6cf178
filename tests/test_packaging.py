"""What the wheel contains: every module that runs, and not what only makes the starter."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAKERS = "studio.starter.make"


@pytest.fixture(scope="module")
def packages():
    setuptools = pytest.importorskip("setuptools")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    return setuptools.find_namespace_packages(str(ROOT), **settings["packages"]["find"])


def test_the_makers_of_the_starter_stay_out(packages):
    assert {"studio", "studio.starter", "jobs", "ui", "ui.cli"} <= set(packages)
    assert not [name for name in packages if name.startswith(MAKERS)]


def test_every_other_package_is_in(packages):
    folders = {
        ".".join(file.relative_to(ROOT).parent.parts)
        for top in ("studio", "jobs", "ui")
        for file in (ROOT / top).rglob("*.py")
    }
    assert {name for name in folders if not name.startswith(MAKERS)} <= set(packages)


def test_no_installed_module_imports_the_makers(packages):
    for package in packages:
        for file in (ROOT / package.replace(".", "/")).glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom):
                    assert not str(node.module).startswith(MAKERS), file
                elif isinstance(node, ast.Import):
                    assert not [a for a in node.names if a.name.startswith(MAKERS)], file
