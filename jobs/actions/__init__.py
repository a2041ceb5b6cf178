"""Every action that a user can ask for: one registry for commands, HTTP routes, dialogs and docs.

To add one, write a function with `@action` in the module of its area (see `registry.py`).
"""

from jobs.actions import adapters, comparisons, datasets, guide, home, models, queue, runs, training
from jobs.actions.registry import ACTIONS, Action, Reply, ask, outcome

AREAS = (adapters, comparisons, datasets, guide, home, models, queue, runs, training)
__all__ = ["ACTIONS", "AREAS", "Action", "Reply", "ask", "outcome"]
