"""GPUs that torch can compute on: asked once in a child process, kept for the next start.

`nvidia-smi` and the system list cards; only torch knows whether it can use them: the wheel may be
built for CPUs, the driver too old, a card without kernels in it. A card that torch cannot use is
listed with a sentence and the command that mends it, and no job is placed on it. This module never
imports torch itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from studio import atomic

ASK_SECONDS = 120.0  # the first import of torch after an installation reads gigabytes
INSTALL = 'uv pip install --torch-backend=auto --reinstall-package torch "torch>=2.10,<=2.13.0"'
ORDER = "CUDA_DEVICE_ORDER"
BUSY = 0.1  # utilization above which a measured speed is not kept
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
VISIBLE_OF = {"cuda": VISIBLE, "xpu": ("ZE_AFFINITY_MASK",)}

# Runs in the child; prints one JSON document. Every question may fail on its own.
QUESTION = """
import json, sys, time, warnings
notes = []
warnings.showwarning = lambda text, *_, **__: notes.append(str(text))
import torch

def ask(get, other):
    try:
        return get()
    except Exception as error:
        notes.append(f"{type(error).__name__}: {error}")
        return other
def card(of, index):
    found = of.get_device_properties(index)
    major, minor = getattr(found, "major", 0), getattr(found, "minor", 0)
    return {"index": index, "label": found.name, "capability": [major, minor],
            "total_bytes": found.total_memory,
            "flops": ask(lambda: flops(of, index, major), 0.0)}
def flops(of, index, major, size=4096, times=8):
    kind = torch.bfloat16 if major >= 8 else torch.float16
    place = torch.device(of.__name__.rpartition(".")[2], index)
    one = torch.ones(size, size, dtype=kind, device=place)
    for count in (2, times):  # the first products choose a kernel
        of.synchronize(place)
        started = time.perf_counter()
        for _ in range(count):
            one @ one
        of.synchronize(place)
    return 2 * size**3 * times / (time.perf_counter() - started)
answer = {"version": torch.__version__, "cuda": torch.version.cuda or "",
          "hip": torch.version.hip or "", "backend": "", "cards": []}
xpu, mps = torch.xpu, torch.backends.mps
if ask(torch.cuda.is_available, False):
    answer["backend"] = "rocm" if torch.version.hip else "cuda"
    answer["cards"] = [ask(lambda: card(torch.cuda, i), None)
                       for i in range(torch.cuda.device_count())]
    answer["kernels"] = ask(torch.cuda.get_arch_list, [])
elif ask(xpu.is_available, False):
    answer["backend"] = "xpu"
    answer["cards"] = [ask(lambda: card(xpu, i), None) for i in range(xpu.device_count())]
elif ask(mps.is_available, False):
    answer["backend"] = "mps"
elif torch.version.cuda or torch.version.hip:
    ask(torch.cuda.init, None)
answer["notes"] = notes
sys.stdout.write(json.dumps(answer))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A GPU as the driver lists it or torch sees it.

    Attributes:
        name: Its torch device, such as `cuda:0` or `xpu:0`; empty while torch does not see it.
        total_bytes: Its memory; 0 if the driver does not say (unified memory).
        free_bytes: Free memory; equals the total where only torch was asked.
        flops: FLOP/s of a large product in half precision, as measured; 0 if it was not.
        why: Why torch cannot use it, with what to do; empty if it can.
        command: The command that mends it, if there is one.
    """

    name: str
    label: str
    total_bytes: int
    free_bytes: int
    utilization: float | None = None
    capability: tuple[int, int] = (0, 0)
    flops: float = 0.0
    why: str = ""
    command: str = ""


def cards() -> list[Card]:
    """Return the GPUs of this machine, those that torch can use first, in torch's order."""
    listed = _listed()
    if not listed and not _other_signs():
        return []
    busy = any((one["utilization"] or 0) > BUSY for one in listed)
    answer = _answer(_fingerprint(listed), keep=not busy)
    if answer["backend"] == "mps":
        return []  # its memory is the system's: see `hardware`
    kind = "xpu" if answer["backend"] == "xpu" else "cuda"
    usable: list[Card] = []
    blocked: list[Card] = []
    seen: set[int] = set()
    for found in filter(None, answer["cards"]):
        match = _match(found, listed, seen)
        why = _no_kernels(found, answer)
        card = Card(
            name="" if why else f"{kind}:{found['index']}",
            label=str(match["label"] if match else found["label"]),
            total_bytes=int((match and match["total_bytes"]) or found["total_bytes"]),
            free_bytes=int((match and match["free_bytes"]) or found["total_bytes"]),
            utilization=match["utilization"] if match else None,
            capability=(int(found["capability"][0]), int(found["capability"][1])),
            flops=float(found.get("flops", 0)),
            why=why,
            command=OLDER_CARDS if why and answer["backend"] == "cuda" else "",
        )
        (blocked if why else usable).append(card)
    if not answer["cards"]:
        why, command = _why_none(answer, listed)
        blocked += [
            Card(
                name="", label=one["label"], total_bytes=one["total_bytes"],
                free_bytes=one["free_bytes"], utilization=one["utilization"], why=why,
                command=command,
            )
            for one in listed
        ]  # fmt: skip
    return usable + blocked


def has_mps() -> bool:
    """Return True if torch can use the GPU of an Apple chip."""
    return bool(_apple() and _answer(_fingerprint([]))["backend"] == "mps")


def visible_devices(device: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that leave a process the given devices alone.

    A user's own `CUDA_VISIBLE_DEVICES` stays the frame: `cuda:1` is the second card that it names.

    Args:
        device: `cpu`, `cuda:1`, `xpu:0`, or several such between commas. Others change nothing.
        environment: What the variables are now.
    """
    if device == "cpu":
        return dict.fromkeys(VISIBLE, "-1")  # HIP reads an empty text as "all"
    names = device.split(",")
    kind = device.partition(":")[0]
    if kind not in VISIBLE_OF or not all(name.startswith(f"{kind}:") for name in names):
        return {}
    indices = [int(name.removeprefix(f"{kind}:")) for name in names]
    own = next((name for name in VISIBLE_OF[kind] if environment.get(name, "").strip()), "")
    if own:
        tokens = [token.strip() for token in environment[own].split(",")]
        shown = [tokens[index] if index < len(tokens) else str(index) for index in indices]
    else:
        own, shown = VISIBLE_OF[kind][0], [str(index) for index in indices]
    order = {ORDER: environment.get(ORDER) or "PCI_BUS_ID"} if kind == "cuda" else {}
    return {**order, own: ",".join(shown)}


def fix_order() -> None:
    """Count NVIDIA's cards from now on as slots do; a user's own order stays."""
    os.environ.setdefault(ORDER, "PCI_BUS_ID")


# -- what the driver lists -------------------------------------------------------------------------


def _listed() -> list[dict[str, Any]]:
    """Return NVIDIA's cards as `nvidia-smi` lists them; `[N/A]` memory (GB10, Jetson) counts 0."""
    query = "index,uuid,driver_version,name,memory.total,memory.free,utilization.gpu"
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in answer.stdout.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != 7 or not parts[0].isdecimal():
            continue
        total, free, busy = (int(part) if part.isdecimal() else None for part in parts[4:])
        found.append({
            "index": int(parts[0]), "uuid": parts[1], "driver": parts[2], "label": parts[3],
            "total_bytes": (total or 0) << 20, "free_bytes": (free or 0) << 20,
            "utilization": None if busy is None else busy / 100,
        })  # fmt: skip
    return found


def _match(
    found: Mapping[str, Any], listed: Sequence[dict[str, Any]], seen: set[int]
) -> dict[str, Any] | None:
    """Return the listed card that is torch's card, by the user's variable, else by position."""
    tokens = os.environ.get(VISIBLE[0], "").split(",") if os.environ.get(VISIBLE[0]) else []
    index = int(found["index"])
    token = tokens[index].strip() if index < len(tokens) else str(index)
    for one in listed:
        named = token == str(one["index"]) or (len(token) > 4 and one["uuid"].startswith(token))
        if named and one["index"] not in seen:
            seen.add(one["index"])
            return one
    return None


def _other_signs() -> bool:
    return Path("/dev/kfd").exists() or "+xpu" in installed("torch") or _apple()


def _apple() -> bool:
    return sys.platform == "darwin" and platform.machine() == "arm64"


def installed(package: str) -> str:
    """Return the version of an installed package, or an empty string."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


# -- torch's answer --------------------------------------------------------------------------------


def _fingerprint(listed: Sequence[Mapping[str, Any]]) -> str:
    """Return what the answer depends on: question, torch, drivers, cards, variables, modules."""
    names = (*VISIBLE, *VISIBLE_OF["xpu"], ORDER)
    variables = [
        f"{name}={os.environ[name]}" for name in names
        if name in os.environ and (name, os.environ[name]) != (ORDER, "PCI_BUS_ID")  # asked with it
    ]  # fmt: skip
    cards = [f"{one['uuid']} {one['driver']}" for one in listed]
    question = hashlib.sha256(QUESTION.encode()).hexdigest()[:12]
    signs = [question, str(Path("/dev/kfd").exists()), sys.executable, installed("torch")]
    return " | ".join([*signs, *cards, *variables])


@cache
def _answer(fingerprint: str, *, keep: bool = True) -> dict[str, Any]:
    """Return torch's answer, kept in the user's cache folder for equal circumstances.

    One in which a card that can be used has no speed is asked for again at the next start.
    """
    file = user_cache_path("adapter-studio") / "accelerator.json"
    kept = atomic.read_object(file)  # empty: not asked yet, or half written
    if kept.get("fingerprint") == fingerprint and isinstance(kept.get("answer"), dict):
        return dict(kept["answer"])
    answer = _ask()
    usable = [one for one in answer["cards"] if one and not _no_kernels(one, answer)]
    if keep and answer["version"] and all(one.get("flops") for one in usable):
        with suppress(OSError):  # a read-only cache folder: it is asked again at the next start
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic.write(file, json.dumps({"fingerprint": fingerprint, "answer": answer}))
    return answer


def _ask() -> dict[str, Any]:
    none: dict[str, Any] = {"version": "", "cuda": "", "hip": "", "backend": "", "cards": []}
    environment = os.environ | {ORDER: os.environ.get(ORDER, "PCI_BUS_ID")}
    try:
        child = subprocess.run(
            [sys.executable, "-c", QUESTION], capture_output=True, text=True, timeout=ASK_SECONDS,
            env=environment, check=False,
        )  # fmt: skip
        answer = json.loads(child.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return none | {"notes": [str(error)]}
    return none | answer


# -- why not ---------------------------------------------------------------------------------------

OLDER_CARDS = INSTALL.replace("auto", "cu126", 1)


def _no_kernels(found: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    """Return why jobs cannot use a card that torch sees; empty if they can.

    Kernels of one major version run on every later minor version of it; PTX (`compute_90`) is
    compiled for anything newer.
    """
    if answer["backend"] != "cuda" or not answer.get("kernels"):
        return ""
    major, minor = (int(number) for number in found["capability"])
    for name in answer["kernels"]:
        kind, _, digits = str(name).partition("_")
        digits = digits.rstrip("af")
        if not digits.isdecimal():
            continue
        own_major, own_minor = int(digits[:-1]), int(digits[-1])
        if kind == "compute" and (own_major, own_minor) <= (major, minor):
            return ""
        if own_major == major and own_minor <= minor:
            return ""
    return (
        f"torch {answer['version']} has no kernels for this card (compute capability "
        f"{major}.{minor}). Install the build for CUDA 12.6, which covers older cards."
    )


def _why_none(answer: Mapping[str, Any], listed: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return why torch sees no card at all, and the command that mends it."""
    if not answer["version"]:
        return "torch could not be started, so the card cannot be used. See `studio doctor`.", ""
    hidden = next((name for name in VISIBLE if os.environ.get(name) in ("", "-1")), "")
    if hidden:
        return f"{hidden} is empty in this terminal, which hides every card. Unset it.", ""
    if not answer["cuda"] and not answer["hip"]:
        return (
            f"The installed torch {answer['version']} is built for CPUs only. Install the build "
            "for this card.",
            INSTALL,
        )
    notes = " ".join(map(str, answer.get("notes", ())))
    driver = listed[0]["driver"] if listed else ""
    if "too old" in notes or "insufficient" in notes or driver:
        return (
            f"torch {answer['version']} is built for CUDA {answer['cuda']} and cannot start on "
            f"driver {driver}. Update the driver, or install the build that fits it.",
            INSTALL,
        )
    return f"torch {answer['version']} does not see this card.", INSTALL
