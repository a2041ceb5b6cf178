"""Merge a stack of adapters into a model of its own, with a certificate that the merge is right.

What can be folded is folded (`backbone/dense_weights.py`), in float32 and then cast; what cannot is
named and stays an adapter. Before the folder appears under its name, a fresh process reloads the
written files and compares logits with the live stack: an error above the tolerance fails the merge.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from studio import atomic
from studio.adapter_stack import Stack
from studio.adapters.adapter_lineage import base_of, of_other_bases, resolve_stack
from studio.adapters.card_and_modelfile import stack_card, write_card
from studio.adapters.library import describe, name_of, refuse_place
from studio.adapters.verify_logits import (
    CERTIFICATE,
    Comparison,
    VerificationError,
    logits_of,
    prompt_ids,
    write_report,
)
from studio.errors import InputError, MethodError
from studio.fields import knob
from studio.home import Home, folder_hash, publishing, slug
from studio.job_request import Request
from studio.models.find_model import facts
from studio.spec import ModelSource
from studio.training.training_events import Event, Finished, Loading

if TYPE_CHECKING:
    from torch import Tensor

    from studio.models.loading import Loaded

VERIFY_SECONDS = 1800
OWN_BASE = "Folder, hub id, or starter; that of the first adapter by default."
BASE: dict[str, Any] = {"title": "Base model", "of": "model"}
STACK: dict[str, Any] = {"title": "Adapters", "flag": "--adapter", "metavar": "NAME[:WEIGHT]"}


class StackRequest(Request):
    """A request about a stack of adapters on its base."""

    stack: Stack = knob((), "Adapters in stack order; repeat for several.", **STACK)
    model: ModelSource = knob(ModelSource(path=""), OWN_BASE, **BASE)

    @property
    def parts(self) -> list[tuple[Path, float]]:
        """Folders and weights of the adapters, once they are found."""
        return [(Path(item.name), item.weight) for item in self.stack]

    def found(self, home: Home) -> Self:
        """Return it with adapters found and its base named.

        Raises:
            StudioError: An adapter or the base does not exist.
        """
        stack = resolve_stack(home, self.stack)
        facts(model := base_of(self.model, stack))
        return self.model_copy(update={"stack": stack, "model": model})

    def require_adapters(self) -> None:
        """Raise unless the stack names an adapter.

        Raises:
            InputError: It is empty.
        """
        if not self.stack:
            raise InputError("Name at least one adapter (--adapter NAME[:WEIGHT]).")


class MergeRequest(StackRequest):
    """Fold adapters into a new model, with a certificate."""

    kind: ClassVar[str] = "merge"
    model: ModelSource = knob(
        ModelSource(path=""), OWN_BASE, inner=("path", "quantization", "dtype"), **BASE
    )
    out: str = knob("", "New folder; in the home's models by default.", advanced=True)
    name: str = knob("", "Name of the merged model.", title="Name", max_length=120)
    device: str = knob("auto", "auto, cpu, cuda:0 …", advanced=True, flag="-")

    def checked(self, home: Home) -> Self:
        """Return it with adapters found and the new folder absolute."""
        self.require_adapters()
        found, out = self.found(home), self.folder(home)
        refuse_place(out)
        return found.model_copy(update={"out": str(out)})

    def folder(self, home: Home) -> Path:
        """Return the folder of the merged model."""
        if self.out:
            return Path(self.out).expanduser().absolute()
        names = "-".join(name_of(Path(item.name)) for item in self.stack)
        return home.models / slug(self.name or f"merged-{names}")

    def perform(self, home: Home, *_: Any) -> Iterator[Event]:
        """Merge, with a certificate."""
        return merge(self.model, self.parts, self.folder(home), device=self.device)

    def outcome(self, home: Home, run_dir: Path, result: dict[str, Any]) -> dict[str, Any]:
        """Return the folder and its certificate."""
        return {"out": self.out, "certificate": read_certificate(Path(self.out))}


def merge(
    source: ModelSource, stack: Sequence[tuple[Path, float]], out: Path, *, device: str = "auto"
) -> Iterator[Event]:
    """Merge adapters into a new model folder; yields what is being done, then `Finished`.

    The new folder appears only when its certificate holds. A base in nf4 or int8 is dequantised and
    merged into 16 or 32 bit.

    Raises:
        MethodError: Nothing in the stack can be folded.
        VerificationError: The reloaded files differ from the live stack.
    """
    from studio.backbone import Backbone
    from studio.backbone.dense_weights import fold
    from studio.data.template.choose_template import keep_template
    from studio.models.loading import load
    from studio.training.allocator_and_threads import trim

    refuse_place(out)
    yield Loading(text="Loading the base")
    loaded = load(source, device)
    backbone = Backbone(loaded.model)
    live = backbone.load_stack((name_of(path), path, weight) for path, weight in stack)
    parts = {name: part for (name, _), part in zip(live, stack, strict=True)}
    yield Loading(text="Computing the reference logits")
    backbone.use(live)
    conversation = keep_template(loaded.tokenizer, trained_template(path for path, _ in stack))
    ids = prompt_ids(loaded.model, loaded.tokenizer, conversation)
    logits = logits_of(loaded.model, ids)
    yield Loading(text="Folding into the weights")
    folded = fold(backbone, live, to_host=True)
    if not folded.merged:
        raise MethodError(
            f"Nothing in this stack can be merged: {', '.join(folded.left)} "
            "cannot be folded into weights. Chat with it as an adapter instead."
        )
    left = [parts[name] for name in folded.left]
    with publishing(out) as temporary:
        yield Loading(text="Writing the merged model")
        precision = write_model(loaded, source, folded.tensors, temporary)
        yield Loading(text="Reloading it in a fresh process")
        is_fp32 = precision == "float32"
        plain, dtype, known = source.quantization == "none", _name(loaded.dtype), loaded.facts
        merged = [name_of(parts[name][0]) for name in folded.merged]
        del loaded, backbone, folded  # the fresh process needs their room
        trim()
        found = _verify(temporary, left, ids, logits, conversation=conversation, fp32=is_fp32)
        certificate = {
            **asdict(found),
            "base_precision": dtype if plain else source.quantization,
            "merged_precision": precision,
            "base_fingerprint": known.fingerprint,
            "merged": merged,
            "left": [str(path) for path, _ in left],
            "notes": of_other_bases((path for path, _ in stack), source.path, known),
        }
        write_report(temporary, CERTIFICATE, certificate)
        write_card(temporary, _card(out.name, source, stack, certificate, found))
        found.require("merged model", "live stack")
    yield Finished(adapter=str(out))


def trained_template(folders: Iterable[Path]) -> str:
    """Return the named template of the first adapter that was trained with one, else `auto`."""
    names = (describe(folder).chat_template for folder in folders)
    return next((name for name in names if name != "auto"), "auto")


def read_certificate(folder: Path) -> dict[str, Any]:
    """Return a merged model's certificate with the hash of its files; empty where it has none."""
    values = atomic.read_object(folder / CERTIFICATE)
    return {**values, "files": folder_hash(folder)} if values else {}


def _card(
    name: str, source: ModelSource, stack: Sequence[tuple[Path, float]],
    certificate: dict[str, Any], found: Comparison,
) -> str:  # fmt: skip
    rows = {
        "Precision": certificate["merged_precision"],
        "Checked": "reloaded in a fresh process and compared with the base and its adapters: "
        + found.summary(),
        "Note": " ".join(certificate["notes"]),
        "Not folded in": ", ".join(name_of(Path(path)) for path in certificate["left"]),
    }
    parts = [(name_of(path), weight) for path, weight in stack]
    return stack_card(name, source.path, parts, rows, library="transformers")


def write_model(
    loaded: Loaded, source: ModelSource, tensors: dict[str, Tensor], folder: Path
) -> str:
    """Write base weights with the folded tensors in their place; returns the precision."""
    from studio.backbone import Anatomy
    from studio.backbone.dense_weights import stored_weight
    from studio.models.loading import load

    model = loaded.model
    changed = dict(tensors)
    if source.quantization != "none":
        anatomy = Anatomy(model)
        sites = [*anatomy.all_linears(), *anatomy.experts()]
        whole = {site.parameter_key: site for site in sites}
        stored = {
            key: stored_weight(site).to("cpu", loaded.dtype)
            for key, site in whole.items() if key not in changed
        }  # fmt: skip
        changed = stored | changed
        plain = source.model_copy(update={"quantization": "none", "dtype": _name(loaded.dtype)})
        model = load(plain, "cpu").model
        for site in Anatomy(model).all_linears():
            key = site.parameter_key
            if site.transposed and not whole[key].transposed:  # quantised as an ordinary linear
                changed[key] = changed[key].mT.contiguous()
    state = model.state_dict()
    for name, tensor in changed.items():
        state[name] = tensor.to(state[name].dtype)
    _untie(model, tensors)
    model.save_pretrained(folder, state_dict=state)
    loaded.tokenizer.save_pretrained(folder)
    return _name(model.dtype)


def _untie(model: Any, changed: dict[str, Tensor]) -> None:
    """Give embeddings and head matrices of their own where they changed differently."""
    own = (model.get_output_embeddings(), model.get_input_embeddings())
    names = [f"{name}.weight" for name, module in model.named_modules() if module in own]
    found = [changed[name] for name in names if name in changed]
    alike = len(found) == len(names) and all(one.equal(found[0]) for one in found)
    if found and not alike and model.config.tie_word_embeddings:
        model.config.tie_word_embeddings = False
        model.config.get_text_config(decoder=True).tie_word_embeddings = False
        model._tied_weights_keys = None


def _verify(
    folder: Path, left: Sequence[tuple[Path, float]], ids: list[list[int]], logits: Tensor, *,
    conversation: list[int], fp32: bool,
) -> Comparison:  # fmt: skip
    """Reload `folder` in a fresh process and compare."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as scratch:
        reference = Path(scratch) / "reference.safetensors"
        plan = {
            "ids": ids, "left": [[str(path), weight] for path, weight in left], "fp32": fp32,
            "conversation": conversation,
        }  # fmt: skip
        save_file({"logits": logits.contiguous()}, reference, {"plan": json.dumps(plan)})
        done = subprocess.run(
            [sys.executable, "-m", "studio.adapters.verify_logits", str(folder), str(reference)],
            capture_output=True, text=True, timeout=VERIFY_SECONDS, check=False,
        )  # fmt: skip
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise VerificationError(
            "The written model could not be reloaded to check it, so it was not kept: "
            f"{(done.stderr.strip().splitlines() or ['no output'])[-1][:300]}"
        ) from None
    if "error" in found:
        raise VerificationError(f"The written model is broken and was not kept: {found['error']}")
    return Comparison(**found)


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
