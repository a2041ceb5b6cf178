"""sqlite-utils, imported without pandas and NumPy: it loads them only to accept their values.

That is 0.4 s and 40 MB in every command, in the supervisor and in each runner's start.
"""

import sys

_hidden = [name for name in ("pandas", "numpy") if name not in sys.modules]
for _name in _hidden:
    sys.modules[_name] = None  # type: ignore[assignment]
try:
    from sqlite_utils import Database as Tables
    from sqlite_utils.migrations import Migrations
finally:
    for _name in _hidden:
        del sys.modules[_name]

__all__ = ["Migrations", "Tables"]
