"""Client of a Ray dashboard: version, resources, and the status, log and end of jobs.

Every request times out after a few seconds, which Ray's own client does not guarantee. That client,
and the import of ray, is used only to upload code and submit a job.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from studio.cluster.shared_storage import MARK
from studio.errors import ClusterError, StudioError, first_line, revived
from studio.gpus import installed

TIMEOUT_SECONDS = 5.0
OLDEST = (2, 51)  # the first whose TorchTrainer is the one that starts lost workers again
Status = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
OVER: frozenset[Status] = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})


ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "900",  # a busy machine imports torch for minutes
    "TOKENIZERS_PARALLELISM": "false",
}


class NoAnswer(ClusterError):
    """The cluster does not answer; a retry may succeed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterFacts:
    """Resources of a cluster: its GPUs, or its CPUs if it has none."""

    version: str
    kind: Literal["GPU", "CPU"]
    devices: int
    free: int
    machines: int


class Ray:
    """A cluster, by the address of its dashboard, such as http://10.0.0.5:8265."""

    def __init__(self, address: str) -> None:
        self.address = checked_address(address)

    def facts(self) -> ClusterFacts:
        """Return the cluster's version and resources.

        Raises:
            NoAnswer: The cluster does not answer.
            ClusterError: It is not a Ray cluster, or an unsupported version.
        """
        version = self._version()
        nodes = self._request("GET", "/nodes?view=summary")[1]["data"]["summary"]
        alive = [n["raylet"] for n in nodes if n.get("raylet", {}).get("state") == "ALIVE"]
        kind: Literal["GPU", "CPU"] = "CPU"
        if any(node.get("resourcesTotal", {}).get("GPU") for node in alive):
            kind = "GPU"
        devices = int(sum(node.get("resourcesTotal", {}).get(kind, 0) for node in alive))
        return ClusterFacts(
            version=version, kind=kind, devices=devices, machines=len(alive),
            free=max(0, devices - self._used(kind)),
        )  # fmt: skip

    def status(self, submission: str) -> tuple[Status, str] | None:
        """Return the status of a job and Ray's message; None if the job is unknown.

        Raises:
            NoAnswer: The cluster does not answer.
        """
        code, values = self._request("GET", f"/api/jobs/{submission}", missing=True)
        if code == 404:
            return None
        return values["status"], str(values.get("message") or "")

    def stop(self, submission: str) -> None:
        """Stop a job immediately."""
        self._request("POST", f"/api/jobs/{submission}/stop", missing=True)

    def log(self, submission: str) -> str:
        """Return the output of a job's driver."""
        _, values = self._request("GET", f"/api/jobs/{submission}/logs", missing=True)
        return str((values or {}).get("logs") or "")

    def submit(self, submission: str, *, place: str) -> None:
        """Start the driver of a run with our code, unless the job exists.

        Raises:
            NoAnswer: The cluster does not answer.
            ClusterError: Ray is not installed here, or the cluster refused the job.
        """
        import studio

        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError:
            raise ClusterError(
                "Training on a cluster needs Ray here too: pip install 'adapter-studio[ray]'."
            ) from None
        if self.status(submission) is not None:
            return
        try:
            JobSubmissionClient(self.address).submit_job(
                entrypoint=f"python -m studio.cluster.driver {shlex.quote(place)}",
                submission_id=submission,
                runtime_env={
                    "py_modules": [str(Path(studio.__file__).parent)],
                    "excludes": ["**/__pycache__"],
                    "env_vars": ENVIRONMENT,
                },
                metadata={"from": "adapter-studio"},
            )
        except (ConnectionError, OSError) as error:
            raise self._no_answer(first_line(error, 120)) from None
        except RuntimeError as error:
            raise ClusterError(f"The cluster refused the run: {first_line(error)}") from None

    def _version(self) -> str:
        _, found = self._request("GET", "/api/version")
        if not isinstance(found, dict) or "ray_version" not in found:
            raise self._not_ray()
        version = str(found["ray_version"])
        numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
        if not OLDEST <= numbers < (3,):
            here = installed("ray")
            raise ClusterError(
                f"The cluster runs Ray {version}; this studio needs 2.{OLDEST[1]} or later, below 3"
                f"{f' (here is {here})' if here else ''}."
            )
        return version

    def _used(self, kind: str) -> int:
        _, answer = self._request("GET", "/api/cluster_status")
        try:
            usage = answer["data"]["clusterStatus"]["loadMetricsReport"]["usage"]
            return int(usage.get(kind, (0, 0))[0])
        except (KeyError, TypeError):  # the head has no data of its machines yet
            return 0

    def _request(self, method: str, path: str, *, missing: bool = False) -> tuple[int, Any]:
        """Return status and JSON of a response; with `missing`, 404 is a valid one."""
        import httpx

        try:
            answer = httpx.request(
                method, self.address + path, headers=_token(), timeout=TIMEOUT_SECONDS,
                follow_redirects=True,
            )  # fmt: skip
        except httpx.HTTPError as error:
            raise self._no_answer(first_line(error, 120) or type(error).__name__) from None
        if answer.status_code == 404 and missing:
            return 404, None
        if answer.status_code in (401, 403):
            raise ClusterError(
                f"The cluster at {self.address} requires a token: set RAY_AUTH_TOKEN before "
                "starting studio."
            )
        if answer.status_code >= 500:
            raise self._no_answer(f"it answered {answer.status_code}")
        try:
            return answer.raise_for_status().status_code, answer.json()
        except (httpx.HTTPStatusError, ValueError):
            raise self._not_ray() from None

    def _not_ray(self) -> ClusterError:
        return ClusterError(
            f"{self.address} is not a Ray dashboard: use the address that `ray start --head` "
            "printed, such as http://10.0.0.5:8265."
        )

    def _no_answer(self, reason: str) -> NoAnswer:
        return NoAnswer(
            f"The cluster at {self.address} does not answer ({reason or 'no answer'}): start it "
            "with `ray start --head`, or change the address on the System page."
        )


def checked_address(address: str) -> str:
    """Return the address of a dashboard as a URL.

    Raises:
        ClusterError: The address is invalid.
    """
    text = address.strip().rstrip("/")
    if text.startswith("ray://"):
        raise ClusterError(
            f"{text} is the address for Ray clients: use that of the dashboard, such as "
            f"http://{text.removeprefix('ray://').partition(':')[0]}:8265."
        )
    url = text if "://" in text else f"http://{text}"
    if not re.fullmatch(r"https?://[\w.\-\[\]:]+(/[\w./\-]*)?", url):
        raise ClusterError(f'Invalid address "{address}": use the form http://10.0.0.5:8265.')
    return url


def error_in(log: str) -> StudioError | None:
    """Return the error that a driver printed last."""
    for line in reversed(log.splitlines()):
        if line.startswith(MARK):
            with contextlib.suppress(ValueError, KeyError):
                return revived(json.loads(line.removeprefix(MARK)))
    return None


def _token() -> dict[str, str]:
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    return {"Authorization": f"Bearer {token}"} if token else {}
