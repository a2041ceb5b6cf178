"""A Ray cluster as a device of the queue: its address, its slots, and the jobs that wait for it.

Its slots are `ray:0`, `ray:1` …, one per GPU (or per CPU, if it has none); a run takes one per
process, in the queue's order. Only a thread talks to the cluster, so that one that does not answer
delays nothing.
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from jobs import queue_settings
from jobs.claims import Claim, Slot
from jobs.job_queue import JobStore
from jobs.job_record import Job
from jobs.processes import Identity
from studio.cluster import Cluster
from studio.cluster.ray_api import ClusterFacts, NoAnswer, Ray, checked_address
from studio.cluster.shared_storage import open_storage, read_submission, request_stop
from studio.cluster.submit import too_few
from studio.device_setting import CLUSTER
from studio.errors import ClusterError, InputError, QueueError, SpecError, StudioError
from studio.home import Home
from studio.spec import RunSpec

logger = logging.getLogger(__name__)

ASK_SECONDS = 5.0
NONE = "No cluster is set. Name one on the System page, or with studio cluster ADDRESS --storage S."


def chosen(store: JobStore) -> Cluster | None:
    """Return the Ray cluster that the user set."""
    found = queue_settings.read(store, "cluster")
    return Cluster(**found) if found else None


def choose(store: JobStore, address: str, storage: str) -> Cluster:
    """Set the Ray cluster and its storage; it may be unreachable now.

    Raises:
        InputError: The address is invalid or not Ray's, or the storage cannot be written.
    """
    before = chosen(store)
    address, storage = address.strip(), storage.strip() or (before.storage if before else "")
    if not storage:
        raise QueueError(
            "A cluster needs a storage that this machine and all of its machines can write: a "
            "shared folder, s3://bucket/folder or gs://bucket/folder."
        )
    try:
        cluster = Cluster(address=checked_address(address), storage=open_storage(storage).url)
        Ray(cluster.address).facts()
    except NoAnswer as error:
        logger.warning("%s", error.text)
    except ClusterError as error:
        raise InputError(error.text) from None
    queue_settings.write(store, "cluster", {"address": cluster.address, "storage": cluster.storage})
    return cluster


def shown(store: JobStore) -> dict[str, Any] | None:
    """Return the Ray cluster as a page shows it, asking it now; None when none is set."""
    cluster = chosen(store)
    if cluster is None:
        return None
    try:
        return described(cluster, Ray(cluster.address).facts(), "")
    except StudioError as error:
        return described(cluster, None, error.text)


def described(cluster: Cluster, facts: ClusterFacts | None, trouble: str) -> dict[str, Any]:
    """Return a Ray cluster, what is known of it, and what is wrong with it as plain values."""
    known = asdict(facts) if facts else {}
    return {**asdict(cluster), "trouble": trouble, **known}


def troubles(found: dict[str, Any] | None) -> list[str]:
    """Return what keeps the Ray cluster from being used, a sentence each."""
    if found is None:
        return []
    sentences = [str(found["trouble"])] if found["trouble"] else []
    if find_spec("ray") is None:
        sentences.append("A cluster needs Ray here too: pip install 'adapter-studio[ray]'.")
    try:
        open_storage(str(found["storage"]))
    except ClusterError as error:
        sentences.append(error.text)
    return sentences


def sentence(found: dict[str, Any] | None) -> str:
    """Say in one line how the Ray cluster is."""
    if found is None:
        return NONE
    if found["trouble"]:
        return str(found["trouble"])
    return (
        f"cluster: {found['free']} of {found['devices']} {found['kind']}s free on "
        f"{found['machines']} machines, Ray {found['version']} at {found['address']}, storage "
        f"{found['storage']}"
    )


def is_slot(device: str) -> bool:
    """Return True if a claim's device is a slot of the Ray cluster."""
    return device.partition(":")[0] == CLUSTER


def admit(spec: RunSpec, home: Home) -> None:
    """Check a run for the Ray cluster, if the cluster answers.

    Raises:
        SpecError: None is set, it cannot be used, or it has too few devices.
    """
    with closing(JobStore(home)) as store:
        cluster = chosen(store)
    if cluster is None:
        raise SpecError(f"train.device is {CLUSTER}. {NONE}", field="train.device")
    try:
        facts = Ray(cluster.address).facts()
    except NoAnswer:
        return  # the job waits in the queue, with a sentence
    except ClusterError as error:
        raise SpecError(error.text, field="train.device") from None
    if spec.train.num_processes > facts.devices:
        text = too_few(spec.train.num_processes, facts)
        raise SpecError(text, field="train.num_processes")


class Watch:
    """The state of the cluster as last seen; `look` never waits."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._thread: threading.Thread | None = None
        self._asked_at = float("-inf")
        self._stopped: set[int] = set()
        self.cluster: Cluster | None = None
        self.facts: ClusterFacts | None = None
        self.trouble = ""

    def look(self) -> None:
        """Query the cluster in a thread, unless that runs or has just been done."""
        cluster = chosen(self._store)
        if cluster != self.cluster:
            self.cluster, self.facts, self.trouble = cluster, None, ""
            self._asked_at = float("-inf")
        busy = self._thread is not None and self._thread.is_alive()
        if cluster is None or busy or time.monotonic() - self._asked_at < ASK_SECONDS:
            return
        self._asked_at = time.monotonic()
        self._thread = threading.Thread(target=self._ask, args=(cluster,), daemon=True)
        self._thread.start()

    def shown(self) -> dict[str, Any] | None:
        """Return the cluster as a page shows it; None when none is set."""
        return described(self.cluster, self.facts, self.trouble) if self.cluster else None

    def slots(self) -> list[str]:
        """Return the slots of the cluster; none while it does not answer."""
        return [f"{CLUSTER}:{n}" for n in range(self.facts.devices)] if self.facts else []

    def claims(self, owner: Identity, start_when: Iterable[str]) -> Iterator[Claim]:
        """Claim jobs for free slots in the queue's order, until none waits or fits."""
        names = self.slots()
        slots = [Slot(one, tuple(n for n in names if n != one), (CLUSTER,)) for one in names]
        while claim := self._store.claims.claim_next(slots, owner=owner, start_when=start_when):
            yield claim

    def waits(self) -> dict[int, str]:
        """Return what each queued run waits for, beside the jobs before it."""
        waiting = [job for job in self._store.list(["queued"]) if job.device_wanted == CLUSTER]
        found = {job.id: self._waits(job) for job in waiting}
        return {job: sentence for job, sentence in found.items() if sentence}

    def _waits(self, job: Job) -> str:
        if self.cluster is None:
            return NONE
        if self.facts is None:
            return self.trouble
        wanted = int((job.spec.get("train") or {}).get("num_processes") or 1)
        return too_few(wanted, self.facts) if wanted > self.facts.devices else ""

    def _ask(self, cluster: Cluster) -> None:
        try:
            facts, trouble = Ray(cluster.address).facts(), ""
        except StudioError as error:
            facts, trouble = None, error.text
        if trouble != self.trouble:
            logger.info("%s", trouble or f"the cluster at {cluster.address} answers")
        if cluster == self.cluster:
            self.facts, self.trouble = facts, trouble
        try:
            self._stop_unfollowed()
        except (StudioError, sqlite3.Error) as error:  # busy, or closed meanwhile
            logger.info("unfollowed jobs are stopped later: %s", error)

    def _stop_unfollowed(self) -> None:
        """Stop runs there that were held or cancelled while no runner followed them."""
        for job in self._store.list(["paused", "cancelled"]):
            if job.device_wanted != CLUSTER or job.id in self._stopped:
                continue
            self._stopped.add(job.id)
            sent = read_submission(self._store.home.run(job.id))
            if sent is not None:
                request_stop(sent)
                logger.info("job %d was asked to stop on the cluster", job.id)
        waiting = {job.id for job in self._store.list(["queued", "starting", "running"])}
        self._stopped -= waiting
