"""The end of a log file, however long the file is."""

from pathlib import Path

LINE_BYTES = 400


def tail(path: Path, lines: int) -> str:
    """Return about the last `lines` lines; empty when there is no such file yet."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - LINE_BYTES * lines))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
