"""The Train page's picker of target modules: the model's real names, and the shortest way to say a
choice. Reads headers of models that are here; it never downloads one.
"""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from studio import starter
from studio.errors import ModelError
from studio.models.architecture import LinearModule, linear_modules, targets
from studio.spec import ModelSource

ModelPath = Annotated[str, Field(max_length=4000)]


class Chosen(BaseModel):
    """The ticked modules of a model."""

    path: ModelPath
    keys: list[str] = Field(max_length=100_000)


def target_routes() -> APIRouter:
    """Return the routes of the picker."""
    router = APIRouter(prefix="/api/targets")

    @router.get("")
    def modules(path: Annotated[str, Query(max_length=4000)]) -> dict[str, Any]:
        return {
            "modules": [
                {"key": one.key, "layer": one.layer, "name": one.name, "shape": one.shape}
                for one in _modules(path)
            ]
        }

    @router.post("")
    def words(chosen: Chosen) -> dict[str, Any]:
        return {"targets": targets(chosen.keys, _modules(chosen.path))}

    return router


def _modules(path: str) -> list[LinearModule]:
    if path != starter.MODEL and (not path or not Path(path).expanduser().is_dir()):
        raise ModelError(
            f'"{path}" is not a folder here: its modules are known once it is downloaded.'
        )
    found = linear_modules(ModelSource(path=path))
    if not found:
        raise ModelError(f"{path} names no linear layers in the way that decoders do.")
    return found
