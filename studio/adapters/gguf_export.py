"""The GGUF export as a job: fold the stack, write, read back with transformers, compare logits.

The folder holds the `.gguf`, an Ollama `Modelfile`, a model card, and `gguf.json`: what was
measured. It appears only when the file answers like the model it was made from.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from studio.adapters.card import stack_card, write_card
from studio.adapters.gguf_write import Precision, package, write
from studio.adapters.library import name_of
from studio.adapters.place import refuse_place
from studio.adapters.requests import StackItem
from studio.errors import AdapterError
from studio.home import Home, publishing, slug
from studio.knobs import Record, knob
from studio.names import cleaned
from studio.spec import ModelSource
from studio.training.events import Event, Finished, Loading
from studio.validating import validated

REPORT = "gguf.json"
# Largest logit error for its own size (the largest logit): rounding of weights, nothing else.
TOLERANCES: dict[Precision, float] = {"f32": 1e-5, "f16": 5e-3, "bf16": 3e-2, "q8_0": 6e-2}
RETOKENISED = (
    "Some texts are cut into other tokens by GGUF's own rule for this kind of tokenizer: answers "
    "may differ in small ways."
)
TEXTS = (
    "Once upon a time there was a little fox.", "What is the capital of France?", "2 + 2 = 4",
    "She said: “Don't!” – twice.", "¿Qué hora es?",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """What the written file does when it is read back."""

    precision: Precision
    max_error: float
    mean_error: float
    tolerance: float
    tokens_changed: int
    tokens_compared: int
    texts_tokenised_differently: tuple[str, ...]
    notes: tuple[str, ...]


class GgufRequest(Record):
    """Write a model, with a stack folded in, as GGUF."""

    name: str = knob("", "What to call it.", title="Name", max_length=120)
    model: ModelSource = ModelSource()
    stack: tuple[StackItem, ...] = ()
    precision: Precision = knob("f16", "f32, f16, bf16 or q8_0.", title="Precision")
    out: str = knob("", "The new folder; empty puts it into the home's exports.", max_length=4000)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Validate plain values or raise one SpecError."""
        return validated(cls, values)

    def checked(self, home: Home) -> Self:
        """Return the request as the queue stores it.

        Raises:
            StudioError: The model or an adapter is missing, or the folder exists.
        """
        from studio.adapters.library import resolve
        from studio.models.sources import facts

        package()
        known = facts(self.model)
        stack = tuple(
            item.model_copy(update={"name": str(resolve(home, item.name))}) for item in self.stack
        )
        called = [name_of(Path(item.name)) for item in stack]
        made_up = cleaned(" ".join([known.path.name, *called, self.precision]))
        name = self.name.strip() or made_up
        out = Path(self.out).expanduser().absolute() if self.out.strip() else None
        out = out or home.path / "exports" / slug(f"{name} gguf")
        refuse_place(out)
        return self.model_copy(update={"stack": stack, "out": str(out), "name": name})

    def perform(self, home: Home) -> Iterator[Event]:
        """Fold, write, read back."""
        from studio.adapters.merge import merge
        from studio.models.sources import facts

        started, out = time.monotonic(), Path(self.out)
        with tempfile.TemporaryDirectory(dir=home.state) as place:
            folder = facts(self.model).path
            if self.stack:
                folder = Path(place) / "merged"
                stack = [(Path(item.name), item.weight) for item in self.stack]
                for event in merge(self.model, stack, folder, device="cpu"):
                    if not isinstance(event, Finished):
                        yield event
                _refuse_leftovers(folder)
            with publishing(out) as temporary:
                yield Loading(text="Writing the file")
                file = temporary / f"{slug(self.name)}.gguf"
                notes = write(folder, file, precision=self.precision, name=self.name)
                yield Loading(text="Reading it back")
                check = compare(folder, file, self.precision, notes)
                (temporary / REPORT).write_text(json.dumps(asdict(check), indent=1))
                (temporary / "Modelfile").write_text(modelfile(folder, file.name), "utf-8")
                write_card(temporary, self.card(check))
                judge(check)
        yield Finished(
            reason="completed", adapter=str(out), first_loss=None, last_loss=None, eval_loss=None,
            seconds=time.monotonic() - started, facts={"gguf": asdict(check)},
        )  # fmt: skip

    def card(self, check: Check) -> str:
        """Return the model card: what it is made of, and how exact the file is."""
        rows = {
            "Precision": check.precision,
            "Checked": "read back with transformers, its logits differ from the model it was made "
            f"from by at most {check.max_error:.2g}, and {check.tokens_changed} of "
            f"{check.tokens_compared} likeliest tokens changed",
            "Use": "`ollama create NAME -f Modelfile`, or `llama-server -m FILE.gguf`",
        }
        stack = [(name_of(Path(item.name)), item.weight) for item in self.stack]
        return stack_card(self.name, self.model.path, stack, rows, library="gguf")


def read_check(folder: Path) -> dict[str, Any]:
    """Return what was measured of an export; empty where it is none."""
    try:
        return dict(json.loads((folder / REPORT).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def compare(folder: Path, file: Path, precision: Precision, notes: list[str]) -> Check:
    """Load both with transformers in float32 and compare logits and tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    old = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    ids = [old(text)["input_ids"] for text in TEXTS]
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    wanted = [_logits(model, row) for row in ids]
    del model
    model = _read_back(file)
    errors, changed, scale = [], 0, 1.0
    for row, before in zip(ids, wanted, strict=True):
        after = _logits(model, row)[..., : before.shape[-1]]
        errors.append((after - before).abs())
        changed += int((after.argmax(-1) != before.argmax(-1)).sum())
        scale = max(scale, float(before.abs().max()))
    new = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    differ = tuple(
        text for text, row in zip(TEXTS, ids, strict=True) if new(text)["input_ids"] != row
    )
    if differ:
        notes = [*notes, RETOKENISED]
    return Check(
        precision=precision,
        max_error=max(float(error.max()) for error in errors),
        mean_error=float(torch.cat([error.flatten() for error in errors]).mean()),
        tolerance=TOLERANCES[precision] * scale,
        tokens_changed=changed,
        tokens_compared=sum(map(len, ids)),
        texts_tokenised_differently=differ,
        notes=tuple(notes),
    )


def _read_back(file: Path) -> Any:
    """Load the file with transformers.

    Raises:
        AdapterError: It cannot; nothing was kept.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
        )
    except (RuntimeError, ValueError, AssertionError, KeyError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise AdapterError(
            f"transformers cannot read the written file back ({said}), so nothing was kept: "
            "GGUF's reader there takes some sizes of this family for granted. Export the merged "
            "folder instead."
        ) from error


def judge(check: Check) -> None:
    """Raise where the file is not the model.

    Raises:
        AdapterError: Says by how much; nothing was kept.
    """
    if not check.max_error <= check.tolerance:  # also catches NaN
        raise AdapterError(
            f"The written file answers differently (logits differ by {check.max_error:.3g}, "
            f"allowed {check.tolerance:.3g}): nothing was kept. Export the merged folder instead."
        )


def modelfile(folder: Path, name: str) -> str:
    """Return an Ollama Modelfile: the file, where an answer ends, and its context."""
    from transformers import AutoTokenizer

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    lines = [f"FROM ./{name}", f"PARAMETER num_ctx {min(config['max_position_embeddings'], 8192)}"]
    if tokenizer.eos_token:
        lines.append(f"PARAMETER stop {json.dumps(tokenizer.eos_token)}")
    lines.append("# Ollama reads the chat template from the file itself.")
    return "\n".join(lines) + "\n"


def _logits(model: Any, row: list[int]) -> Any:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor([row])).logits[0].float()


def _refuse_leftovers(folder: Path) -> None:
    from studio.adapters.merge import read_certificate

    if left := read_certificate(folder).get("left"):
        names = ", ".join(name_of(Path(part)) for part in left)
        raise AdapterError(
            f"{names} cannot be folded into weights, so it cannot be in a GGUF file: leave it out."
        )
