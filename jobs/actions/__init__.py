"""Every action that a user can ask for: one registry for commands, HTTP routes, dialogs and docs.

To add one, write a function with `@action` in the module of its area (see `registry.py`).
"""

from jobs.actions import adapters, comparisons, datasets, home, queue, runs
from jobs.actions.registry import ACTIONS, Action, Reply, ask, outcome

__all__ = [
    "ACTIONS", "Action", "Reply", "adapters", "ask", "comparisons", "datasets", "home", "outcome",
    "queue", "runs",
]  # fmt: skip
