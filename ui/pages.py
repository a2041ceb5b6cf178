"""The table of pages: title, address, and the custom element that draws each one.

A page is one element of `assets/<page>/<page>.js`, which registers it, styled by
`assets/<page>/<page>.css`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Page:
    """One page; `name` is its folder in `assets` and its address below `/`."""

    title: str

    @property
    def name(self) -> str:
        """Folder, script and stylesheet."""
        return self.title.lower()

    @property
    def address(self) -> str:
        """Path in the browser; the first page is `/`."""
        return "/" if self is PAGES[0] else f"/{self.name}"


PAGES = (
    Page("Train"),
    Page("Runs"),
    Page("Compare"),
    Page("Adapters"),
    Page("Results"),
    Page("Models"),
    Page("Data"),
    Page("System"),
)


def page_at(path: str) -> Page | None:
    """Return the page at a path of the address, or None."""
    return next((page for page in PAGES if page.address == "/" + path.strip("/")), None)
