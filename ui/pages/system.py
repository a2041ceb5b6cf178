"""System: devices, processes, the home folder.

The page is one element of `assets/system/system.js`.
"""

from ui.pages.element import bare, element

TITLE = "System"


def build() -> None:
    """Put the page's element into the open blocks."""
    bare(element("studio-system"))
