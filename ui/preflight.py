"""The route that estimates a run's memory and time while its form is filled in.

The page sends the form as it stands in its address (`set` assignments). Nothing is downloaded: what
is not on this machine yet has no estimate. Measuring and making it fit are actions.
"""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from jobs import preflight
from studio.data import datasets as data
from studio.errors import InputError, SpecError
from studio.home import Home
from studio.models import sources as models
from studio.spec import RunSpec
from studio.training.estimate import estimate
from ui import equivalents

MOST_BYTES = 16 * 2**20


class FormState(BaseModel):
    """The form as assignments."""

    set: list[str] = []


def preflight_routes(home: Home) -> APIRouter:
    """Return the route over one home folder."""
    router = APIRouter(prefix="/api")

    @router.post("/estimate")
    def estimated(form: FormState) -> dict[str, Any]:
        try:
            return _told(equivalents.from_query(form.set), home)
        except InputError as error:  # a form on its way to a valid one: an answer, not a failure
            return {"error": error.as_dict()}

    return router


def unknown(spec: RunSpec, home: Home) -> str:
    """Return why nothing can be told yet; empty where it can."""
    for noun, path, (kind, _) in (
        ("model", spec.model.path, models.origin_of(spec.model.path)),
        ("dataset", spec.data.path, data.origin_of(spec.data.path, home)),
    ):
        if kind == "missing":
            return f"There is no {noun} at {path}."
        if kind == "hub":
            return f"Known once the {noun} is downloaded."
    kind, file = data.origin_of(spec.data.path, home)
    if kind == "file" and file.stat().st_size > MOST_BYTES:
        return "A large dataset: press Measure to read it and take two real steps."
    return ""


def _told(spec: RunSpec, home: Home) -> dict[str, Any]:
    if why := unknown(spec, home):
        return {"unknown": why}
    try:
        return estimate(spec, home).as_dict() | {"titles": preflight.TITLES}
    except SpecError as error:  # devices that are not here
        return {"unknown": error.text}
