"""A run leaves for the cluster: its folder onto the storage, its driver to Ray, a note stays here.

The note, `cluster.json` in the run's folder, is written before Ray hears of the run and names the
job that Ray will know, so that whoever dies in between sends it once.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from pathlib import Path

from studio.cluster.note import Sent, remembered
from studio.cluster.order import CHECKPOINTS, ORDER, PACKED, Order, needed, write_json
from studio.cluster.ray_api import Facts, Ray
from studio.cluster.storage import Place, opened, unwritable
from studio.errors import ClusterError
from studio.home import Home, is_whole, slug
from studio.spec import RunSpec
from studio.training import elsewhere


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
        elsewhere.pack(spec, packed, home)
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
