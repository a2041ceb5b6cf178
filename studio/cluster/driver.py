"""The driver of one run on the cluster: `python -m studio.cluster.driver PLACE`, as a Ray job.

It hands the worker to Ray Train's TorchTrainer, which starts the workers again when one is lost;
they go on from the newest checkpoint on the storage.
"""

from __future__ import annotations

import json
import logging
import sys

from studio.cluster.order import ERROR, MARK, order_in, read_json
from studio.cluster.storage import Place
from studio.cluster.stream import Writer
from studio.errors import ProcessLost, RunError, StudioError
from studio.training.events import Loading

logger = logging.getLogger(__name__)

MOST_FAILURES = 3


def main(arguments: list[str] | None = None) -> int:
    """Drive one run on the cluster; its error is the last line it prints."""
    (url,) = arguments or sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    place = Place(url)
    try:
        _drive(place)
        error = read_json(place, ERROR)
    except StudioError as known:
        error = known.as_dict()
    if error:
        print(MARK + json.dumps(error), flush=True)
    return 1 if error else 0


def _drive(place: Place) -> None:
    order = order_in(place)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from studio.cluster.worker import work

    writer = Writer(place)
    kind = "GPU" if order.gpus else "CPU"
    writer.say(Loading(text=f"Ray is placing the run on {order.workers} {kind}").as_dict())
    writer.close()
    trainer = TorchTrainer(
        work,
        train_loop_config={"place": place.url},
        scaling_config=ScalingConfig(num_workers=order.workers, use_gpu=order.gpus),
        run_config=RunConfig(
            name="ray",
            failure_config=FailureConfig(max_failures=MOST_FAILURES),
            **place.for_ray(),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # whatever Ray or a worker failed with becomes one sentence
        logger.exception("the run failed")
        raise _cause(error) from error


def _cause(error: Exception) -> StudioError:
    """Return what a failure was about: a worker's own sentence, else how Ray tells it."""
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        for inner in (failure, getattr(failure, "_base_exc", None), failure.__cause__):
            if isinstance(inner, StudioError):
                return inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1][:300] if lines else type(error).__name__
    if not failures:  # Ray's own part of it was lost: home may send the run again
        return ProcessLost(f"Ray gave the run up: {last}")
    return RunError(
        f"The run's workers failed {MOST_FAILURES + 1} times on the cluster, the last time with: "
        f"{last}. The last checkpoint is intact."
    )


if __name__ == "__main__":
    raise SystemExit(main())
