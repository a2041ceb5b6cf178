"""Choose the Triton kernels of a run: those that are right and faster than their plain form here.

Before the first run on a card, a child process compares each kernel with its plain form on usual
and odd sizes, and times both. A kernel that differs, is slower, or cannot be compiled is not used.
It is a child because a wrong kernel may end its process, or make the card unusable to it; it ends
with its parent, and when the run is stopped. The result is kept in the home per card, precision and
version of torch, Triton and the kernels. If a kernel was not measured, the cause may pass: that is
kept `PATIENCE` times as long as it took.

This module imports torch only where it computes: `studio doctor` reads the results.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio import atomic
from studio.errors import first_line, is_out_of_memory

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from studio.backbone.linear_kernels import Kernels
    from studio.home import Home
    from studio.models.loading import Loaded
    from studio.spec import RunSpec

logger = logging.getLogger(__name__)
CHECK_SECONDS = 300.0  # compiling two dozen kernels takes about a tenth of it
MEMORY = "not enough free memory to check it"
LATE = f"its check did not end within {CHECK_SECONDS:.0f} s"
PATIENCE = 60
NF4_BLOCK = 64
TOLERANCES = {"float32": 1e-4, "float16": 4e-3, "bfloat16": 3e-2}  # 4 units in the last place
CALLS, ROUNDS = 20, 3
POLL_SECONDS = 0.2
Result = dict[str, Any]
Stopped = Callable[[], bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """Sizes of the tensors that a kernel is checked on."""

    rows: int
    hidden: int
    inner: int
    heads: int
    head_dim: int
    vocabulary: int


ODD = Size(rows=37, hidden=200, inner=300, heads=3, head_dim=40, vocabulary=5003)
USUAL = Size(rows=1024, hidden=4096, inner=8192, heads=32, head_dim=128, vocabulary=32_000)


def prepare(
    spec: RunSpec, loaded: Loaded, home: Home, stopped: Stopped = lambda: False
) -> str:  # fmt: skip
    """Choose the kernels that this process uses; return what a user should know, once per card.

    `stopped` is asked while kernels are checked; True ends that, and none are used.
    """
    from studio.backbone.linear_kernels import activate

    device, dtype, text = loaded.device, loaded.dtype, ""
    if device.type != "cuda":
        return ""
    activate(device, dtype, {})
    try:
        if key := _key(spec, loaded):
            known = kernel_results(home)
            if (found := known.read().get(key)) is None:
                found = _checked(loaded, stopped)
                if not found["kernels"]:
                    return ""
                text = " ".join(_sentences(found, known.file))
                known.keep(key, found)
            good = [name for name, one in found["kernels"].items() if not one["why"]]
            activate(device, dtype, {name: _kernels()[name] for name in good})
    except Exception:  # a run needs no kernels
        logger.exception("no Triton kernels")
        text = "Triton kernels not used: choosing them failed, for a reason given in the log."
    return text


def is_due(spec: RunSpec, loaded: Loaded, home: Home) -> bool:
    """Return True if `prepare` would check the kernels, which takes up to `CHECK_SECONDS`."""
    return _key(spec, loaded) not in ("", *kernel_results(home).read())


def installed() -> bool:
    """Return True if Triton is here; torch's own builds for GPUs bring it on Linux."""
    found = util.find_spec("triton")
    return found is not None and found.origin is not None  # a folder of that name has none


@dataclass(frozen=True, slots=True)
class CardResults:
    """Results that a home keeps by card, precision and versions: records that have `part`."""

    file: Path
    part: str

    def read(self) -> dict[str, Result]:
        """Return those that still count."""
        return {
            key: one for key, one in atomic.read_object(self.file).items()
            if isinstance(one, dict) and self.part in one
            and one.get("until", math.inf) > time.time()
        }  # fmt: skip

    def keep(self, key: str, result: Result) -> None:
        """Add a result to those of the file now: another process may have added one meanwhile."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        atomic.write(self.file, json.dumps(self.read() | {key: result}))


def kernel_results(home: Home) -> CardResults:
    """Return the results of the check of kernels."""
    return CardResults(home.state / "kernels.json", "kernels")


def graph_results(home: Home) -> CardResults:
    """Return the results of captured decoding (`chat/captured_decoding.py`)."""
    return CardResults(home.state / "graphs.json", "why")


def card_key(device: torch.device, dtype: torch.dtype, *more: str) -> str:
    """Return the key of a card's result at a precision."""
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    card, kind = torch.cuda.get_device_name(device), str(dtype).removeprefix("torch.")
    return " / ".join([card, f"{major}.{minor}", kind, *more])


def sentences(home: Home) -> list[str]:
    """Return why kernels are not used on cards of this home, for the installed versions."""
    suffix = " / ".join(_versions()) if installed() else "-"
    here = f"{_version('torch')} / {_version('transformers')}"
    graphs, kernels = graph_results(home), kernel_results(home)
    plain = [
        f"Answers are decoded without captured CUDA graphs on {key}: {one['why']}. Delete "
        f"{graphs.file} to check again."
        for key, one in graphs.read().items()
        if one["why"] and key.endswith(here)
    ]
    return plain + [
        text for key, one in kernels.read().items() if key.endswith(suffix)
        for text in _sentences(one, kernels.file)
    ]  # fmt: skip


def _key(spec: RunSpec, loaded: Loaded) -> str:
    """Return the key of a run's result; empty if it uses no kernels."""
    device, known = loaded.device, str(loaded.dtype).removeprefix("torch.") in TOLERANCES
    wanted = device.type == "cuda" and spec.train.triton_kernels and known
    return card_key(device, loaded.dtype, *_versions()) if wanted and installed() else ""


def _checked(loaded: Loaded, stopped: Stopped) -> Result:
    """Return a new result, with the time until which it counts if a kernel was not measured."""
    import torch

    from studio.backbone.linear_kernels import indexed

    device, kind = indexed(loaded.device), str(loaded.dtype).removeprefix("torch.")
    started, asked = time.time(), ask(str(device), kind, stopped)
    found: Result = {"card": torch.cuda.get_device_name(device), "dtype": kind, "kernels": asked}
    if any(one["why"] and "error" not in one for one in asked.values()):
        found["until"] = time.time() + PATIENCE * (time.time() - started)
    return found


def _sentences(result: Result, file: Path) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for name, one in result["kernels"].items():
        if one["why"]:
            by_reason.setdefault(one["why"], []).append(name)
    return [
        f"Triton kernels not used on {result['card']} in {result['dtype']}: {', '.join(names)} "
        f"({why}). torch's own operations compute the same; delete {file} to check again."
        for why, names in by_reason.items()
    ]


def _versions() -> list[str]:
    source = Path(__file__).parents[1] / "backbone" / "triton_kernels.py"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    return [_version("torch"), _version("triton"), digest]


def _version(module: str) -> str:
    """Return the version of a module's distribution, which may have another name."""
    for name in (lambda: module, lambda: metadata.packages_distributions()[module][0]):  # slow
        with suppress(Exception):  # no metadata, or damaged
            return str(metadata.version(name()))
    return "unknown"


def _kernels() -> Kernels:
    from studio.backbone.triton_kernels import KERNELS

    return KERNELS


# -- the child process -----------------------------------------------------------------------------


def ask(device: str, dtype: str, stopped: Stopped = lambda: False) -> dict[str, Result]:
    """Return each kernel's result, measured in a child process; empty if the run was stopped."""
    command = [sys.executable, "-P", "-m", "studio.training.kernel_check", device, dtype]
    end, alive = os.pipe()  # the child reads it: it ends with this process
    deadline = time.monotonic() + CHECK_SECONDS
    try:
        child = subprocess.Popen(
            command, stdin=end, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            process_group=0,
        )  # fmt: skip
        try:
            while True:
                try:
                    said, errors = child.communicate(timeout=POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    if stopped():
                        return {}
                    if time.monotonic() > deadline:
                        return {"all": {"why": LATE}}
        finally:
            if child.poll() is None:
                _kill_group(child.pid)  # with compilers that it started
                child.wait()
            for pipe in filter(None, (child.stdout, child.stderr)):
                pipe.close()
        logger.debug("%s", errors)
        return dict(json.loads(said.splitlines()[-1]))
    except OSError as error:
        return {"all": {"why": str(error)}}
    except (ValueError, IndexError):
        return {"all": {"why": f"its check ended with exit code {child.returncode}"}}
    finally:
        os.close(end)
        os.close(alive)


def _kill_group(leader: int) -> None:
    if sys.platform == "win32":
        os.kill(leader, signal.SIGTERM)
    else:
        os.killpg(leader, signal.SIGKILL)


def _end_with_parent() -> None:
    """End this process and the compilers that it started when standard input closes."""
    sys.stdin.buffer.read()
    _kill_group(os.getpid())


def main() -> None:
    """Print the results for a device and precision as one line of JSON."""
    import torch

    import studio.backbone.activation_memory
    import studio.training.loss  # noqa: F401 (both name their plain forms)

    device, dtype = torch.device(sys.argv[1]), getattr(torch, sys.argv[2])
    print(json.dumps(measure(device, dtype, _kernels())))


def measure(
    device: torch.device, dtype: torch.dtype, kernels: Kernels,
    sizes: tuple[Size, ...] = (ODD, USUAL),
) -> dict[str, Result]:  # fmt: skip
    """Compare kernels with their plain forms on all sizes, and time both on the last.

    Returns:
        For each kernel `error`, `milliseconds` and those of its plain form, and `why` it is not to
        be used; empty if it is.
    """
    from studio.backbone.linear_kernels import PLAIN

    found: dict[str, Result] = {}
    for name, kernel in kernels.items():
        try:
            found[name] = _measured(kernel, PLAIN[name], name, device, dtype, sizes)
        except Exception as error:  # of compiler or driver: whatever it is, the plain form is used
            text = f"{type(error).__name__}: {first_line(error, 200)}"
            why = MEMORY if is_out_of_memory(error) else text
            found[name] = {"why": why}
    return found


def _measured(
    kernel: Callable[..., Any], plain: Callable[..., Any], name: str, device: torch.device,
    dtype: torch.dtype, sizes: tuple[Size, ...],
) -> Result:  # fmt: skip
    error, allowed = 0.0, TOLERANCES[str(dtype).removeprefix("torch.")]
    for size in sizes:
        for args in samples(name, size, device, dtype):
            error = max(error, difference(kernel, plain, args), key=_nan_first)
    if not error <= allowed:
        return {"error": error, "why": f"its result differs by {error:.2g}, allowed {allowed:.2g}"}
    args = samples(name, sizes[-1], device, dtype)[0]
    own, theirs = (milliseconds(partial(one, *args), device) for one in (kernel, plain))
    why = f"{own:.3g} ms, {theirs:.3g} without it" if own > theirs else ""
    return {"error": error, "milliseconds": own, "plain_milliseconds": theirs, "why": why}


def samples(
    name: str, size: Size, device: torch.device, dtype: torch.dtype
) -> list[tuple[Any, ...]]:
    """Return lists of arguments for a kernel; the first has what a training step has."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    rows, hidden, inner = size.rows, size.hidden, size.inner
    if name == "rms_norm":
        return [(draw(rows, hidden), draw(hidden), 1e-6)]
    if name == "rms_norm_gradient":
        scale = draw(rows, 1).abs().float() + 0.1
        return [(draw(rows, hidden), draw(hidden), scale, draw(rows, hidden))]
    if name == "swiglu":
        return [(draw(rows, inner), draw(rows, inner))]
    if name == "swiglu_gradient":
        return [tuple(draw(rows, inner) for _ in range(4))]
    if name == "rotated":
        x = draw(rows, size.heads, size.head_dim).transpose(0, 1)[None]
        angles = draw(rows, size.head_dim), draw(rows, size.head_dim)
        return [(x, *angles, False), (x, *angles, True)]
    if name.startswith("nf4"):
        from studio.models.quantization import quantised

        width = -(-hidden // NF4_BLOCK) * NF4_BLOCK
        weight = quantised(draw(inner, width), 4)
        inputs, outer = draw(rows, width), draw(rows, inner)
        if name == "nf4_product":
            return [(inputs, weight, None), (inputs, weight, draw(inner))]
        return [(outer, weight, None), (outer, weight, inputs)]
    targets = torch.randint(size.vocabulary, (-(-rows // 4),), generator=generator).to(device)
    logits = draw(len(targets), size.vocabulary) * 3
    return [(logits, targets, 0.0), (logits, targets, 0.1)]


def difference(
    kernel: Callable[..., Any], plain: Callable[..., Any], args: tuple[Any, ...]
) -> float:
    """Return the largest difference of results and of arguments written to.

    It is relative to a number's size and to that of all numbers, `|f − e| / (|e| + rms(e))`; `e` is
    computed by the plain form in float32.
    """
    import torch

    def wide(one: Any) -> Any:
        floating = isinstance(one, torch.Tensor) and one.is_floating_point()
        return one.to(torch.float32, copy=True) if floating else one

    own, others, worst = copy.deepcopy(args), tuple(map(wide, args)), 0.0  # a copy keeps strides
    results = [kernel(*own), plain(*others)]
    found, expected = (
        [x for x in (*(y if isinstance(y, tuple) else (y,)), *given) if isinstance(x, torch.Tensor)]
        for y, given in zip(results, (own, others), strict=True)
    )
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape:
            return float("nan")
        other = other.float()
        scale = other.abs() + other.square().mean().sqrt() + 1e-30
        if one.numel():
            error = float(((one.float() - other).abs() / scale).max())
            worst = max(worst, error, key=_nan_first)
    return worst


def _nan_first(value: float) -> tuple[bool, float]:
    return value != value, value


def milliseconds(call: Callable[[], Any], device: torch.device, calls: int = CALLS) -> float:
    """Return the shortest mean time of a call."""
    import torch

    found = []
    for count in (2, *[calls] * ROUNDS):  # the first calls compile
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(count):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append((time.perf_counter() - started) / count * 1e3)
    return min(found[1:])


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    main()
