"""The torch module of a GPU's kind: memory and limits of NVIDIA's and AMD's, or of Intel's."""

from __future__ import annotations

from typing import Any

import torch


def module_of(device: torch.device) -> Any:
    """Return `torch.cuda` or `torch.xpu`; None for the CPU and for Apple's GPU, which shares it."""
    return {"cuda": torch.cuda, "xpu": torch.xpu}.get(device.type)


def return_cached_memory() -> None:
    """Return what torch keeps of freed memory to every GPU."""
    for of in (torch.cuda, torch.xpu):
        if of.is_available():
            of.empty_cache()
