"""A run on the cluster as it is here: sent there, followed, stopped, and brought home.

The generator yields the run's events as if it trained in this process, and needs no torch. What it
must remember is in `cluster.json` in the run's folder: whoever comes later with it follows the very
job that is under way, from the line it had heard last, and never sends a second one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TypeVar

from studio.cluster import Cluster
from studio.cluster.following import Control, Following, Intent
from studio.cluster.note import Sent
from studio.cluster.ray_api import NoAnswer, Ray
from studio.cluster.sending import send
from studio.home import Home
from studio.spec import RunSpec
from studio.training.events import Event, Loading

logger = logging.getLogger(__name__)

T = TypeVar("T")
AGAIN_SECONDS = 2.0


def train(
    spec: RunSpec, *, run_dir: Path, home: Home, cluster: Cluster, control: Control, intent: Intent
) -> Iterator[Event]:
    """Train on the cluster, or follow the job that does it already.

    Args:
        spec: Everything that decides the run.
        run_dir: Where checkpoints and adapter come home to.
        home: Where imported datasets are.
        cluster: Which one.
        control: What a person wishes of the run now.
        intent: Why it should stop; at a `shutdown` the job goes on without us.

    Raises:
        StudioError: One sentence; the checkpoints that were made are at home.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    if (run_dir / "report.json").exists():
        from studio.training.outcome import already_finished

        if (finished := already_finished(run_dir)) is not None:
            yield finished
            return
    ray = Ray(cluster.address)

    def sending() -> Sent:
        return send(spec, run_dir=run_dir, home=home, ray=ray, storage=cluster.storage)

    while True:
        yield Loading(text="Sending the run to the cluster")
        sent = yield from _patiently(sending, intent)
        if sent is None:
            return
        ended = yield from Following(spec, run_dir, ray, sent, intent).to_the_end(control)
        if ended is None or ended.reason == "completed" or control() == "stop":
            return
        logger.info("it had been asked to stop before; it goes on now")


def _patiently(action: Callable[[], T], intent: Intent) -> Generator[Event, None, T | None]:
    """Do something that needs the cluster, again until it answers; None when it should stop."""
    told = False
    while not intent():
        try:
            return action()
        except NoAnswer as error:
            if not told:
                logger.warning("%s Trying again until it does.", error.text)
                yield Loading(text=f"Waiting for the cluster: {error.text}")
            told = True
            time.sleep(AGAIN_SECONDS)
    return None
