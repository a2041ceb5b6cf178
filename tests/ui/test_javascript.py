"""The pages' JavaScript: its unit tests run under node's own test runner."""

import shutil
import subprocess

import pytest

from tests.served import ROOT


def test_the_javascript_unit_tests_pass():
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: the pages' JavaScript cannot be tested here")
    files = sorted((ROOT / "tests/js").glob("*.test.js"))
    done = subprocess.run(
        [node, "--test", *map(str, files)], capture_output=True, text=True, timeout=120
    )
    assert files and done.returncode == 0, done.stdout + done.stderr
