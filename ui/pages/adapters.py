"""Adapters: the library, passports, merging, mixing, bake-offs, and what an adapter changed.

The page is one element of `assets/adapters/adapters.js`.
"""

from ui.pages.element import bare, element

TITLE = "Adapters"


def build() -> None:
    """Put the page's element into the open blocks."""
    bare(element("studio-adapters"))
