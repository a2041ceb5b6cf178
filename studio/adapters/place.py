"""Where a new folder may go: its nearest folder that exists is tried before anything is queued."""

import os
import tempfile
from pathlib import Path

from studio.errors import InputError


def refuse_place(out: Path) -> None:
    """Refuse a folder that is there already, or could not be made here.

    What the system says is asked by making an empty folder beside the place, not guessed: a folder
    of root's may still take nothing.

    Raises:
        InputError: Something is in the way, or nothing can be written there.
    """
    if os.path.lexists(out):
        raise InputError(f"{out} exists already; give another name or folder.")
    parent = next((place for place in out.absolute().parents if os.path.lexists(place)), out)
    if not parent.is_dir():
        raise InputError(f"{parent} is a file, not a folder: choose another place than {out}.")
    try:
        os.rmdir(tempfile.mkdtemp(prefix=f".tmp-{out.name}-", dir=parent))
    except (OSError, ValueError) as error:
        why = str(getattr(error, "strerror", None) or error).lower()
        raise InputError(
            f"{out} cannot be made: {parent} takes no new folder ({why}). Choose another place."
        ) from None
