"""What a finished run leaves: the adapter in PEFT's files with its passport, and a report.

The report is written last and whole: a run folder with a report is a run that is over.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.home import is_whole, publishing, sweep
from studio.methods import Phase
from studio.spec import RunSpec
from studio.training.checkpoint import Progress
from studio.training.events import Finished

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from studio.data.prepare import Prepared
    from studio.methods.layer import Backbone
    from studio.models.sources import ModelFacts

PASSPORT, REPORT = "passport.json", "report.json"
LIBRARIES = ("adapter-studio", "torch", "transformers", "accelerate", "safetensors")


def publish_adapter(
    run_dir: Path,
    *,
    name: str,
    backbone: Backbone,
    spec: RunSpec,
    base: ModelFacts,
    prepared: Prepared,
    progress: Progress,
    tokenizer: PreTrainedTokenizerBase,
) -> Path:
    """Write `run_dir/adapter` whole: PEFT's two files (after full fine-tuning a model folder with
    its tokenizer) and the passport."""
    target = run_dir / "adapter"
    passport = {
        "name": spec.name or run_dir.name,
        "spec": spec.model_dump(mode="json"),
        "base": {"path": spec.model.path, "fingerprint": base.fingerprint},
        "data": {
            "path": spec.data.path,
            "hash": prepared.data_hash,
            "template": prepared.template,
        },
        "versions": versions(),
        "seed": spec.seed,
        "ended": "completed",
        "steps": progress.step,
        "first_loss": progress.first_loss,
        "last_loss": progress.last_loss,
        "eval_loss": progress.eval_loss,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "parents": [],
    }
    with publishing(target) as temporary:
        backbone.save(name, temporary, base=str(spec.model.path))
        if spec.method.phase is Phase.WEIGHTS:
            tokenizer.save_pretrained(temporary)
        (temporary / PASSPORT).write_text(json.dumps(passport, indent=1, ensure_ascii=False))
    return target


def write_report(run_dir: Path, finished: Finished, extra: dict[str, Any]) -> None:
    """Write `report.json` in one rename."""
    values = {**finished.as_dict(), **extra}
    temporary = run_dir / f".{REPORT}-{os.getpid()}"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(values, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, run_dir / REPORT)


def already_finished(run_dir: Path) -> Finished | None:
    """Return how a run ended if it is over and its adapter is whole."""
    sweep(run_dir)
    adapter = run_dir / "adapter"
    try:
        report = json.loads((run_dir / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if report.get("reason") != "completed" or not is_whole(adapter):
        return None
    fields = ("step", "reason", "first_loss", "last_loss", "eval_loss", "seconds")
    return Finished(adapter=str(adapter), **{name: report[name] for name in fields})


def versions() -> dict[str, str]:
    """Return the versions of the libraries that decide a result."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = ""
    return found
