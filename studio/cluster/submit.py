"""Submit a run to the cluster, follow it, fetch what it made.

The note, `cluster.json` in the run's folder, is written before Ray hears of the run and names the
job that Ray will know, so that whoever dies in between sends it once.

The generator yields the run's events as if it trained in this process, and needs no torch. What it
must remember is in `cluster.json` in the run's folder: whoever comes later with it follows the very
job that is under way, from the line it had heard last, and never sends a second one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TypeVar

from studio.cluster import Cluster
from studio.cluster.follow import Control, Following, Intent
from studio.cluster.orders import (
    CHECKPOINTS,
    ORDER,
    PACKED,
    Order,
    Sent,
    needed,
    remembered,
    write_json,
)
from studio.cluster.ray_api import Facts, NoAnswer, Ray
from studio.cluster.storage import Place, opened, unwritable
from studio.errors import ClusterError
from studio.home import Home, is_whole, slug
from studio.spec import RunSpec
from studio.training import transfer
from studio.training.events import Event, Loading


def send(spec: RunSpec, *, run_dir: Path, home: Home, ray: Ray, storage: str) -> Sent:
    """Have the run at the cluster, once, however often this is called.

    Raises:
        NoAnswer: The cluster does not answer; call again.
        ClusterError: It has too few devices, another version, or the storage cannot be written.
    """
    sent = remembered(run_dir) or _prepared(spec, run_dir, home, ray.facts(), storage)
    if not sent.submitted:
        ray.submit(sent.submission, place=sent.place)
        sent = sent.model_copy(update={"submitted": True}).keep(run_dir)
    return sent


def checked_devices(spec: RunSpec, facts: Facts) -> None:
    """Make sure that the cluster has as many devices as the run wants.

    Raises:
        ClusterError: It has not; says how many there are.
    """
    if spec.train.num_processes > facts.devices:
        raise ClusterError(too_few(spec.train.num_processes, facts))


def too_few(wanted: int, facts: Facts) -> str:
    """Return the sentence for a run that wants more than the cluster has."""
    return (
        f"train.num_processes is {wanted}, but the cluster has {facts.devices} {facts.kind}s on "
        f"{facts.machines} machines. Take at most {facts.devices}, or wait for more machines."
    )


def _prepared(spec: RunSpec, run_dir: Path, home: Home, facts: Facts, storage: str) -> Sent:
    checked_devices(spec, facts)
    store = opened(storage)
    name = f"{slug(spec.name or 'run')[:40]}-{run_dir.name}-{secrets.token_hex(4)}"
    place = store.below(name)
    packed = run_dir / ".tmp-packed"
    shutil.rmtree(packed, ignore_errors=True)
    try:
        transfer.pack(spec, packed, home)
        place.send(packed, PACKED)
        for checkpoint in sorted((run_dir / CHECKPOINTS).glob("step-*")):
            if is_whole(checkpoint):
                place.send(checkpoint, f"{CHECKPOINTS}/{checkpoint.name}")
        order = Order(
            workers=spec.train.num_processes, gpus=facts.kind == "GPU", needs=needed(),
            model=_sent_model(Path(spec.model.path), store),
        )  # fmt: skip
        write_json(place, ORDER, order.model_dump(mode="json"))
    except OSError as error:
        raise unwritable(storage, error) from None
    finally:
        shutil.rmtree(packed, ignore_errors=True)
    return Sent(submission=name, place=place.url).keep(run_dir)


def _sent_model(model: Path, store: Place) -> str:
    """Copy a model folder to the storage, once for all runs; hub ids and the starter are named."""
    if not model.is_dir():
        return ""
    files = sorted(p for p in model.rglob("*") if p.is_file() and not p.name.startswith("."))
    facts = [(p.relative_to(model).as_posix(), p.stat().st_size, p.stat().st_mtime) for p in files]
    mark = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    name = f"models/{slug(model.name)}-{mark}"
    if not store.exists(f"{name}/.whole"):
        store.send(model, name)
        store.write(f"{name}/.whole", b"")
    return f"{store.url}/{name}"


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
        from studio.training.loop import already_finished

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
