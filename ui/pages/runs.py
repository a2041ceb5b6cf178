"""Runs: the queue, live curves and everything about one run.

The page is one element of `assets/runs/runs.js`.
"""

from ui.pages.element import bare, element

TITLE = "Runs"


def build() -> None:
    """Put the page's element into the open blocks."""
    bare(element("studio-runs"))
