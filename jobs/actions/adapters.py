"""Actions on adapters: merge, mix, import, export, push, measure; rename, tag, delete, restore."""

from pathlib import Path
from typing import Annotated, Any, Literal

from jobs import job_table, results_table
from jobs.actions.registry import action, field, request_action
from jobs.compare_tables import Votes
from jobs.job_inputs import refuse_needed
from jobs.job_queue import JobStore
from jobs.job_record import loss_of
from jobs.run_curves import best_losses
from studio.adapter_stack import Stack, StackItem, write_lane
from studio.adapters import library
from studio.adapters.export import ExportRequest, PushRequest
from studio.adapters.gguf import GgufRequest
from studio.adapters.gguf_write import PRECISION_LABELS
from studio.adapters.import_adapter import ImportAdapterRequest
from studio.adapters.library import StoredAdapter, describe, resolve
from studio.adapters.merge import BASE, STACK, MergeRequest
from studio.adapters.mix_adapters import MixRequest
from studio.adapters.weight_changes import PictureRequest, drawn
from studio.errors import AdapterError, InputError, ModelError
from studio.evaluation.evaluate_on_dataset import EvaluateRequest
from studio.evaluation.promote_checkpoint import PromoteRequest
from studio.evaluation.ranking_and_intervals import win_rate
from studio.evaluation.standard_tasks import TasksRequest
from studio.fields import merge_values, parse_assignment
from studio.home import Home
from studio.job_request import Request
from studio.methods import capabilities, is_low_rank, methods
from studio.models.find_model import linear_modules, targets
from studio.models.find_model import origin_of as locate_model
from studio.spec import DataSource, ModelSource, RunSpec
from studio.trash import Deleted
from studio.trash import find as find_deleted

AdapterName = Annotated[
    str,
    field(
        "Name, run number or id of the adapter.", title="Adapter", positional=True,
        metavar="ADAPTER", of="adapter",
    ),
]  # fmt: skip
FORMATS = {
    "peft": "PEFT adapter: PeftModel.from_pretrained, transformers and most tools",
    "vllm": "vLLM LoRA folder: vllm serve --enable-lora",
    "adapterhub": "AdapterHub adapter: the adapters library",
    "gguf": "GGUF with an Ollama Modelfile: Ollama, llama.cpp, LM Studio",
    "gguf-adapter": "GGUF adapter: llama.cpp --lora, Ollama ADAPTER, beside the base's GGUF file",
    "card": "Model card alone",
}
STARTER, OWN_BASE, DEMO = ModelSource(), ModelSource(path=""), DataSource()
NONE: Any = ()

request_action("merge", MergeRequest)
request_action("mix", MixRequest)
request_action("promote", PromoteRequest)
request_action("gguf", GgufRequest, title="Export to GGUF")
request_action("adapters.picture", PictureRequest, title="Measure changes")


@action("import", title="Import adapter", follow=True)
def import_adapter(
    source: Annotated[
        str, field("Folder or hub id.", positional=True, metavar="DIR", max_length=4000)
    ],
    name: Annotated[
        str, field("Name in the library; the folder's name by default.", max_length=120)
    ] = "",
    model: Annotated[
        ModelSource, field("Base model to check the adapter against.", **BASE)
    ] = OWN_BASE,
) -> Request:
    """Copy a PEFT or AdapterHub adapter into the library."""
    return ImportAdapterRequest(source=source, adapter=name, model=model if model.path else None)


@action("export", title="Export adapter", follow=True)
def export_adapter(
    home: Home,
    name: Annotated[
        str,
        field(
            "Name or folder of the adapter; for gguf also a model folder.", positional=True,
            title="Adapter", of="adapter",
        ),
    ],
    out: Annotated[
        str,
        field("New folder; in the home's exports by default.", title="Folder", max_length=4000),
    ] = "",
    form: Annotated[
        Literal["peft", "vllm", "adapterhub", "card", "gguf", "gguf-adapter"],
        field(
            "File format; card writes the model card only.", title="Format", flag="--format",
            labels=FORMATS,
        ),
    ] = "peft",
    precision: Annotated[
        Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q4_0"],
        field(
            "Precision of a gguf file.", advanced=True, labels=PRECISION_LABELS,
            when={"form": ("gguf",)},
        ),
    ] = "f16",
    model: Annotated[
        str, field("Base model, if the passport does not name it.", of="model", advanced=True)
    ] = "",
) -> Request:  # fmt: skip
    """Write an adapter to a new folder; gguf merges it into its base model first."""
    if form != "gguf":
        return ExportRequest(adapter=name, out=out, form=form, model=model)
    item = StackItem.read(name)
    stack: tuple[StackItem, ...] = (item,)
    base = model
    if Path(name).expanduser().joinpath("config.json").is_file() or name == "starter":
        stack, base = (), name
    else:
        found = describe(resolve(home, item.name))
        if found.is_model:
            stack, base = (), str(found.path)
    source = ModelSource(path=base)
    return GgufRequest(model=source, stack=stack, precision=precision, out=out)


@action("push", title="Upload to a hub", follow=True)
def push(
    folder: Annotated[
        str, field("Folder written by an export or merge.", positional=True, metavar="DIR")
    ],
    repo: Annotated[
        str,
        field("Repository on the hub.", title="Repository", positional=True, metavar="OWNER/NAME"),
    ],
    public: Annotated[
        bool, field("Make the repository public.", flag="--public/--no-public")
    ] = False,
) -> Request:
    """Upload an exported folder to the hub, with the token stored by the hub's own library."""
    return PushRequest(folder=folder, repo=repo, private=not public)


@action("evaluate", follow=True)
def evaluate(
    home: Home,
    stack: Annotated[
        Stack, field("Adapters in stack order; none measures the base.", **STACK)
    ] = NONE,
    model: Annotated[
        ModelSource, field("Base model; the one of the first adapter by default.", **BASE)
    ] = OWN_BASE,
    data: Annotated[
        DataSource, field("File, folder, hub id, or starter:<name>.", of="dataset")
    ] = DEMO,
    tasks: Annotated[
        tuple[str, ...],
        field(
            "Standard tasks instead of data: names known to lm-eval, whose rows are downloaded "
            "from the hub, or own task files (YAML).",
            title="Standard tasks",
            metavar="TASK[,TASK]|FILE|DIR",
        ),
    ] = NONE,
    each: Annotated[
        bool,
        field("Tasks: measure the base and each adapter alone, in one pass.", title="Each alone"),
    ] = False,
    limit: Annotated[int, field("Tasks: documents of each; 0 uses all.", ge=0, advanced=True)] = 0,
    num_fewshot: Annotated[
        int,
        field("Tasks: examples in each prompt; -1 uses the task's own.", ge=-1, advanced=True),
    ] = -1,
    chat: Annotated[
        bool, field("Tasks: write prompts with the base's chat template.", advanced=True)
    ] = False,
    set: Annotated[
        tuple[str, ...],
        field("Further fields, as in max_rows=100.", metavar="FIELD=VALUE", advanced=True),
    ] = NONE,
    score: Annotated[
        tuple[str, ...], field("Score of answers: exact_match, rouge_l, regex, json.")
    ] = NONE,
    pattern: Annotated[str, field("Regular expression of the score regex.", max_length=2000)] = "",
    classify: Annotated[
        bool,
        field(
            "Score the data's labels by likelihood: accuracy, macro F1, calibration.",
            title="Classify",
        ),
    ] = False,
    forgetting: Annotated[
        bool, field("Compare with the base on general texts.", title="Forgetting")
    ] = False,
    min: Annotated[
        tuple[str, ...],
        field(
            "Fail if a figure is below this, as in accuracy=0.8 or arc_easy:acc=0.5.",
            metavar="FIGURE=NUMBER",
            advanced=True,
        ),
    ] = NONE,
    max: Annotated[
        tuple[str, ...],
        field(
            "Fail if a figure is above this, as in forgetting=0.05.",
            metavar="FIGURE=NUMBER",
            advanced=True,
        ),
    ] = NONE,
    name: Annotated[str, field("Name of the evaluation.", max_length=120)] = "",
) -> Request:
    """Measure a stack on a dataset (loss, scores, labels, forgetting) or on standard tasks."""
    of_data = {
        "score": score, "pattern": pattern, "classify": classify, "forgetting": forgetting,
        "data": data != DEMO,
    }  # fmt: skip
    of_tasks = {"each": each, "limit": limit, "num_fewshot": num_fewshot != -1, "chat": chat}
    for option in (one for one, value in (of_data if tasks else of_tasks).items() if value):
        if tasks:
            raise InputError(f'"{option}" has no effect on standard tasks.')
        raise InputError(f'"{option}" has an effect only with standard tasks.')
    own: dict[str, Any] = {
        "scores": score, "pattern": pattern, "classify": classify, "forgetting": forgetting,
        "data": data.model_dump(),
    }  # fmt: skip
    if tasks:
        own = {"tasks": tasks, "each": each, "limit": limit, "num_fewshot": num_fewshot,
               "chat": chat}  # fmt: skip
    values: dict[str, Any] = {
        "name": name, "stack": stack, "min": min, "max": max, "model": model.model_dump(), **own,
    }  # fmt: skip
    values = merge_values(values, dict(map(parse_assignment, set)))
    if not values["model"]["path"]:
        found = describe(resolve(home, stack[0].name)) if stack else None
        if found and found.base:
            values["model"] |= {"path": found.base, "revision": found.base_revision}
        else:
            values["model"]["path"] = RunSpec().model.path
    if tasks:
        return TasksRequest.parse(values)
    if isinstance(values["scores"], str):
        values["scores"] = [values["scores"]]
    return EvaluateRequest.parse(values)


# -- the library -----------------------------------------------------------------------------------


@action("adapters.rename")
def rename(
    store: JobStore,
    adapter: AdapterName,
    name: Annotated[str, field("New name.", positional=True, metavar="NAME", max_length=1000)],
) -> dict[str, Any]:
    """Rename an adapter, and the run or job that made it."""
    found = library.find(store.home, adapter)
    if found.source == "library":  # its folder moves
        refuse_needed(store, found.path, found.name)
    names = (found.name, found.passport.get("name"))
    maker = next((job["id"] for job in _made(store, found) if job["name"] in names), None)
    with store.database.writing() as db:
        holder = job_table.name_holder(db, " ".join(name.split()))
        if maker and holder not in (None, maker):
            raise AdapterError(f'Run {holder} is called "{name.strip()}": choose another name.')
        renamed = library.rename(store.home, adapter, name)
        if maker:
            job_table.rename(db, maker, renamed.name)
        db.conn.execute(_MOVE, (str(renamed.path), str(found.path)))
    return card(renamed, best_losses(store.database))


@action("adapters.tag")
def tag(
    store: JobStore,
    adapter: AdapterName,
    tags: Annotated[
        tuple[str, ...],
        field("All tags of the adapter.", positional=True, metavar="[TAG]...", max_length=100),
    ] = (),
) -> dict[str, Any]:
    """Replace an adapter's tags; omit to clear."""
    return card(library.set_tags(store.home, adapter, tags), best_losses(store.database))


@action("adapters.delete")
def delete(store: JobStore, adapter: AdapterName) -> dict[str, Any]:
    """Move an adapter to the trash, where it stays for 30 days."""
    found = library.find(store.home, adapter)
    refuse_needed(store, found.path, found.name)
    gone = library.delete(store.home, adapter)
    for job in _made(store, found):
        store.database.change(_DELETED, (gone.token, job["id"]))
    return {"deleted": gone.name, "name": gone.name, "token": gone.token}


@action("adapters.undo")
def undo(
    store: JobStore,
    adapter: Annotated[
        str,
        field("Deleted adapter; the last one by default.", positional=True, metavar="[ADAPTER]"),
    ] = "",
) -> dict[str, Any]:
    """Restore a deleted adapter."""
    one = find_deleted(library.deleted(store.home), adapter, error=AdapterError)
    restored = library.restore(store.home, one.token)
    store.database.change(_RESTORED, {"token": one.token, "path": str(restored.path)})
    return card(restored, best_losses(store.database))


@action("adapters.trash")
def trash(home: Home) -> list[dict[str, Any]]:
    """List the deleted adapters that can be restored."""
    return [trashed(one) for one in library.deleted(home)]


@action("adapters.show")
def show(store: JobStore, adapter: AdapterName) -> dict[str, Any]:
    """Show an adapter's passport."""
    found = library.find(store.home, adapter)
    facts = card(found, best_losses(store.database))
    lanes = lanes_of(found)
    rate = win_rate(Votes(store.database).matches(blind_only=True), *reversed(lanes))
    return facts | {
        "passport": found.passport, "picture": drawn(found.path),
        "children": library.children(store.home, found),
        "blind_test": {"lanes": lanes, **rate},
    }  # fmt: skip


@action("adapters")
def listed(home: Home) -> list[dict[str, Any]]:
    """List the adapters: trained here, imported, mixed."""
    found = library.adapters(home)
    return [_plain(one) | {"source": one.source, "created": one.created} for one in found]


@action("results")
def results(
    store: JobStore,
    form: Annotated[
        Literal["json", "csv", "markdown"], field("Write the table as text.", flag="--format")
    ] = "json",
) -> dict[str, Any]:
    """List adapters and bases with every figure measured: losses, forgetting, scores, votes."""
    found = results_table.table(store)
    return found if form == "json" else {"text": results_table.written(found, form)}


@action("modules")
def modules(
    model: Annotated[ModelSource, field("Folder, hub id, or starter.", **BASE)] = STARTER,
    chosen: Annotated[tuple[str, ...], field("Keys of the layers to target.", flag="-")] = NONE,
    local: Annotated[bool, field("Refuse a model that is not downloaded.", flag="-")] = False,
) -> Any:
    """List a model's linear layers by name: the values of `method.target_modules`."""
    if local and locate_model(model.path).kind == "hub":
        raise ModelError(
            f'"{model.path}" is not a folder here: its modules are known once it is downloaded.'
        )
    found = linear_modules(model)
    if not found:
        raise ModelError(f"{model.path} names no linear layers in the way that decoders do.")
    if chosen:
        return {"targets": targets(chosen, found)}
    return [
        {"key": one.key, "layer": one.layer, "name": one.name, "shape": one.shape} for one in found
    ]


def card(adapter: StoredAdapter, best: dict[int, float]) -> dict[str, Any]:
    """Return an adapter as actions and pages list it, without opening its weights."""
    from studio.adapters.export import suitable_formats

    known = methods().get(adapter.method)
    run = int(adapter.path.parent.name) if adapter.source == "run" else None
    return _plain(adapter) | {
        "run": run, "method_title": known.title if known else adapter.method,
        "data": adapter.data_path, "is_model": adapter.is_model,
        "created": results_table.seconds(adapter.created), "parents": list(adapter.parents),
        "loss": loss_of(adapter.section("spec")), "alike": results_table.measured_alike(adapter),
        "best_eval_loss": best.get(run, adapter.eval_loss) if run else adapter.eval_loss,
        "is_low_rank": is_low_rank(adapter.method),
        "mergeable": known is not None and capabilities(adapter.method)["mergeable"],
        "formats": [*suitable_formats(adapter), "gguf"],
    }  # fmt: skip


def _plain(adapter: StoredAdapter) -> dict[str, Any]:
    own = {key: getattr(adapter, key) for key in _SHOWN}
    return own | {"path": str(adapter.path), "tags": list(adapter.tags)}


_SHOWN = (
    "id", "name", "method", "base", "size_bytes", "ended", "steps", "first_loss", "last_loss",
    "eval_loss", "forgetting",
)  # fmt: skip


def lanes_of(adapter: StoredAdapter) -> list[str]:
    """Return the lanes of an adapter's blind test: what it was trained from, and itself."""
    model = adapter.base or "starter"
    if adapter.is_model:
        return [model, str(adapter.path)]
    parent = [str(one["name"]) for one in (adapter.passport.get("lineage") or [])[-1:]]
    stacks = (parent, [adapter.name])  # chat completes them by what is below
    return [write_lane(model, [StackItem(name=name) for name in stack]) for stack in stacks]


def trashed(one: Deleted) -> dict[str, Any]:
    """Return a deleted adapter or dataset as the actions that list the trash show it."""
    return {"token": one.token, "name": one.name, "deleted": one.deleted}


def _made(store: JobStore, adapter: StoredAdapter) -> list[dict[str, Any]]:
    """Return the number and name of each job whose outcome is an adapter."""
    run = adapter.path.parent.name if adapter.source == "run" else None
    return store.database.rows(_MADE, (run, str(adapter.path)))


_MADE = "SELECT id, name FROM jobs WHERE id = ? OR json_extract(result, '$.adapter') = ?"
_MOVE = """
UPDATE jobs SET result = json_set(result, '$.adapter', ?)
WHERE json_extract(result, '$.adapter') = ?
"""
_DELETED = """
UPDATE jobs SET result = json_set(result, '$.adapter', NULL, '$.adapter_deleted', ?) WHERE id = ?
"""
_RESTORED = """
UPDATE jobs SET result = json_set(json_remove(result, '$.adapter_deleted'), '$.adapter', :path)
WHERE json_extract(result, '$.adapter_deleted') = :token
"""
