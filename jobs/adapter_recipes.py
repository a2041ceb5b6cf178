"""Recipes: named mixes of adapters, and what can be made of one: a new adapter, a merged model."""

import json
from collections.abc import Sequence
from typing import Any

from jobs.database import Database, now
from studio.adapter_stack import StackItem
from studio.errors import ChatError, nearest
from studio.fields import validated

NAME_LENGTH = 120
Rows = list[dict[str, Any]]


class Recipes:
    """The recipes of one home."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def list(self) -> Rows:
        """Return the recipes, by name."""
        rows = self._database.rows("SELECT * FROM recipes ORDER BY name")
        return [row | {"stack": json.loads(row["stack"])} for row in rows]

    def get(self, name: str) -> dict[str, Any]:
        """Return one recipe.

        Raises:
            ChatError: There is none of this name.
        """
        known = {row["name"]: row for row in self.list()}
        if name not in known:
            raise ChatError(f'There is no recipe "{name}".{nearest(name, known)}')
        return known[name]

    def save(self, name: str, model: str, stack: Sequence[dict[str, Any]]) -> None:
        """Keep a mix under a name; the same name is written anew.

        Raises:
            ChatError: No name, or no adapter.
            SpecError: A weight is out of bounds.
        """
        name = name.strip()
        if not 0 < len(name) <= NAME_LENGTH:
            raise ChatError(f"A recipe needs a name of at most {NAME_LENGTH} characters.")
        if not stack:
            raise ChatError("A recipe needs at least one adapter.")
        items = [validated(StackItem, dict(item)).model_dump() for item in stack]
        values = {"name": name, "model": model, "stack": json.dumps(items), "now": now()}
        self._database.change(_SAVE, values)

    def delete(self, name: str) -> None:
        """Forget a recipe.

        Raises:
            ChatError: There is none of this name.
        """
        self.get(name)
        self._database.change("DELETE FROM recipes WHERE name = ?", [name])


_SAVE = """
INSERT INTO recipes(name, model, stack, created) VALUES (:name, :model, :stack, :now)
ON CONFLICT(name) DO UPDATE SET model = :model, stack = :stack, created = :now
"""
