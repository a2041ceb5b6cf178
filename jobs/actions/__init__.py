"""Every action that a user can ask for: one registry for commands, HTTP routes, dialogs and docs.

To add one, write a function with `@action` in the module of its area (see `registry.py`).
"""

from jobs.actions import (
    adapters,
    chat_and_compare,
    datasets,
    guide,
    home,
    models,
    queue,
    train_and_sweep,
)
from jobs.actions.registry import ACTIONS, Action, Reply, ask, outcome

AREAS = (adapters, chat_and_compare, datasets, guide, home, models, queue, train_and_sweep)
__all__ = ["ACTIONS", "AREAS", "Action", "Reply", "ask", "outcome"]
