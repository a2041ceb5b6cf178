"""Actions of the first hour: the first start, and the guided start from a goal to settings."""

import base64
from typing import Annotated, Any, Literal

from jobs import doctor, queue_settings
from jobs.actions.models import device_named, fit_of
from jobs.actions.registry import action, field, write_file
from jobs.job_queue import JobStore
from studio import goals, hardware, offline
from studio.data.find_dataset import missing, origin_of
from studio.data.import_dataset import check_file
from studio.data.snapshots import open_snapshot
from studio.errors import DataError, StudioError
from studio.fields import Record, parameter
from studio.home import Home
from studio.methods import methods
from studio.models import hub_models, model_list
from studio.spec import DataSource
from studio.train_args import TrainArgs

GoalName = Annotated[
    Literal["voice", "answers", "classify", "prefer", "texts"],
    field("What you want.", labels={one.name: one.title for one in goals.GOALS}),
]
CHECKED_BYTES = 20 << 20
CPU_PARAMETERS = 1_500_000_000  # the largest that is suggested without a GPU
TOY_PARAMETERS = 50_000_000
SUGGESTED = 4
GLOSSARY = {
    "adapter": (
        "Adapter",
        "Small weights trained beside a model that stays as it is, such as "
        "LoRA. Base: the model without it.",
    ),
    "lane": ("Lane", "One column of Compare: a model with its adapters, answering each prompt."),
    "token": (
        "Token",
        "The piece of text that a model reads and writes: a word or a part of one. "
        "512, 2k and 8k on Models are tokens per row.",
    ),
    "loss": (
        "Loss",
        "Mean surprise per wanted token, in nats (natural logarithm): a wanted token "
        "has a typical chance of exp(-loss): 0.1 is 90 %, 1 is 37 % and 3 is 5 %.",
    ),
    "held_out": (
        "Held-out loss",
        "The loss on rows that are not trained on: it shows what was "
        "learned rather than memorised. Fewer than 8 rows are no evidence.",
    ),
    "carry": ("Carry loss", "The share of tokens that is trained on; questions usually are not."),
    "step": (
        "Epoch, step",
        "An epoch passes over all rows once; a step is one update of the weights, from a few rows.",
    ),
    "kl": (
        "Forgetting (KL)",
        "How far answers to general prompts are from those of the base: the KL divergence in nats "
        "per token. 0 is the base itself; above 1 it hardly answers like the base.",
    ),
    "template": (
        "Chat template",
        "How a conversation is written as text for a model. Without one, "
        "a usual template is taken, or plain text continued.",
    ),
    "format": (
        "Prompt completion",
        "Rows with a prompt and the answer to it; other formats are "
        "messages, question and answer, text, preferences.",
    ),
    "checkpoint": ("Checkpoint", "The state of a run at a step, to go on from or to compare."),
    "gated": ("Gated", "A model whose owner asks you to accept a licence on its page first."),
}
"""Words of the pages and what they mean."""


@action("welcome", title="First start")
def welcome(
    store: JobStore,
    done: Annotated[bool, field("Do not show the first start again.")] = False,
) -> dict[str, Any]:
    """Show device, memory and free disk, what the doctor found, and where to begin."""
    if done:
        queue_settings.write(store, "welcomed", True)
    facts = doctor.examine(store.home.path)
    findings = [one for one in facts["findings"] if one["kind"] != "detail"]
    best = hardware.devices()[0]
    return {
        "first": is_first_start(store),
        "ok": facts["ok"], "findings": findings,
        "device": {"name": best.name, "label": best.label, "total_bytes": best.total_bytes,
                   "free_bytes": best.free_bytes},
        "disk_bytes": facts["home"] and facts["home"]["free_bytes"],
        "glossary": [{"term": term, "means": means} for term, means in GLOSSARY.values()],
    }  # fmt: skip


def is_first_start(store: JobStore) -> bool:
    """Return True until the guide of the first start was put away or a job was asked for."""
    return not queue_settings.read(store, "welcomed") and not store.list(limit=1)


@action("guide", title="Guided start")
def guide(
    store: JobStore,
    goal: GoalName = "voice",
    data: Annotated[str, field("File, folder, hub id, or starter:<name>.", of="dataset")] = "",
    model: Annotated[str, field("Folder, hub id, or starter.", of="model")] = "",
    device: Annotated[str, field("Device of the estimates; the first one by default.")] = "",
) -> dict[str, Any]:
    """Lead from a goal to data, a model that fits and settings with their reasons."""
    chosen, machine = goals.goal(goal), device_named(device)
    far = "" if offline.is_offline(store.home) else "listed"
    if far and hub_models.is_reachable():
        far = "offered"
    models = _models(store.home, chosen, machine, far)
    rows, checked = _checked(store.home, chosen, data)
    path = model or next((one["path"] for one in models if one["suggested"]), "starter")
    method = next((one["method"] for one in models if one["path"] == path), "lora")
    found = goals.settings(chosen, rows, method)
    given = {"model.path": path} | ({"data.path": data} if data else {})
    return {
        "goals": [{"name": o.name, "title": o.title, "about": o.about} for o in goals.GOALS],
        "goal": {"name": goal, "needs": chosen.needs, "rows": chosen.rows,
                 "columns": list(chosen.examples[0]), "examples": chosen.examples},
        "data": checked, "models": models, "model": path, "note": _HUB[far],
        "settings": [
            {"field": name, "value": value, "reason": reason} | _words(name, value, method)
            for name, (value, reason) in found.items()
        ],
        "set": [f"{name}={value}" for name, value in given.items()]
        + [f"{name}={str(value).lower() if isinstance(value, bool) else value}"
           for name, (value, _) in found.items()],
    }  # fmt: skip


@action("guide.template", title="Template file")
def template(
    home: Home,
    goal: GoalName = "voice",
    format: Annotated[goals.TemplateFormat, field("Format of the file.")] = "xlsx",
    out: Annotated[str, field("File to write.", of="file", max_length=4000)] = "",
) -> dict[str, Any]:
    """Make a data file to fill in, with the columns of a goal and example rows."""
    name, content = f"{goal}.{format}", goals.template(goals.goal(goal), format)
    if out:
        return {"name": name, "file": write_file(out, content)}
    return {"name": name, "base64": base64.b64encode(content).decode()}


def _words(path: str, value: Any, method: str) -> dict[str, str]:
    """Return title and value of a setting as the form shows them."""
    if path == "method.name":
        return {"title": "Method", "shown": methods()[str(value)].title}
    part, _, name = path.partition(".")
    records: dict[str, type[Record]] = {
        "data": DataSource, "train": TrainArgs, "method": methods()[method]
    }  # fmt: skip
    record = records[part]
    one = parameter(path, record.model_fields[name])
    shown = dict(one.labels).get(str(value), "on" if value is True else str(value))
    return {"title": one.title, "shown": shown}


def _checked(home: Home, chosen: goals.Goal, data: str) -> tuple[int, dict[str, Any]]:
    """Return the number of rows of a dataset, and whether it leads to the goal."""
    if not data:
        return 0, {"ok": None, "text": ""}
    try:
        kind, path = origin_of(data, home)
        if kind == "dataset":
            meta = open_snapshot(home, data).meta
            rows, found = meta.findings.rows.kept, str(meta.mapping.format)
        elif kind in ("file", "embedded") and path.stat().st_size <= CHECKED_BYTES:
            report = check_file(path)
            if report.error:
                raise DataError(report.error.text)
            rows, found = report.rows.kept, str(report.format)
        elif kind == "missing":
            raise missing(data, home)
        else:
            return 0, {"ok": None, "text": "Its rows are looked at when the run starts."}
    except StudioError as error:
        return 0, {"ok": False, "text": error.text}
    ok, text = goals.verdict(chosen, rows, found)
    return rows, {"ok": ok, "text": text, "rows": rows, "format": found}


_HUB = {
    "": "This studio is offline: only models on this computer are listed.",
    "listed": "The hub cannot be reached: models on this computer come first.", "offered": "",
}  # fmt: skip


def _models(
    home: Home, chosen: goals.Goal, machine: hardware.Device, far: str
) -> list[dict[str, Any]]:
    """Return the models for a goal that fit, those on this disk first, one of them suggested.

    Those of the hub are left out, listed last, or offered (`far`).
    """
    found: list[dict[str, Any]] = []
    for model in model_list.models(home):
        here = model.kind != "curated"
        if not here and not far:
            continue
        if model.why_not or (chosen.chats and not model.has_chat_template):
            continue
        method = _way(model, machine)
        if method is None:
            continue
        found.append({
            "path": model.path, "name": model.name, "what": model.what, "here": here,
            "method": method, "parameters": model.parameters, "bytes": model.bytes,
            "gated": model.gated, "suggested": False,
        })  # fmt: skip
    largest = CPU_PARAMETERS if machine.name == "cpu" else 10**12
    usable = [one for one in found if TOY_PARAMETERS < one["parameters"] <= largest]
    usable.sort(key=lambda one: (
        not one["here"], one["gated"], one["method"] != "lora", -one["parameters"]
    ))  # fmt: skip
    local = [one for one in found if one["here"] and one not in usable]
    ready = [one for one in usable if one["here"]]
    others = [one for one in usable if not one["here"]][:SUGGESTED]
    listed = ready + others + local if far == "offered" else ready + local + others
    for one in listed[:1]:
        one["suggested"] = one in usable
    return listed


def _way(model: model_list.Model, machine: hardware.Device) -> str | None:
    """Return the method that fits at the shortest of the usual lengths; None if none does."""
    fits = fit_of(model, machine)
    if fits is None:
        return None
    ways = ("lora", "qlora") if hardware.is_card(machine.name) else ("lora",)
    return next((way for way in ways if fits["ways"][way][0]["state"] in ("fits", "tight")), None)
