"""In which precision a run's base is loaded. Torch-free: the estimate counts with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from studio.methods import Phase

if TYPE_CHECKING:
    from studio.spec import ModelSource, RunSpec


def base_of(spec: RunSpec) -> ModelSource:
    """Return the model as training loads it.

    Weights that train themselves are float32 unless a person says otherwise: a step of 1e-5 is
    below what bfloat16 can add to a weight of 0.02, and most of it would be rounded away.
    """
    if spec.method.phase is Phase.WEIGHTS and spec.model.dtype == "auto":
        return spec.model.model_copy(update={"dtype": "float32"})
    return spec.model


def loaded_dtype(spec: RunSpec, *, on_gpu: bool) -> str:
    """Return the precision that the base's weights will have."""
    wanted = base_of(spec).dtype
    return wanted if wanted != "auto" else ("float32", "bfloat16")[on_gpu]
