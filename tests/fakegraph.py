"""Captured CUDA graphs on the simulated GPU, held to the rules of real ones."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.fakegpu import log, on_gpu, quiet


class Graph(TorchDispatchMode):
    """A captured graph: replay repeats every operation on the same storages, in one launch.

    Capturing records and computes nothing: what it made is NaN until the first replay. Waiting for
    the GPU and uploads raise. A tensor of others that it reads must still be there at a replay.
    """

    def capture_begin(self, **_):
        if log.current != log.device:  # its stream would be another card's
            raise RuntimeError(f"capturing on {log.current}, not on {log.device}")
        self.steps, self.own, self.before = [], {}, {}
        log.capturing = self
        self.__enter__()

    def capture_end(self):
        self.__exit__(None, None, None)
        log.capturing = None
        for storage, bytes in self.before.values():
            storage.copy_(bytes)
        for storage in self.own.values():
            storage.fill_(255)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with quiet(), torch._C.DisableTorchFunction():
            given = {s._cdata: s for s in map(_storage, tree_leaves((args, kwargs))) if s}
            for key, storage in given.items() if func._schema.is_mutable else ():
                if key not in self.own and key not in self.before:
                    self.before[key] = storage, storage.clone()
        out = func(*args, **(kwargs or {}))
        with quiet(), torch._C.DisableTorchFunction():
            made = {s._cdata: s for s in map(_storage, tree_leaves(out)) if s}
            self.own |= {key: s for key, s in made.items() if key not in given}
            if func._schema.is_mutable or not made.keys() & given.keys():  # else a view
                self.steps.append((func, *(tree_map(self._held, x) for x in (args, kwargs, out))))
        return out

    def _held(self, t):
        storage = _storage(t)
        if storage is None or (storage._cdata not in self.own and not on_gpu(t)):
            return t  # a number on the host becomes part of the kernel's arguments
        shape = (t.dtype, t.storage_offset(), t.size(), t.stride())
        return _Held(self.own.get(storage._cdata) or StorageWeakRef(storage), *shape)

    def replay(self):
        log.refuse("replay")
        with quiet(), torch._C.DisableTorchFunction(), torch.no_grad():
            for func, args, kwargs, outs in self.steps:
                found = func(*tree_map(_found, args), **(tree_map(_found, kwargs) or {}))
                for t, held in zip(tree_leaves(found), tree_leaves(outs), strict=True):
                    if isinstance(held, _Held) and not func._schema.is_mutable:
                        _found(held).copy_(t)
        log.launches += 1
        log.ops["replay"] += 1


def _storage(t):
    return t.untyped_storage() if isinstance(t, torch.Tensor) else None


@dataclass(frozen=True)
class _Held:
    """A tensor of a graph, by its storage."""

    storage: Any
    dtype: torch.dtype
    offset: int
    size: torch.Size
    stride: tuple[int, ...]


def _found(held):
    if not isinstance(held, _Held):
        return held
    storage = held.storage
    if isinstance(storage, StorageWeakRef):
        if storage.expired():
            raise RuntimeError("fakegpu: a graph reads memory that was freed")
        storage = torch.UntypedStorage._new_with_weak_ptr(storage.cdata)
    return torch.empty(0, dtype=held.dtype).set_(storage, held.offset, held.size, held.stride)
