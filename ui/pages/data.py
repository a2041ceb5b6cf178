"""Data: import, mapping, report, X-ray, curation of datasets.

The page is one element of `assets/data/data.js`.
"""

from ui.pages.element import bare, element

TITLE = "Data"


def build() -> None:
    """Put the page's element into the open blocks."""
    bare(element("studio-data"))
