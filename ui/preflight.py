"""Routes about how a run will go: its memory and time, measuring, making it fit, presets.

The page sends the form as it stands in its address (`set` assignments). Nothing here downloads: of
what is not on this machine nothing can be told yet.
"""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from jobs import preflight, supervisor
from jobs.admission import admit
from jobs.store import JobStore
from studio import presets
from studio.data import datasets as data
from studio.errors import InputError, SpecError
from studio.home import Home
from studio.models import sources as models
from studio.spec import RunSpec
from studio.training.estimate import estimate
from studio.training.remedies import make_it_fit
from ui import equivalents

MOST_BYTES = 16 * 2**20


class Asked(BaseModel):
    """The form's state, and a name where one is needed."""

    set: list[str] = []
    name: str = ""


def preflight_routes(home: Home, store: JobStore) -> APIRouter:
    """Return the routes over one home folder."""
    router = APIRouter(prefix="/api")

    @router.post("/estimate")
    def estimated(asked: Asked) -> dict[str, Any]:
        try:
            return _told(equivalents.from_query(asked.set), home)
        except InputError as error:  # a form on its way to a valid one: an answer, not a failure
            return {"error": error.as_dict()}

    @router.post("/fit")
    def fitted(asked: Asked) -> dict[str, Any]:
        spec = equivalents.from_query(asked.set)
        changes, _ = make_it_fit(spec, home)
        return {"changes": changes, "query": equivalents.query(spec.with_values(changes))}

    @router.post("/measure")
    def measure(asked: Asked) -> dict[str, Any]:
        job = preflight.submit_measure(store, admit(equivalents.from_query(asked.set), home))
        supervisor.ensure_running(home)
        return {"job": job.id}

    @router.get("/measured/{job_id}")
    def measured(job_id: int) -> dict[str, Any]:
        job = store.get(job_id)
        if job.state == "succeeded":
            return preflight.read_measured(home, job_id) | {"titles": preflight.TITLES}
        return {"state": job.state, "phase": job.phase, "error": job.error_text}

    @router.get("/refit/{job_id}")
    def offered(job_id: int) -> dict[str, Any]:
        return {"remedies": [one.as_dict() for one in preflight.offers(store, job_id)]}

    @router.post("/refit/{job_id}")
    def refit(job_id: int, asked: Asked) -> dict[str, Any]:
        job, remedy = preflight.fit_and_retry(store, job_id, asked.name)
        supervisor.ensure_running(home)
        return {"job": job.id, "remedy": remedy.name}

    @router.get("/presets")
    def all_presets() -> list[dict[str, Any]]:
        return presets.presets(home)

    @router.post("/presets/apply")
    def apply(asked: Asked) -> dict[str, Any]:
        spec = presets.apply_preset(home, asked.name, equivalents.from_query(asked.set))
        return {"query": equivalents.query(spec)}

    @router.post("/presets/save")
    def save(asked: Asked) -> list[dict[str, Any]]:
        presets.save_preset(home, asked.name, equivalents.from_query(asked.set))
        return presets.presets(home)

    @router.post("/presets/forget")
    def forget(asked: Asked) -> list[dict[str, Any]]:
        presets.delete_preset(home, asked.name)
        return presets.presets(home)

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
