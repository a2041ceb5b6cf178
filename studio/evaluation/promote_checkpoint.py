"""Promote a checkpoint: publish it as its run's adapter, with a passport that names it.

The previous adapter stays beside it as `adapter-before`, until the next promotion.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Self

from studio import atomic
from studio.adapters import library
from studio.adapters.adapter_lineage import below_run
from studio.chat import checkpoint_adapters
from studio.errors import AdapterError, SpecError
from studio.evaluation.evaluate_on_dataset import EvaluateRequest
from studio.evaluation.scores_and_gates import bounds, check_gate
from studio.fields import knob
from studio.home import Home, publishing
from studio.job_request import Request
from studio.spec import RunSpec
from studio.training.starting_point import StartingPoint
from studio.training.training_events import Event, Finished, Loading

BEFORE = "adapter-before"


class PromoteRequest(Request):
    """Make a checkpoint the adapter of its run."""

    kind: ClassVar[str] = "promote"
    checkpoint: str = knob(
        "", "Such as 7@100.", max_length=40, positional=True, metavar="RUN@STEP", of="checkpoint"
    )
    min: tuple[str, ...] = knob(
        (), "Promote only if a figure of the run's held-out rows is at least this, as in "
        "token_accuracy=0.8.", title="Promote only above", metavar="FIGURE=NUMBER",
    )  # fmt: skip
    max: tuple[str, ...] = knob(
        (), "Promote only if a figure is at most this, as in forgetting=0.5.",
        title="Promote only below", metavar="FIGURE=NUMBER",
    )  # fmt: skip
    name: str = knob("", "Name of the job.", title="Name", max_length=120, flag="-")

    def checked(self, home: Home) -> Self:
        """Refuse a missing or damaged checkpoint and bounds that cannot be measured."""
        found = checkpoint_adapters.find(home, self.checkpoint)
        if found.spec.method.trains_base:
            raise AdapterError(f"Run {found.run} trained the whole model: it has no adapter.")
        found.check()
        for name in {"regex", "json_schema"} & {*bounds((*self.min, *self.max))}:
            raise SpecError(
                f"A promotion cannot measure {name}: it has no pattern or schema. Use another "
                "figure, such as exact_match."
            )
        self._measurement(found.spec).checked(home)
        name = self.name.strip() or f"promote {found.name}"
        return self.model_copy(update={"name": name})

    def perform(self, home: Home, *_: Any) -> Iterator[Event]:
        """Load the checkpoint on its base and publish it."""
        from studio.backbone import Backbone
        from studio.models.loading import load

        checkpoint = checkpoint_adapters.find(home, self.checkpoint)
        yield Loading(text="Loading the base")
        loaded = load(checkpoint.spec.model, "cpu")
        backbone = Backbone(loaded.model)
        checkpoint_adapters.attach(
            backbone, checkpoint, name="adapter",
            tokenize=lambda text: loaded.tokenizer(text, add_special_tokens=False)["input_ids"],
        )  # fmt: skip
        report: dict[str, Any] = {}
        if self.min or self.max:
            request = self._measurement(checkpoint.spec).checked(home)
            below = backbone.load_stack(
                ("below", one.path, 1.0) for one in below_run(checkpoint.spec)
            )
            stack = (*below, ("adapter", 1.0))
            report = yield from request.measured(home, loaded, backbone, stack)
            check_gate(report, self.min, self.max, f"Checkpoint {checkpoint.name}")
        yield Loading(text="Writing the adapter")
        target = home.run(checkpoint.run) / "adapter"
        passport = _passport(target, checkpoint, loaded.facts.fingerprint)
        passport["forgetting"] = report.get("general") or {}  # not that of the last step
        if target.is_dir():
            with publishing(target.with_name(BEFORE)) as temporary:
                shutil.copytree(target, temporary, dirs_exist_ok=True)
        with publishing(target) as temporary:
            backbone.save("adapter", temporary, base=str(checkpoint.spec.model.path))
            library.write_passport(temporary, passport)
        Backbone(loaded.model).load("again", target)  # as strict as any later use
        yield Finished(adapter=str(target))

    def _measurement(self, spec: RunSpec) -> EvaluateRequest:
        """Return the evaluation of the run's held-out rows that the gate needs."""
        return EvaluateRequest(
            model=spec.model, data=spec.data, rows="held_out", learned=spec.train.rows,
            seed=spec.seed, min=self.min, max=self.max, general_data=spec.train.general_data,
        )  # fmt: skip


def _passport(
    target: Path, checkpoint: checkpoint_adapters.Checkpoint, fingerprint: str
) -> dict[str, Any]:
    passport = atomic.read_object(target / library.PASSPORT)
    start = checkpoint.spec.train
    if not passport and start.init_adapter:  # a stopped run has no adapter yet
        parent = library.describe(Path(start.init_adapter))
        passport = StartingPoint(parent=parent, stacked=start.init_mode == "stack").passport(target)
    state = json.loads((checkpoint.path / "state.json").read_text(encoding="utf-8"))
    progress, origin, spec = state["progress"], state.get("origin", {}), checkpoint.spec
    data = {"path": spec.data.path, "hash": origin.get("data_hash"), **passport.get("data", {})}
    fresh = {
        "name": passport.get("name") or spec.name or str(checkpoint.run),
        "spec": spec.model_dump(mode="json"),
        "base": {"path": spec.model.path, "fingerprint": fingerprint},
        "data": data | {"evaluated": origin.get("evaluated") or data.get("evaluated", {})},
        "seed": spec.seed,
        "ended": "promoted",
        "steps": checkpoint.step,
        "promoted_from": checkpoint.name,
        "first_loss": progress.get("first_loss"),
        "last_loss": progress.get("last_loss"),
        "eval_loss": progress.get("eval_loss"),
        "eval_score": progress.get("eval_score"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return {"parents": [], **passport, **fresh}
