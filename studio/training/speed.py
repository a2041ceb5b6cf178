"""How many products a second a device makes: what runs here reached, else a guess from its kind."""

from __future__ import annotations

import json
import math
from pathlib import Path

from studio import hardware
from studio.errors import StudioError
from studio.home import Home

FLOPS_PER_CORE = 2.5e10
GPU_FLOPS = 6e13
SPEED = "speed.json"


def speed(device: hardware.Device, home: Home | None) -> float:
    """Return FLOP/s: what the last run here reached, else a guess from the kind of device."""
    if home is not None:
        try:
            return float(json.loads((home.state / SPEED).read_text())[device.name])
        except (OSError, ValueError, KeyError, TypeError):
            pass
    return GPU_FLOPS if device.name != "cpu" else FLOPS_PER_CORE * hardware.threads()


def note_speed(home: Home, device: str, flops_per_second: float) -> None:
    """Remember what a run reached, for the next estimate."""
    if not math.isfinite(flops_per_second) or flops_per_second <= 0:
        return
    path: Path = home.state / SPEED
    try:
        known = json.loads(path.read_text()) if path.is_file() else {}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({**known, device: flops_per_second}))
        temporary.replace(path)
    except (OSError, ValueError, StudioError):
        return
