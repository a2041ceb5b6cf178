"""Find a run's learning rate: short trials at several rates, compared by held-out loss."""

from __future__ import annotations

import json
import math
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

from studio import atomic
from studio.errors import Diverged, SpecError
from studio.spec import RunSpec
from studio.training.open_session import open_session
from studio.training.steps_and_learning_rate import FACTORS, learning_rate, plan_run, trial_steps
from studio.training.training_events import Event, Loading

if TYPE_CHECKING:
    from studio.backbone import Backbone
    from studio.data.prepare_run_data import Prepared
    from studio.models.loading import Loaded

NAME, TRIALS = "trial", "learning_rate_trials.json"


def find_rate(
    spec: RunSpec, *, run_dir: Path, loaded: Loaded, prepared: Prepared, backbone: Backbone
) -> Generator[Event, None, float]:
    """Train trials at four rates, √10 apart around the run's own, and return the best one.

    Each trial is a whole schedule over a quarter of the run's steps with a fresh adapter on the
    base, or the one that the run starts from; both are as before afterwards. A trial that diverges
    loses. The reference of a loss is kept in `run_dir`, like that of the run, and so is the loss of
    each trial: a run that was interrupted or retried repeats none, and keeps its rate.

    Raises:
        SpecError: No row is held out.
    """
    if not len(prepared.validation):
        raise SpecError(
            "train.find_learning_rate compares held-out losses, but no row is held out: set "
            "data.validation_fraction, or the learning rate by hand.",
            field="train.find_learning_rate",
        )
    width = backbone.anatomy.hidden_size
    own = learning_rate(spec.train, spec.method, width)
    num_rows = len(prepared.train) // prepared.rows_per_example
    total = plan_run(spec, num_rows=num_rows, hidden_size=width).total_steps
    steps = trial_steps(total)
    weights = backbone.model.named_parameters() if spec.method.trains_base else ()
    kept = [(weight, weight.detach().clone()) for _, weight in weights]
    key, losses = [own, steps, spec.seed, prepared.data_hash], list[float | None]()
    stored = atomic.read_object(run_dir / TRIALS)
    if stored.get("key") == key:
        losses = stored["losses"]
    rates = [own * factor for factor in FACTORS]
    for number, rate in [*enumerate(rates)][len(losses) :]:
        yield Loading(text=f"Learning rate {rate:.2g}: trial {number + 1} of {len(FACTORS)}")
        changes = {
            "learning_rate": rate, "max_steps": steps, "neftune_noise_alpha": 0.0,
            "eval_steps": 1,  # evaluates all held-out rows, not a sample
        }  # fmt: skip
        trial = spec.with_parts(train=changes)
        session = open_session(
            trial, loaded=loaded, prepared=prepared, backbone=backbone, name=NAME
        )
        try:
            if session.preference:
                yield from session.preference.prepare_reference(run_dir)
            for _ in range(steps):
                session.step()
            found = session.evaluate()
            loss = -(found.reward or 0.0) if found.eval_loss is None else found.eval_loss
            losses.append(loss if math.isfinite(loss) else None)
        except Diverged:
            losses.append(None)
        finally:
            for name in {NAME, *(name for name, _ in session.start.reference)}:
                backbone.detach(name)
            for weight, values in kept:
                weight.data.copy_(values)
        atomic.write(run_dir / TRIALS, json.dumps({"key": key, "losses": losses}))
    ranked = [(math.inf if loss is None else loss, place) for place, loss in enumerate(losses)]
    best = rates[min(ranked)[1]]
    yield Loading(text=f"Learning rate {best:.2g}, the best of {len(FACTORS)}")
    return best
