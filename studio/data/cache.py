"""Tokens by content hash: the second launch on the same data and tokenizer reads nothing again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from studio.data.examples import Tokens, load_tokens
from studio.data.report import Report
from studio.home import Home, is_whole, publishing, sweep

KEEP = 16


def cached(
    home: Home, key: str, make: Callable[[Path], tuple[Tokens, Report]]
) -> tuple[Tokens, Report]:
    """Return the tokens and report of a key, making them where they are not there whole."""
    root = home.datasets / ".tokens"
    root.mkdir(exist_ok=True, mode=0o700)
    folder = root / key
    if not is_whole(folder):
        sweep(root)
        with publishing(folder) as temporary:
            _, report = make(temporary)
            (temporary / "report.json").write_text(report.model_dump_json(), encoding="utf-8")
        _forget_old(root)
    report = Report.model_validate_json((folder / "report.json").read_text(encoding="utf-8"))
    return load_tokens(folder), report


def is_cached(home: Home, key: str) -> bool:
    """Whether the tokens of a key are there (they are verified when they are read)."""
    return (home.datasets / ".tokens" / key / "report.json").is_file()


def _forget_old(root: Path) -> None:
    folders = [f for f in root.iterdir() if f.is_dir() and not f.name.startswith(".")]
    for old in sorted(folders, key=lambda f: f.stat().st_mtime)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
