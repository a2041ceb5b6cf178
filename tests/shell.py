"""The command line in this process, in a home of its own: exit codes and JSON documents."""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ui.cli.main import main


class Shell:
    """A folder that holds a home and the files that commands read and write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *words: str) -> dict[str, Any]:
        """Run a command with --json; return its exit code and its one document."""
        out = io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(io.StringIO()),
            pytest.raises(SystemExit) as ended,
        ):
            main([*words, "--json"])
        printed = out.getvalue().replace(str(self.folder), "DIR")
        return {"exit": int(ended.value.code or 0), "json": json.loads(printed)}

    def file(self, name: str, content: str | bytes | list[Any]) -> str:
        """Write a file of text, bytes or JSON lines, and return its path."""
        path = self.folder / name
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Shell]:
    """Open a shell whose home is `folder / "home"`; stop what it started."""
    shell = Shell(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIO_HOME", str(folder / "home"))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield shell
        shell("stop")
