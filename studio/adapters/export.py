"""Export an adapter as PEFT, vLLM, AdapterHub or GGUF files or as a card; push a folder to a hub.

Each export is verified before it appears: the written files are read as strictly as any adapter's,
loaded beside the original on the same base, and must give the same logits. The figures are in
`export.json` and in the model card.

A push compares sizes with what arrived. The token is the one stored by the hub's own library
(`studio models token`, or HF_TOKEN); it is never stored, shown or logged here. Offline, or without
a token, nothing is tried.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

from studio import atomic
from studio.adapters.card_and_modelfile import adapter_card, write_card
from studio.adapters.gguf import export_gguf_adapter
from studio.adapters.library import (
    PASSPORT,
    WEIGHTS,
    StoredAdapter,
    describe,
    refuse_place,
    resolve,
)
from studio.adapters.verify_logits import (
    EXPORT_REPORT,
    Comparison,
    compare,
    logits_of,
    prompt_ids,
    write_report,
)
from studio.errors import AdapterError, InputError, StudioError, Unreached, is_transient
from studio.fields import knob
from studio.home import Home, publishing, slug
from studio.job_request import Request
from studio.methods import is_low_rank, methods
from studio.methods.method_of_config import CONFIG, read_json, read_method
from studio.spec import ModelSource
from studio.training.training_events import Event, Finished, Loading

if TYPE_CHECKING:
    from studio.backbone import Backbone
    from studio.backbone.composition import Adapter as Loaded


Format = Literal["peft", "vllm", "adapterhub", "gguf-adapter", "card"]
FORMATS: tuple[Format, ...] = get_args(Format)
TOLERANCE = 1e-4  # of the largest logit: the files hold the same float32 numbers
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
SENT = ("*.safetensors", "*.gguf", "*.json", "*.md", "*.model", "*.txt", "*.jinja", "Modelfile")
NOT_SENT = ("MANIFEST.json", "passport.json", "label.json", ".*")


class ExportRequest(Request):
    """Write an adapter to a new folder."""

    kind: ClassVar[str] = "export_adapter"
    adapter: str = knob("", "Name or folder of the adapter.", title="Adapter")
    out: str = knob("", "New folder; in the home's exports by default.", max_length=4000)
    form: Format = knob("peft", "Format of the files, or the model card alone.", title="Format")
    model: str = knob("", "Its base, if the passport does not name it.", advanced=True)

    def checked(self, home: Home) -> Self:
        """Return it with its adapter found and the new folder absolute."""
        folder = resolve(home, self.adapter)
        refuse_form(describe(folder), self.form)
        usual = home.path / "exports" / slug(f"{describe(folder).name} {self.form}")
        out = Path(self.out).expanduser().absolute() if self.out.strip() else usual
        refuse_place(out)
        return self.model_copy(update={"adapter": str(folder), "out": str(out)})

    def perform(self, home: Home, *_: Any) -> Iterator[Event]:
        """Write it, and compare it with the original."""
        yield Loading(text="Writing the adapter")
        out = export_adapter(home, self.adapter, Path(self.out), form=self.form, model=self.model)
        yield Finished(adapter=str(out))

    def outcome(self, home: Home, run_dir: Path, result: dict[str, Any]) -> dict[str, Any]:
        """Return the folder and the comparison with the original."""
        check = atomic.read_object(Path(self.out) / EXPORT_REPORT) or None
        return {"out": self.out, "check": check}


def export_adapter(
    home: Home, name: str, out: Path, *, form: Format = "peft", model: str = ""
) -> Path:
    """Write an adapter to a folder of its own.

    Raises:
        InputError: The folder exists.
        AdapterError: The format does not support the method, or the written files differ.
    """
    folder = resolve(home, name)
    refuse_place(out)
    adapter = describe(folder)
    refuse_form(adapter, form)
    if form == "card":
        with publishing(out) as temporary:
            write_card(temporary, adapter_card(adapter, form=form))
        return out
    from studio.backbone import adapter_files
    from studio.data.template.choose_template import keep_template

    base = model or adapter.base
    try:
        beside = _Beside.load(base, adapter)
    except StudioError:
        if form != "peft" or not _is_peft(folder):
            raise
        beside = None  # files are copied without the base; they are checked less
    found = None
    with publishing(out) as temporary:
        if beside and adapter.chat_template != "auto":
            keep_template(beside.tokenizer, adapter.chat_template)
            if form != "gguf-adapter":
                template = beside.tokenizer.chat_template
                (temporary / "chat_template.jinja").write_text(template, encoding="utf-8")
        rank, notes = _write(adapter, beside, temporary, form=form, base=base)
        if form == "gguf-adapter":
            measured = "Read back: its changes of the weights equal the adapter's."
            report = {"form": form, "max_error": 0.0, "note": measured, "notes": notes}
        elif beside:
            found, moved = beside.compare(temporary)
            report = {"form": form, **asdict(found), "moved": moved, "note": ""}
            measured = (
                f"Loaded on its base beside the original: {found.summary()}. "
                f"The adapter moves logits by up to {moved:.3g}."
            )
        else:
            read_method(read_json(temporary / CONFIG))
            adapter_files.read_tensors(temporary, adapter_files.WEIGHTS)
            measured = "Its base is not here: the files were read, not run."
            report = {"form": form, "max_error": None, "note": measured}
        write_report(temporary, EXPORT_REPORT, report)
        measured = " ".join([measured, *notes])
        write_card(temporary, adapter_card(adapter, form=form, measured=measured, rank=rank))
        if found:
            found.require("exported adapter", "original")
    return out


def refuse_form(adapter: StoredAdapter, form: Format) -> None:
    """Refuse a method that a format does not support, judged by its name alone.

    Raises:
        AdapterError: Gives the reason and an alternative.
    """
    if adapter.is_model and form != "card":
        raise AdapterError(
            f'"{adapter.name}" is a whole model, not an adapter: export it as GGUF, or use its '
            "folder directly."
        )
    servers = {"vllm": "vLLM serves", "gguf-adapter": "A GGUF adapter holds"}
    if form in servers and not is_low_rank(adapter.method):
        raise AdapterError(
            f'{servers[form]} LoRA only, and "{adapter.name}" is {adapter.method}: merge it into a '
            "model instead."
        )
    method = methods().get(adapter.method)
    if form == "adapterhub" and method and not method.adapterhub:
        raise AdapterError(
            f"{method.title} cannot be written in AdapterHub's format; export it as PEFT."
        )


def suitable_formats(adapter: StoredAdapter) -> list[Format]:
    """Return the formats that can hold an adapter, judged by its method."""
    found = list[Format]()
    for form in FORMATS:
        with suppress(AdapterError):
            refuse_form(adapter, form)
            found.append(form)
    return found


def _is_peft(folder: Path) -> bool:
    """Return True if the files are PEFT's already: a copy of them is the export."""
    return (folder / WEIGHTS[0]).is_file()


@dataclass(frozen=True, slots=True)
class _Beside:
    """The original adapter on its base."""

    backbone: Backbone
    original: Loaded
    tokenizer: Any
    folder: Path

    @classmethod
    def load(cls, base: str, adapter: StoredAdapter) -> Self:
        from studio.backbone import Backbone
        from studio.models.loading import load

        if not base:
            raise AdapterError(f'The base of "{adapter.name}" is unknown: give it.')
        revision = adapter.base_revision if base == adapter.base else ""
        loaded = load(ModelSource(path=base, revision=revision), "cpu")
        backbone = Backbone(loaded.model)
        original = backbone.load("original", adapter.path)
        return cls(backbone, original, loaded.tokenizer, loaded.facts.path)

    def compare(self, out: Path) -> tuple[Comparison, float]:
        """Compare the written files with the original; also return how far it moves logits."""
        self.backbone.load("copy", out)
        ids = prompt_ids(self.backbone.model, self.tokenizer)
        found = []
        for stack in ((), [("original", 1.0)], [("copy", 1.0)]):
            self.backbone.use(stack)
            found.append(logits_of(self.backbone.model, ids))
        base, before, after = found
        return compare(after, before, tolerance=TOLERANCE), float((before - base).abs().max())


def _write(
    adapter: StoredAdapter, beside: _Beside | None, out: Path, *, form: Format, base: str
) -> tuple[int, list[str]]:
    """Write the files of a format; return the rank that a server must allow, and notes."""
    from studio.backbone import adapter_files

    if form == "peft" and _is_peft(adapter.path):
        for file in (CONFIG, WEIGHTS[0], PASSPORT):
            if (adapter.path / file).is_file():
                shutil.copyfile(adapter.path / file, out / file)
        return 0, []
    assert beside is not None
    if form == "gguf-adapter":
        return 0, export_gguf_adapter(
            beside.original, beside.folder, out, name=adapter.name, tokenizer=beside.tokenizer
        )
    if form == "adapterhub":
        anatomy = beside.backbone.anatomy
        adapter_files.write_adapterhub(beside.original, out, anatomy, name=slug(adapter.name))
        return 0, []
    adapter_files.write(beside.original, out, beside.backbone.anatomy, base=base)
    return (_fit_vllm(adapter, beside.original, out) if form == "vllm" else 0), []


def _fit_vllm(adapter: StoredAdapter, original: Loaded, out: Path) -> int:
    """Adapt the config to vLLM, or refuse; return the smallest rank limit that admits it."""
    config = json.loads((out / CONFIG).read_text(encoding="utf-8"))
    outside = sorted({site.key for site in original.sites if site.layer < 0})
    inside = sorted({*original.beside} - {*outside})
    largest = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    limit = next((rank for rank in VLLM_RANKS if rank >= largest), 0)
    why = (
        "DoRA" if config.get("use_dora")
        else f"LoRA outside the layers ({', '.join(outside)})" if outside
        else f"modules trained in full ({', '.join(inside)})" if inside
        else "biases of LoRA (lora_bias)" if config.get("lora_bias")
        else f"rank {largest}, only up to {VLLM_RANKS[-1]}" if not limit
        else ""
    )  # fmt: skip
    if why:
        raise AdapterError(f'vLLM cannot serve {why}: merge "{adapter.name}" instead.')
    # vLLM matches modules by their last names.
    names = sorted({site.key.rpartition(".")[2] for site in original.sites})
    config |= {"target_modules": names, "bias": "none", "modules_to_save": None}
    (out / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    return limit


class PushRequest(Request):
    """Upload an exported folder to the hub, with the token stored by the hub's own library."""

    kind: ClassVar[str] = "push"
    folder: str = knob("", "Folder written by an export or merge.", max_length=4000)
    repo: str = knob("", "OWNER/NAME on the hub.", title="Repository", max_length=200)
    private: bool = knob(True, "Only you can see it.", title="Private")

    def checked(self, home: Home) -> Self:
        """Return it with its folder absolute; a token must be there."""
        folder = Path(self.folder).expanduser().absolute()
        if not self.folder.strip() or not files_of(folder):
            raise InputError(
                f"{folder} has nothing to upload: export the adapter, then push the new folder."
            )
        if not REPO.fullmatch(self.repo.strip()):
            raise InputError(f'Invalid repository "{self.repo}": write OWNER/NAME.')
        token()
        return self.model_copy(update={"folder": str(folder), "repo": self.repo.strip()})

    def perform(self, home: Home, *_: Any) -> Iterator[Event]:
        """Create the repository, upload, and compare the sizes of what is there."""
        yield Loading(text=f"Uploading to {self.repo}")
        address = push(Path(self.folder), self.repo, private=self.private)
        yield Finished(adapter=self.folder, facts={"address": address})

    def outcome(self, home: Home, run_dir: Path, result: dict[str, Any]) -> dict[str, Any]:
        """Return the address of the repository."""
        return {"address": result.get("address")}


def token() -> str:
    """Return the hub's token with which an export is pushed.

    Raises:
        InputError: The studio is offline, or there is no token.
    """
    from huggingface_hub import constants, get_token

    if constants.is_offline_mode():
        raise InputError(
            "The hub cannot be reached: this studio is offline. `studio offline --off` or the "
            "System page lets it use the hub again, unless HF_HUB_OFFLINE is set outside."
        )
    if found := get_token():
        return found
    raise InputError("The hub has no token: enter one with `studio models token --token -`.")


def files_of(folder: Path) -> dict[str, int]:
    """Return the files of a folder that would be uploaded, with sizes in bytes."""
    found = {file for pattern in SENT for file in folder.glob(pattern) if file.is_file()}
    left = {file for pattern in NOT_SENT for file in folder.glob(pattern)}
    return {file.name: file.stat().st_size for file in sorted(found - left)}


def push(folder: Path, repo: str, *, private: bool = True) -> str:
    """Upload a folder's files and return the repository's address.

    Raises:
        InputError: The hub refuses, or a file is incomplete there.
        Unreached: The hub cannot be reached or is overloaded.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    wanted = files_of(folder)
    api = HfApi(token=token())
    try:
        address = str(api.create_repo(repo, private=private, exist_ok=True))
        api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=list(wanted),
            commit_message="Upload from Adapter Studio",
        )  # fmt: skip
        infos = api.get_paths_info(repo, list(wanted))
        there = {one.path: getattr(one, "size", None) for one in infos}
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        kind = Unreached if is_transient(error) or not status else InputError
        raise kind(_refused(repo, status)) from None
    except Exception as error:
        if not is_transient(error):
            raise
        raise Unreached(
            "The hub cannot be reached: check the network, then push again. The folder "
            "is unchanged."
        ) from None
    lost = [name for name, size in wanted.items() if there.get(name) != size]
    if lost:
        raise InputError(
            f"{', '.join(lost)} did not arrive completely in {repo}: push again to resume."
        )
    return address


def _refused(repo: str, status: int) -> str:
    why = {
        401: "the token is no longer valid: `studio models token --token -` takes another",
        403: f"the token cannot write to {repo}: create one with write access",
        404: f"this token cannot write to the owner {repo.partition('/')[0]}",
        413: "a file is too large",
    }
    reason = why.get(status, f"status {status}" if status else "no answer")
    return f"The hub refused the upload: {reason}. The folder is unchanged."
