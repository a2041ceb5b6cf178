"""Actions on base models: list what can be trained, search the hub, download, delete."""

from jobs.actions.registry import request_action, submit
from jobs.job import OPEN, Job
from jobs.store import JobStore
from studio.models.download import DownloadRequest
from studio.models.sources import origin_of
from studio.spec import ModelSource

request_action("models.get", DownloadRequest, title="Download a model")


def download_for(store: JobStore, model: ModelSource) -> Job | None:
    """Return the job that downloads a run's model, queued if there is none; None if it is here.

    Raises:
        StudioError: The hub does not have it, or it cannot be trained here.
    """
    if origin_of(model.path).kind != "hub":
        return None
    request = DownloadRequest(model=model.path, revision=model.revision)
    for job in store.list(OPEN):
        if job.kind == request.kind:
            other = DownloadRequest.parse(job.spec)
            if (other.model, other.revision) == (request.model, request.revision):
                return job
    return submit(store, request)
