"""Submit a run to the cluster once, follow it, and fetch what it made.

`train` yields the run's events as if it trained in this process, without torch. `cluster.json` in
the run's folder names the job, so a later call follows the same job from the last event that was
read, and never submits a second one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from studio.cluster import Cluster
from studio.cluster.follow_and_fetch import Follower, Intent
from studio.cluster.ray_api import ClusterFacts, NoAnswer, Ray
from studio.cluster.shared_storage import (
    CHECKPOINTS,
    ORDER,
    PACKED,
    Order,
    Storage,
    Submission,
    needed,
    not_writable,
    open_storage,
    read_submission,
    write_json,
)
from studio.errors import ClusterError
from studio.home import Home, is_whole, slug
from studio.job_request import Control
from studio.spec import RunSpec
from studio.training import transfer_run
from studio.training.training_events import Event, Loading

logger = logging.getLogger(__name__)
RETRY_SECONDS = 2.0


def submit(spec: RunSpec, *, run_dir: Path, home: Home, ray: Ray, storage: str) -> Submission:
    """Upload and submit the run, unless that was done before.

    Raises:
        NoAnswer: The cluster does not answer; call again.
        ClusterError: It has too few devices, another version, or the storage cannot be written.
    """
    sent = read_submission(run_dir) or _prepared(spec, run_dir, home, ray.facts(), storage)
    if not sent.submitted:
        ray.submit(sent.submission, place=sent.place)
        update = {"submitted": True, "address": ray.address}
        sent = sent.model_copy(update=update).save(run_dir)
    return sent


def cluster_of(run_dir: Path, address: str) -> Ray:
    """Return the cluster of a run: that at `address`, unless an earlier one knows the run."""
    sent = read_submission(run_dir)
    if sent is not None and sent.address not in ("", address):
        with suppress(NoAnswer):
            earlier = Ray(sent.address)
            if earlier.status(sent.submission) is not None:
                return earlier
    return Ray(address)


def too_few(wanted: int, facts: ClusterFacts) -> str:
    """Return the error text for a run that needs more devices than the cluster has."""
    return (
        f"train.num_processes is {wanted}, but the cluster has {facts.devices} {facts.kind}s on "
        f"{facts.machines} machines. Use at most {facts.devices}, or wait for more machines."
    )


def _prepared(
    spec: RunSpec, run_dir: Path, home: Home, facts: ClusterFacts, storage: str
) -> Submission:
    if spec.train.num_processes > facts.devices:
        raise ClusterError(too_few(spec.train.num_processes, facts))
    store = open_storage(storage)
    name = f"{slug(spec.name or 'run')[:40]}-{run_dir.name}-{secrets.token_hex(4)}"
    place = store.below(name)
    packed = run_dir / ".tmp-packed"
    shutil.rmtree(packed, ignore_errors=True)
    try:
        transfer_run.pack(spec, packed, home)
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
        raise not_writable(storage, error) from None
    finally:
        shutil.rmtree(packed, ignore_errors=True)
    return Submission(submission=name, place=place.url).save(run_dir)


def _sent_model(model: Path, store: Storage) -> str:
    """Upload a model folder, once for all runs; return "" for hub ids and the starter."""
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


def train(
    spec: RunSpec, *, run_dir: Path, home: Home, cluster: Cluster, control: Control, intent: Intent
) -> Iterator[Event]:
    """Train on the cluster, or follow the run's job that exists already.

    Args:
        control: Returns the user's current command.
        intent: Returns why the run should stop; at a `shutdown` the job continues.

    Raises:
        StudioError: The run failed; its checkpoints were fetched.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    if (run_dir / "report.json").exists():
        from studio.training.training_loop import already_finished

        if (finished := already_finished(run_dir)) is not None:
            yield finished
            return

    while True:
        ray = cluster_of(run_dir, cluster.address)
        yield Loading(text="Submitting the run to the cluster")
        waiting = False
        while True:
            if intent():
                return
            try:
                submitted = submit(
                    spec, run_dir=run_dir, home=home, ray=ray, storage=cluster.storage
                )
                break
            except NoAnswer as error:
                if not waiting:
                    logger.warning("%s Retrying until it does.", error.text)
                    yield Loading(text=f"Waiting for the cluster: {error.text}")
                waiting = True
                time.sleep(RETRY_SECONDS)
        follower = Follower(spec, run_dir, ray, submitted, intent)
        ended = yield from follower.follow(control)
        if ended is None or ended.reason == "completed" or control() == "stop":
            return
        logger.info("an earlier stop request ended the job; submitting it again")
