"""Checkpoints: save and load everything that an exact resume needs, atomically, without pickle.

A checkpoint is `checkpoints/step-00000100/` with the adapter's tensors, the optimizer's tensors and
`state.json`. Rows, learning rate and randomness of a step follow from (seed, step) and are not
stored. Only a folder whose manifest verifies is resumed from.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.errors import DataError, ModelError
from studio.home import is_whole, publishing, sweep
from studio.training import optimizer as optimizers
from studio.training.optimizer import OptimizerLike

if TYPE_CHECKING:
    from studio.backbone import Adapter

VERSION = 1


@dataclass(slots=True)
class RunProgress:
    """Progress of a run; stored in checkpoints."""

    step: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    eval_loss: float | None = None
    eval_score: float | None = None  # reward accuracy, or reward
    seconds: float = 0.0
    tokens: int = 0
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    best_loss: float | None = None
    best_step: int | None = None
    waited: int = 0
    best_accuracy: float | None = None
    sources: dict[str, float] = field(default_factory=dict)
    best_sources: dict[str, float] = field(default_factory=dict)
    shared_tokens: int = 0

    @property
    def shared_fraction(self) -> float | None:
        """The fraction of the tokens so far that are prompts computed once for several answers."""
        shared = self.shared_tokens
        return shared / (shared + self.tokens) if shared else None

    def record_step(self, loss: float, tokens: int) -> None:
        """Count a finished optimizer step."""
        self.step += 1
        self.tokens += tokens
        self.last_loss = loss
        if self.first_loss is None:
            self.first_loss = loss

    def record_evaluation(
        self, eval_loss: float | None, score: float | None = None,
        sources: dict[str, float] | None = None,
    ) -> None:  # fmt: skip
        """Record a held-out loss, or only a score.

        The best has the highest score (reward accuracy, reward), if there is one, then the lowest
        loss. `waited` counts evaluations since the best and the lowest loss. `sources` are the
        losses (or rewards) by source of a mix.
        """
        self.eval_loss, self.eval_score, self.sources = eval_loss, score, sources or {}
        self.waited += 1
        if eval_loss is not None:
            if all(eval_loss < loss for _, loss in self.evaluations):
                self.waited = 0
            self.evaluations.append((self.step, eval_loss))
        best = -(self.best_accuracy or 0.0), self.best_loss or 0.0
        if self.best_step is None or (-(score or 0.0), eval_loss or 0.0) < best:
            self.best_loss, self.best_step, self.waited = eval_loss, self.step, 0
            self.best_accuracy, self.best_sources = score, self.sources


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointOrigin:
    """Data and base that a checkpoint belongs to; resuming with others is refused.

    `learning_rate` is the run's, which a search may have found; `evaluated` says which rows its
    held-out losses are of.
    """

    data_hash: str
    base_fingerprint: str
    total_steps: int
    learning_rate: float = 0.0  # of earlier versions, as the empty `evaluated`
    evaluated: dict[str, Any] = field(default_factory=dict)


def save(
    folder: Path, *, adapter: Adapter, optimizer: OptimizerLike, progress: RunProgress,
    origin: CheckpointOrigin, keep: int, protect: int | None = None,
) -> Path:  # fmt: skip
    """Write `folder/step-<n>` and delete the oldest beyond `keep`, except step `protect`.

    Checkpoints of later steps are damaged, or the run would have resumed from them: they go too.

    Raises:
        DiskFull: The new checkpoint is removed; older ones are untouched.
    """
    from safetensors.torch import save_file

    target = path_of(folder, progress.step)
    tensors, numbers = optimizers.state_tensors(optimizer)
    state = {"version": VERSION, "origin": asdict(origin), "progress": asdict(progress),
             "optimizer": numbers}  # fmt: skip
    with publishing(target) as temporary:
        save_file(_contiguous(adapter.state()), temporary / "adapter.safetensors")
        save_file(_contiguous(tensors), temporary / "optimizer.safetensors")
        (temporary / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    found = _newest_first(folder)
    newer = found.index(target)
    for old in [*found[:newer], *found[newer + keep :]]:
        if protect is None or old != path_of(folder, protect):
            shutil.rmtree(old, ignore_errors=True)
    return target


def newest(folder: Path) -> Path | None:
    """Return the newest intact checkpoint; remove what an interrupted save left."""
    if not folder.is_dir():
        return None
    sweep(folder)
    return next((path for path in _newest_first(folder) if is_whole(path)), None)


def path_of(folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint."""
    return folder / f"step-{step:08d}"


def best_step(path: Path) -> int | None:
    """Return the step of the best evaluation up to a checkpoint; None without one."""
    best: int | None = _state(path)["progress"].get("best_step")
    return best


def learning_rate(folder: Path) -> float | None:
    """Return the learning rate with which a run was at its newest checkpoint; None without one."""
    if (path := newest(folder)) is None:
        return None
    return float(_state(path)["origin"].get("learning_rate", 0)) or None


def load_adapter(folder: Path, step: int, adapter: Adapter) -> bool:
    """Load only the adapter from a step's checkpoint; False if that is missing or damaged."""
    from safetensors.torch import load_file

    if not is_whole(path := path_of(folder, step)):
        return False
    adapter.load_state(load_file(path / "adapter.safetensors"))
    return True


def load(
    path: Path, *, adapter: Adapter, optimizer: OptimizerLike, origin: CheckpointOrigin
) -> RunProgress:
    """Restore adapter and optimizer; return the progress.

    Raises:
        DataError: The data changed since the checkpoint.
        ModelError: The base model changed since the checkpoint.
    """
    from safetensors.torch import load_file

    state = _state(path)
    then = CheckpointOrigin(**state["origin"])
    _check_origin(path, then, origin)
    adapter.load_state(load_file(path / "adapter.safetensors"))
    tensors = load_file(path / "optimizer.safetensors")
    optimizers.restore(optimizer, tensors, state["optimizer"])
    values = state["progress"]
    values.pop("watch", None)  # of earlier versions
    values["evaluations"] = [(int(step), float(loss)) for step, loss in values["evaluations"]]
    if then.total_steps != origin.total_steps:
        values["waited"] = 0  # extended: early stopping begins anew
    return RunProgress(**values)


def _check_origin(path: Path, then: CheckpointOrigin, now: CheckpointOrigin) -> None:
    text = "The {what} changed since {name} was saved: restore the old {what}, or start a new run."
    if then.data_hash != now.data_hash:
        raise DataError(text.format(what="data", name=path.name))
    if then.base_fingerprint != now.base_fingerprint:
        raise ModelError(text.format(what="base model", name=path.name))


def _state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return state


def _newest_first(folder: Path) -> list[Path]:
    found = [p for p in folder.iterdir() if re.fullmatch(r"step-\d{8,}", p.name)]
    return sorted(found, key=lambda p: int(p.name[5:]), reverse=True)


def _contiguous(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
