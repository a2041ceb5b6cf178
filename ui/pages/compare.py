"""Compare: lanes side by side, answering one prompt together.

The page is one element of `assets/compare/compare.js`.
"""

from ui.pages.element import bare, element

TITLE = "Compare"


def build() -> None:
    """Put the page's element into the open blocks."""
    bare(element("studio-compare"))
