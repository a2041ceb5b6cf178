"""Adapt gradio: import it in half the time, and slow its queue's polling down.

Gradio parses the source of each of its components at every import to refresh `.pyi` files beside
them, for editors. A running studio needs none, and an installed package should not change. Gradio
skips a component whose source file cannot be named, so for the time of the import it cannot.
"""

import contextlib
import inspect
import sys
from collections.abc import Iterator
from typing import Any

QUEUE_SECONDS = 1.0
QUEUE_INTERVALS = ("sleep_when_free", "progress_update_sleep_when_free")


@contextlib.contextmanager
def without_stubs() -> Iterator[None]:
    """Hide source files from gradio inside the block; other callers find them as usual."""
    usual = inspect.getfile

    def getfile(object: Any) -> str:  # the parameter's name in inspect
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


def slow_down(pages: Any) -> None:
    """Let the queue of mounted `gr.Blocks` look for events once a second.

    Gradio polls it 1000 times a second (and progress 100 times), which is most of what an idle page
    costs. All our events bypass it (`queue=False`).
    """
    for name in QUEUE_INTERVALS:
        setattr(pages._queue, name, QUEUE_SECONDS)
