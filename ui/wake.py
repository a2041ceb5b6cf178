"""Import gradio in half the time: without the type stubs it writes about itself.

Gradio parses the source of each of its components at every import to refresh `.pyi` files beside
them, for editors. A running studio needs none, and an installed package should not change. Gradio
skips a component whose source file cannot be named, so for the time of the import it cannot.
"""

import contextlib
import inspect
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def without_stubs() -> Iterator[None]:
    """Let gradio find no source files inside the block; everybody else does as ever."""
    usual = inspect.getfile

    def getfile(object: Any) -> str:  # the name that inspect gives it
        if sys._getframe(1).f_globals.get("__name__") == "gradio.component_meta":
            raise OSError("no stubs are wanted")
        return usual(object)

    inspect.getfile = getfile
    try:
        yield
    finally:
        inspect.getfile = usual


def import_gradio() -> None:
    """Import gradio, quickly and without analytics."""
    with without_stubs():
        import gradio  # noqa: F401
