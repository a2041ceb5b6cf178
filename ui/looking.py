"""A first look at what is to be imported: columns, how it is read and why, the first rows.

It reads the first rows only, so it answers at once; what it refuses never reaches the queue.
"""

from typing import Any

from pydantic import BaseModel

from studio.data import preview, snapshots
from studio.data.datasets import origin_of
from studio.data.mapping import Mapping
from studio.errors import DataError
from studio.fields import validated
from studio.home import Home


class Looked(BaseModel):
    """A source to look at; a mapping or a format when a person chose one."""

    path: str
    format: str = ""
    mapping: dict[str, Any] | None = None


def look(home: Home, wanted: Looked) -> dict[str, Any]:
    """Return columns, a mapping with its reason, and the first rows rendered with it.

    Raises:
        DataError: Nothing of it can be read.
    """
    path = wanted.path.strip()
    if origin_of(path, home).kind == "hub":
        return {"hub": True}
    columns = preview.columns(path, home)
    corrected = validated(Mapping, wanted.mapping) if wanted.mapping is not None else None
    problem, sure = "", True
    try:
        if corrected is not None:
            mapping, reason = corrected.checked(), "by hand"
        else:
            mapping, reason, sure = preview.guess(path, home, format=wanted.format or "auto")
        rows = preview.preview(path, mapping, count=5, home=home)
    except DataError as error:
        if not columns:
            raise
        # The person can still say what the columns are, looking at the rows as they stand.
        mapping = corrected or preview.blank(wanted.format)
        problem, reason, sure = error.text, "", False
        rows = preview.preview(path, None, count=5, home=home)
    same = [
        s.meta.name
        for s in snapshots.snapshots(home)
        if not s.meta.parent and s.meta.original.name == path.rstrip("/").split("/")[-1]
    ]
    return {
        "hub": False, "problem": problem, "reason": reason, "sure": sure, "columns": columns,
        "mapping": mapping.model_dump(mode="json"), "same_name": same[:1], "rows": rows,
    }  # fmt: skip
