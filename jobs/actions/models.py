"""Actions on base models: list what can be trained, search the hub, download, delete."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from jobs.actions.registry import action, field, request_action, submit
from jobs.job_inputs import refuse_in_use
from jobs.job_queue import JobStore
from jobs.job_record import OPEN, Job
from studio import hardware, offline
from studio.adapters import library
from studio.errors import InputError, ModelError
from studio.home import Home
from studio.models import hub_models, model_list
from studio.models.download_model import DownloadRequest, arrived_bytes, free_bytes
from studio.models.find_model import origin_of, text_part
from studio.models.new_tokens import ExtendRequest
from studio.spec import ModelSource

NONE: Any = ()
HubId = Annotated[
    str,
    field(
        "Hub id, or the address of the model's page.", positional=True, metavar="MODEL",
        max_length=300,
    ),
]  # fmt: skip
Device = Annotated[str, field("Device of the estimates; the first one by default.")]

SHOWN = [one.name for one in fields(model_list.Model) if one.name != "config"]

request_action("models.get", DownloadRequest, title="Download a model")
request_action("models.extend", ExtendRequest, title="Add tokens to a model")


@action("models")
def listed(
    store: JobStore,
    fits: Annotated[bool, field("Estimate what fits on this machine.")] = False,
    device: Device = "",
) -> dict[str, Any]:
    """List the models that can be trained: on this disk, and a list of the hub's to begin with."""
    chosen = device_named(device)
    home, used, made = store.home, _last_used(store), _adapters(store.home)
    rows = []
    for model in model_list.models(home):
        row = {name: getattr(model, name) for name in SHOWN}
        names = {model.path, model.folder} - {""}
        row["adapters"] = [name for base in names for name in made.get(base, ())]
        row |= {"last_used": used.get(model.path), "fits": fit_of(model, chosen) if fits else None}
        rows.append(row)
    return {
        "models": rows, "folders": _folders(home),
        "device": {"name": chosen.name, "label": chosen.label, "bytes": chosen.total_bytes},
        "devices": [one.name for one in hardware.devices()],
        "cache": str(hub_models.cache_folder()), "free_bytes": free_bytes(),
        "offline": offline.is_offline(home),
    }  # fmt: skip


@action("models.search")
def search(
    home: Home,
    words: Annotated[
        str, field("Words of the name, or an id.", positional=True, metavar="WORDS")
    ] = "",
    sort: Annotated[
        Literal["downloads", "likes", "last_modified", "trending_score"], field("Order.")
    ] = "downloads",
    limit: Annotated[int, field("Results to look at.", ge=1, le=200)] = 30,
    all: Annotated[bool, field("Show models that cannot be trained here, too.")] = False,
    device: Device = "",
) -> list[dict[str, Any]]:
    """Search the hub for models that can be trained here."""
    chosen = device_named(device)
    if "://" in words:
        words, _ = hub_models.read_name(words)
    elif ":" in words or words.lower().startswith("ollama"):
        hub_models.read_name(words)  # raises for names of other programs
    found = hub_models.search(words, sort=sort, limit=limit)
    return [_remote(one, chosen) for one in found if all or not one.why_not]


@action("models.show")
def show(home: Home, model: HubId, device: Device = "") -> dict[str, Any]:
    """Show all of a hub model before its download: files, bytes, licence, commit, what fits."""
    name, revision = hub_models.read_name(model)
    found = hub_models.look_up(name, revision)
    return _remote(found, device_named(device)) | {
        "files": [{"name": file.name, "bytes": file.size} for file in found.files],
        "bytes": found.size_bytes, "arrived_bytes": arrived_bytes(found),
        "free_bytes": free_bytes(), "folder": str(hub_models.repository_folder(found.id)),
        "asked": name, "page": f"{hub_models.endpoint()}/{found.id}",
    }  # fmt: skip


@action("models.remove", title="Delete a model")
def remove(
    store: JobStore,
    model: HubId,
    yes: Annotated[bool, field("Delete; without it only say what would happen.")] = False,
) -> dict[str, Any]:
    """Delete a downloaded model from the hub's cache; adapters on it lose their base."""
    name, _ = hub_models.read_name(model)
    size = hub_models.size_on_disk(name)
    if not hub_models.repository_folder(name).is_dir():
        hub_models.remove_from_cache(name)  # raises
    refuse_in_use(store, hub_models.repository_folder(name), name, error=ModelError)
    if yes:
        size = hub_models.remove_from_cache(name)
    adapters = _adapters(store.home).get(name, [])
    return {"model": name, "bytes": size, "adapters": adapters, "removed": yes}


@action("models.folders", title="Folders with models")
def folders(
    home: Home,
    add: Annotated[str, field("Folder to search for models.", of="folder", max_length=4000)] = "",
    forget: Annotated[str, field("Registered folder to leave out again.", max_length=4000)] = "",
) -> list[dict[str, Any]]:
    """List the folders that are searched for models, add one or leave one out."""
    if add:
        model_list.register(home, Path(add))
    if forget:
        model_list.forget(home, forget)
    return _folders(home)


def _folders(home: Home) -> list[dict[str, Any]]:
    return [{"path": one, "trouble": model_list.trouble(Path(one))}
            for one in model_list.registered(home)]  # fmt: skip


@action("models.token", title="Token of the hub")
def token(
    home: Home,
    token: Annotated[
        str, field("Token with read access; - asks for it unseen, or reads a pipe.", of="secret")
    ] = "",
    off: Annotated[bool, field("Forget the stored token.")] = False,
) -> dict[str, Any]:
    """Store the hub's token where the hub's library keeps it, or say whose it is."""
    return hub_models.use_token(token.strip(), forget=off)


@action("offline")
def go_offline(
    home: Home,
    on: Annotated[bool, field("Ask the hub for nothing.")] = False,
    off: Annotated[bool, field("Use the hub again.")] = False,
) -> dict[str, Any]:
    """Show if this studio uses the hub, or switch it."""
    if on and off:
        raise InputError("Go offline or online, not both.")
    if on or off:
        offline.switch(home, on)
    address = hub_models.endpoint()
    cache = str(hub_models.cache_folder())
    return {"offline": offline.is_offline(home), "endpoint": address, "cache": cache}


def download_for(store: JobStore, model: ModelSource) -> Job | None:
    """Return the job that downloads a run's base model, queued if need be; None if it is here.

    Its `repo` is the model's name in the cache, where the hub has renamed it.

    Raises:
        StudioError: The hub does not have it, or it cannot be trained here.
    """
    if origin_of(model.path, model.revision).kind != "hub":
        return None
    request = DownloadRequest(repo=model.path, revision=model.revision).checked(store.home)
    for job in store.list(OPEN):
        if job.kind == request.kind:
            other = DownloadRequest.parse(job.spec)
            if (other.repo, other.revision) == (request.repo, request.revision):
                return job
    return submit(store, request)


def fit_of(model: model_list.Model, device: hardware.Device) -> dict[str, Any] | None:
    """Return what fits of a listed base model on a device; None where its size is not known."""
    from studio.training.fit_in_memory import fits, has_sizes

    if model.why_not or not model.parameters:
        return None
    found = fits(
        model.config, model.parameters, device, weights_dtype=model.weights_dtype or "BF16"
    )
    ways = {way: [one._asdict() for one in row] for way, row in found.items()}
    return {"ways": ways, "exact": has_sizes(model.config)}


def _remote(found: hub_models.Repository, device: hardware.Device) -> dict[str, Any]:
    row = model_list.Model(
        path=found.id, name=found.id, kind="hub", parameters=found.parameters, config=found.config,
        why_not=found.why_not,
    )  # fmt: skip
    return {
        "id": found.id, "revision": found.revision, "parameters": found.parameters,
        "license": found.license, "gated": found.gated, "downloads": found.downloads,
        "likes": found.likes, "updated": found.updated, "why_not": found.why_not,
        "context": _context(found.config), "fits": fit_of(row, device),
        "here": hub_models.cached(found.id) is not None,
    }  # fmt: skip


def _context(config: dict[str, Any]) -> int:
    value = text_part(config).get("max_position_embeddings")
    return value if isinstance(value, int) else 0


def device_named(name: str) -> hardware.Device:
    """Return the device that an action on models names; without a name the first.

    Raises:
        ModelError: There is none of that name.
    """
    here = hardware.devices()
    for one in here:
        if one.name == name:
            return one
    if name:
        known = ", ".join(one.name for one in here)
        raise ModelError(f'There is no device "{name}" on this machine. Known: {known}.')
    return here[0]


def _last_used(store: JobStore) -> dict[str, float]:
    return {row["model"]: row["used"] for row in store.database.rows(_LAST_USED)}


def _adapters(home: Home) -> dict[str, list[str]]:
    """Return the names of the adapters by the path of their base."""
    found: dict[str, list[str]] = {}
    for one in library.adapters(home):
        found.setdefault(one.base, []).append(one.name)
    return found


_LAST_USED = """
SELECT json_extract(spec, '$.model.path') AS model,
  MAX(COALESCE(finished, started, created)) AS used
FROM jobs WHERE kind = 'train' AND model IS NOT NULL GROUP BY model
"""
