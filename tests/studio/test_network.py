"""What may pass by itself is told from what will not, whichever library raised it."""

import errno

import httpx
import pytest
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from studio.errors import is_transient


def answered(status: int) -> HfHubHTTPError:
    asked = httpx.Request("GET", "http://127.0.0.1/")
    return HfHubHTTPError("no", response=httpx.Response(status, request=asked))


def not_found(cause: BaseException | None) -> LocalEntryNotFoundError:
    error = LocalEntryNotFoundError("not here")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("fault", "passes"),
    [
        (httpx.ConnectError("refused"), True),
        (httpx.ReadTimeout("slow"), True),
        (httpx.RemoteProtocolError("cut"), True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (TimeoutError(), True),
        (OSError("Consistency check failed"), True),
        (answered(503), True),
        (answered(429), True),
        (answered(401), False),
        (answered(403), False),
        (not_found(None), True),
        (not_found(httpx.ConnectError("refused")), True),
        (not_found(answered(403)), False),
        (PermissionError(errno.EACCES, "denied"), False),
        (OSError(errno.EROFS, "read-only"), False),
        (DatasetNotFoundError("nobody has it"), False),
        (ValueError("ours"), False),
    ],
    ids=repr,
)
def test_what_may_pass_by_itself(fault, passes):
    assert is_transient(fault) is passes


def test_the_hubs_own_client_is_understood():
    from huggingface_hub.utils import get_session

    with pytest.raises(Exception) as caught:  # whatever its client raises where nobody listens
        get_session().get("http://127.0.0.1:9/")
    assert is_transient(caught.value)
