"""Errors that users may see, by exit code and kind; anything else is a bug and may crash."""

import difflib
import errno
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar


class StudioError(Exception):
    """Error with a text for the user: what failed, the value, what to do next."""

    kind: ClassVar[str] = "studio"
    exit_code: ClassVar[int] = 3

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def as_dict(self) -> dict[str, str]:
        """Return the error as every `--json` command prints it."""
        return {"kind": self.kind, "text": self.text}


class InputError(StudioError):
    """Invalid input; nothing was changed."""

    kind = "input"
    exit_code = 2


class SpecError(InputError):
    """A field is unknown, missing or out of bounds; `titles` are those of the fields it names."""

    kind = "spec"

    def __init__(
        self, text: str, *, field: str = "", titles: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(text)
        self.field, self.titles = field, titles or {}


class ModelError(InputError):
    """A model cannot be found, read or used."""

    kind = "model"


class DataError(InputError):
    """A dataset cannot be found or read, or has nothing to train on."""

    kind = "data"


class MethodError(InputError):
    """A method does not fit this model, or adapters cannot be combined."""

    kind = "method"


class AdapterError(InputError):
    """An adapter cannot be found, is unsafe, broken, or made for another base."""

    kind = "adapter"


class HomeError(InputError):
    """The home folder or its database cannot be used."""

    kind = "home"


class QueueError(InputError):
    """A job does not exist or does not allow the operation."""

    kind = "queue"


class Unreached(InputError):
    """The hub cannot be reached; a retry may succeed."""

    kind = "network"


class ChatError(InputError):
    """A prompt or lane cannot be answered."""

    kind = "chat"


class ServeError(InputError):
    """The web server cannot start."""

    kind = "serve"


class RunError(StudioError):
    """A job started and failed."""

    kind = "run"


class OutOfMemory(RunError):
    """The device ran out of memory."""

    kind = "out_of_memory"


class WeightsTooLarge(OutOfMemory):
    """The base model's weights alone do not fit on the device; smaller batches do not help."""

    kind = "weights_too_large"


class DiskFull(RunError):
    """The disk is full; `folder` is on it, where that is known and not the home."""

    kind = "disk_full"

    def __init__(self, text: str, *, folder: Path | None = None) -> None:
        super().__init__(text)
        self.folder = folder


class DeviceLost(RunError):
    """A device failed or disappeared while in use."""

    kind = "device_lost"


class ProcessLost(RunError):
    """A process of a distributed run was killed; the run can resume from its checkpoint."""

    kind = "process_lost"


class ClusterError(RunError):
    """The Ray cluster cannot run the job: its packages, version, devices or storage."""

    kind = "cluster"


class JudgeFailed(RunError):
    """A judge cannot be reached, or does not answer in the form asked."""

    kind = "judge"


class GateFailed(RunError):
    """A measured figure missed the bound that was set for it."""

    kind = "gate"


class Diverged(RunError):
    """The loss became NaN or infinite."""

    kind = "diverged"


def is_disk_full(error: BaseException) -> bool:
    """Return True if an error of Python or a library reports a full disk or an exhausted quota."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    words = ("no space left", "os error 28", "disk quota exceeded")
    return any(word in str(error).lower() for word in words)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if the process or a device is out of memory; torch has no one type for it."""
    if isinstance(error, MemoryError | OutOfMemory):
        return True
    words = (
        "out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc",
        "cublas_status_alloc_failed", "cudnn_status_alloc_failed", "hip out of memory",
        "not enough memory", "failed to allocate",
    )  # fmt: skip
    return any(word in str(error).lower() for word in words)


def first_line(error: BaseException, most: int = 300) -> str:
    """Return the first line of an error's text, cut after `most` characters."""
    return (str(error).strip().splitlines() or [""])[0][:most]


def revived(values: dict[str, str]) -> StudioError:
    """Return the error that `as_dict` of another process describes."""
    kinds = {cls.kind: cls for cls in _with_children(StudioError) if "kind" in vars(cls)}
    return kinds.get(values["kind"], RunError)(values["text"])


def _with_children(root: type[StudioError]) -> Iterator[type[StudioError]]:
    yield root
    for child in root.__subclasses__():
        yield from _with_children(child)


def nearest(word: str, names: Iterable[str]) -> str:
    """Return ' Did you mean "x"?' for the closest names, or a short list of all names."""
    known = sorted(set(names))
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    likeness = [difflib.SequenceMatcher(a=name, b=word).ratio() for name in close]
    close = [name for name, part in zip(close, likeness, strict=True) if part > likeness[0] - 0.2]
    if close:
        return " Did you mean " + " or ".join(f'"{name}"' for name in close) + "?"
    if 0 < len(known) <= 12:
        return " Known: " + ", ".join(known) + "."
    return ""


TRANSPORT = {"TransportError", "OfflineModeIsEnabled", "LocalEntryNotFoundError"}


def is_transient(error: BaseException) -> bool:
    """Return True if a retry may succeed: a timeout, an unreachable host, HTTP 408, 429 or 5xx."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "LocalEntryNotFoundError" in kinds and error.__cause__ is not None:
        return is_transient(error.__cause__)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status in (408, 429) or status >= 500
    if isinstance(error, ConnectionError | TimeoutError) or kinds & TRANSPORT:
        return True
    return type(error) is OSError and error.errno is None  # what arrived was not whole
