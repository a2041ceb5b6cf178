"""sqlite-utils, imported without pandas: it would load it only to accept data frames.

That is 0.4 s and 40 MB in every command, in the supervisor and in each runner's start.
"""

import sys

_absent = object()
_pandas = sys.modules.get("pandas", _absent)
if _pandas is _absent:
    sys.modules["pandas"] = None  # type: ignore[assignment]
try:
    from sqlite_utils import Database as Tables
    from sqlite_utils.migrations import Migrations
finally:
    if _pandas is _absent:
        del sys.modules["pandas"]

__all__ = ["Migrations", "Tables"]
