"""Simulate `cuda:0` on a CPU-only torch: real numbers, forward and backward, held to CUDA's rules.

A storage is "on the GPU" if it was made there (`device=cuda`, `.to("cuda")`) or results from an
operation that read one. Three layers:

- a function mode sees `device=`, `.to`, `.cpu`, `.cuda`, `.tolist`, `.numpy`, `pin_memory=`;
- a dispatch mode sees every aten call, those of the backward pass too. It raises where CUDA would
  (two devices, a generator of the wrong device), counts launches, and records where the host waits
  (item, nonzero, a boolean index, a copy to the host);
- `torch.cuda` is replaced, and `Tensor.device` answers `cuda:0`.

It cannot see kernels (what they refuse or round), streams, memory, speed, code that asks C++ for
the device, or libraries with kernels of their own.
"""

import contextlib
import sys
import traceback
from collections import Counter
from unittest import mock

import torch
import torch.nn.utils.clip_grad as clip
from accelerate.state import AcceleratorState, PartialState
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from studio import hardware
from studio.backbone import attention_kernels, linear_kernels
from studio.training import kernel_check

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")
MPS, XPU = torch.device("mps:0"), torch.device("xpu:0")
_getter = torch._C.TensorBase.device


def _true(t):
    with torch._C.DisableTorchFunction():
        return _getter.__get__(t)


_here: dict[int, StorageWeakRef] = {}
aten = torch.ops.aten
MAY_MIX = {
    aten.index.Tensor, aten.index_put.default, aten.index_put_.default,
    aten._index_put_impl_.default, aten.copy_.default, aten._unsafe_index.Tensor,
}  # fmt: skip
WAITS = {
    aten._local_scalar_dense.default: "item", aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select", aten.equal.default: "equal",
    aten.unique_consecutive.default: "unique", aten._unique2.default: "unique",
    aten.repeat_interleave.Tensor: "repeat_interleave", aten.bincount.default: "bincount",
}  # fmt: skip


def on_gpu(t) -> bool:
    if type(t).__name__ == "DTensor":  # a shard
        t = t._local_tensor
    if not isinstance(t, torch.Tensor) or _true(t).type != "cpu":
        return False
    with torch._C.DisableTorchFunction():
        ref = _here.get(t.untyped_storage()._cdata)
    return ref is not None and not ref.expired()


def put(t):
    """Say that a tensor's storage is on the GPU."""
    if isinstance(t, torch.Tensor) and _true(t).type == "cpu":
        with torch._C.DisableTorchFunction():
            s = t.untyped_storage()
        _here[s._cdata] = StorageWeakRef(s)  # keeps the address from being used again
    return t


def _is_gpu(d) -> bool:
    named = torch.device(f"{log.device.type}:{d}" if isinstance(d, int) else d)
    return named.type == log.device.type


def _check_precision(t):
    if log.device.type == "mps" and isinstance(t, torch.Tensor) and t.dtype == torch.float64:
        raise TypeError(
            "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support "
            f"float64 (at {log.where()})"
        )


class Log:
    """What happened since `clear`: host waits and uploads by place, launches by operation."""

    quiet, device, capturing, current = False, GPU, None, None
    honest = False  # inside a library whose operations run on the CPU here
    all, full_at = 0, 0  # launches so far, and the one for which there is no memory

    def __init__(self):
        self.clear()

    def clear(self):
        self.waits, self.up, self.ops, self.launches = Counter(), Counter(), Counter(), 0

    def where(self):
        """Return the last line of the studio on the stack, and the library's line that waits."""
        passed = ("fakegpu", "_python_dispatch", "overrides.py", "_compile.py", "_contextlib",
                  "eval_frame")  # fmt: skip
        walk = traceback.walk_stack(sys._getframe())
        stack = traceback.StackSummary.extract(walk, lookup_lines=False)
        frames = [f for f in reversed(stack) if not any(name in f.filename for name in passed)]
        own = [f for f in frames if "/studio/" in f.filename and "site-packages" not in f.filename
               and "/tests/" not in f.filename]  # fmt: skip
        if not own:
            return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        place = f"{own[-1].filename.rpartition('/studio/')[2]}:{own[-1].lineno}"
        if frames[-1] is not own[-1]:
            place += f" <- {'/'.join(frames[-1].filename.split('/')[-2:])}:{frames[-1].lineno}"
        return place

    def refuse(self, what):
        if self.capturing:
            raise RuntimeError(f"CUDA error: {what} while capturing, at {self.where()}")

    def upload(self, what):
        self.refuse(what)
        self.up[f"{what} @ {self.where()}"] += 1

    def wait(self, what):
        self.refuse(what)
        if not self.quiet:
            self.waits[f"{what} @ {self.where()}"] += 1


log = Log()
NO_KERNEL = {
    "view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "split",
    "split_with_sizes", "detach", "alias", "unsqueeze", "squeeze", "as_strided", "empty",
    "empty_like", "new_empty", "reshape", "_reshape_alias", "unbind", "empty_strided",
    "new_empty_strided", "chunk", "diagonal", "unfold", "lift_fresh",
}  # fmt: skip


class Rules(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        tensors = [t for t in leaves if isinstance(t, torch.Tensor)]
        gpu = [on_gpu(t) for t in tensors]
        some = any(gpu)
        if some:
            others = [t for t, g in zip(tensors, gpu, strict=True) if not g and t.dim() > 0]
            if others and func not in MAY_MIX:
                shapes = [tuple(t.shape) for t in others]
                raise RuntimeError(
                    f"fakegpu: tensors on cuda:0 and cpu {shapes} in {func} at {log.where()}"
                )
            for g in leaves:
                if isinstance(g, torch.Generator) and g.device.type == "cpu":
                    raise RuntimeError(f"fakegpu: a CPU generator in {func} at {log.where()}")
            if func in WAITS and not (
                func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is not None
            ):
                log.wait(WAITS[func])
            if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
                for i in args[1]:
                    if isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8):
                        log.wait("boolean index")
                    if isinstance(i, torch.Tensor) and not on_gpu(i):
                        log.upload("host index")
            if func is aten.copy_.default:
                a, b = on_gpu(args[0]), on_gpu(args[1])
                if a and not b:
                    log.upload("copy_ up")
                if b and not a:
                    log.wait("copy_ home")
            name = func._schema.name.split("::")[1]
            if name.rstrip("_") not in NO_KERNEL and name not in NO_KERNEL:
                log.launches += 1
                log.ops[name] += 1
                log.all += 1
                if log.all == log.full_at:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        log.honest, was = func.namespace == "bitsandbytes" or log.honest, log.honest
        try:
            out = func(*args, **kwargs)
        finally:
            log.honest = was
        if some and func is not aten.copy_.default and func is not aten._local_scalar_dense.default:
            for t in tree_leaves(out):
                _check_precision(put(t))
        return out


def _moved(t, to_gpu: bool, non_blocking: bool):
    """A tensor on the other device: never the same storage."""
    here = on_gpu(t)
    if here == to_gpu or _true(t).type != "cpu":
        return t
    with torch._C.DisableTorchFunctionSubclass(), quiet():
        copied = t.clone() if not t.requires_grad else _Move.apply(t, to_gpu)
        if isinstance(t, torch.nn.Parameter) and not torch.is_grad_enabled():
            copied = copied.detach()
    if to_gpu:
        _check_precision(put(copied))
        log.upload(f"to gpu{' async' if non_blocking else ''}")
    else:
        log.wait("copy home")
    return copied


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx, t, to_gpu):
        ctx.to_gpu = to_gpu
        made = t.detach().clone()
        return put(made) if to_gpu else made

    @staticmethod
    def backward(ctx, g):
        made = g.clone()
        if not ctx.to_gpu:
            put(made)
        return made, None


@contextlib.contextmanager
def quiet():
    """Without our rules, for moving itself."""
    with torch.utils._python_dispatch._disable_current_modes():
        yield


class Places(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.to:
            return self._to(func, args, kwargs)
        if func is torch.Tensor.cpu:
            return _moved(args[0], False, False)
        if func is torch.Tensor.cuda:
            return _moved(args[0], True, kwargs.get("non_blocking", False))
        if args and isinstance(args[0], torch.Tensor) and on_gpu(args[0]):
            if func is torch.Tensor.tolist:
                log.wait("tolist")
                return func(*args, **kwargs)
            if func in (torch.Tensor.numpy, torch.Tensor.__array__):
                raise TypeError(
                    f"fakegpu: can't convert cuda:0 device type tensor to numpy at {log.where()}"
                )
            if func is torch.Tensor.record_stream:
                return None
            if func is torch.Tensor.is_cuda.__get__:
                return True
            if func is torch.Tensor.pin_memory:
                raise RuntimeError("fakegpu: only CPU tensors can be pinned")
        kwargs.pop("pin_memory", None)
        device = kwargs.get("device")
        if device is not None and not isinstance(device, torch.Tensor) and _is_gpu(device):
            kwargs["device"] = "cpu"
            if func in (torch.tensor, torch.as_tensor):
                log.upload("torch.tensor(device=)")
            out = func(*args, **kwargs)
            for t in tree_leaves(out):
                _check_precision(put(t))
            return out
        if (
            device is not None
            and torch.device(device).type == "cpu"
            and args
            and isinstance(args[0], torch.Tensor)
            and on_gpu(args[0])
        ):
            with quiet():
                return func(*args, **kwargs)  # zeros_like(x, device="cpu")
        return func(*args, **kwargs)

    def _to(self, func, args, kwargs):
        t, rest = args[0], list(args[1:])
        want, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
        other = kwargs.pop("other", None)
        nb, copy = kwargs.pop("non_blocking", False), kwargs.pop("copy", False)
        if rest and isinstance(rest[0], torch.Tensor):
            other = rest.pop(0)
        elif rest and (
            isinstance(rest[0], (torch.device, str))
            or (isinstance(rest[0], int) and not isinstance(rest[0], bool))
        ):
            want = rest.pop(0)
            if rest and (rest[0] is None or isinstance(rest[0], torch.dtype)):
                dtype = rest.pop(0) or dtype
        elif rest and isinstance(rest[0], torch.dtype):
            dtype = rest.pop(0)
        if rest:
            nb = rest.pop(0)
        if rest:
            copy = rest.pop(0)
        if other is not None:
            want, dtype = (log.device if on_gpu(other) else _true(other)), other.dtype
        if want is not None:
            d = torch.device(f"{log.device.type}:{want}" if isinstance(want, int) else want)
            if d.type in (log.device.type, "cpu") and _true(t).type == "cpu":
                t = _moved(t, d.type != "cpu", nb)
            else:
                kwargs["device"] = d
        if dtype is not None:
            kwargs["dtype"] = dtype
        return func(t, copy=copy, **kwargs) if kwargs or copy else t


class Event:
    def __init__(self, *a, **k):
        pass

    def record(self, *a):
        pass

    def synchronize(self):
        pass

    def wait(self, *a):
        pass

    def query(self):
        return True

    def elapsed_time(self, o):
        return 1.0


class Stream(Event):
    def wait_stream(self, s):
        pass

    def wait_event(self, e):
        pass

    def record_event(self, e=None):
        return Event()


@contextlib.contextmanager
def fake_gpu(
    *, device=GPU, capability=(8, 6), free=12 << 30, total=12 << 30, triton=False, count=1
):
    """Give torch one GPU, and the studio `count` cards of that memory; yields the log.

    It is NVIDIA's, or under the name `mps` or `xpu` that of a kind without `torch.cuda`.

    With `triton`, every kernel has passed its check, and its plain form counts as one launch.
    """
    from tests.fake_varlen import varlen
    from tests.fakegraph import Graph

    class Properties:
        name, total_memory, major, minor, multi_processor_count = "Fake RTX", total, *capability, 28
        warp_size, gcnArchName = 32, ""

    stub = dict(
        is_available=lambda: True,
        device_count=lambda: count,
        current_device=lambda: device.index,
        set_device=lambda d: None,
        get_device_capability=lambda d=None: capability,
        get_device_properties=lambda d=None: Properties,
        get_device_name=lambda d=None: "Fake RTX",
        mem_get_info=lambda d=None: (free, total),
        max_memory_allocated=lambda d=None: 123 << 20,
        memory_allocated=lambda d=None: 1 << 20,
        reset_peak_memory_stats=lambda d=None: None,
        max_memory_reserved=lambda d=None: 130 << 20,
        empty_cache=lambda: None,
        synchronize=lambda d=None: log.wait("synchronize"),
        Stream=lambda *a, **k: Stream(),
        Event=Event,
        CUDAGraph=Graph,
        current_stream=lambda d=None: Stream(),
        stream=lambda s: contextlib.nullcontext(),
        device=lambda d: mock.patch.object(log, "current", torch.device(d)),
        is_bf16_supported=lambda *a: capability >= (8, 0),
        memory_reserved=lambda d=None: 2 << 20,
        is_current_stream_capturing=lambda: False,
        get_rng_state=lambda d=None: torch.zeros(16, dtype=torch.uint8),
        set_rng_state=lambda state, d=None: None,
        manual_seed_all=lambda seed: None,
    )
    attention_kernels._is_new.cache_clear()
    with contextlib.ExitStack() as stack:
        stack.callback(attention_kernels._is_new.cache_clear)
        forget_device()
        stack.callback(forget_device)
        stack.enter_context(mock.patch.object(log, "device", device))
        if device.type == "mps":
            stack.enter_context(mock.patch.object(torch.backends.mps, "is_available", lambda: True))
        for name, value in stub.items() if device.type != "mps" else ():
            kind = torch.cuda if device.type == "cuda" else torch.xpu
            stack.enter_context(mock.patch.object(kind, name, value, create=True))
        stack.enter_context(
            mock.patch.object(torch.backends.cuda, "is_flash_attention_available", lambda: True)
        )
        names = ["mps"] if device.type == "mps" else [f"{device.type}:{n}" for n in range(count)]
        cards = [
            hardware.Device(name=name, label="Fake RTX", total_bytes=total, free_bytes=free)
            for name in names
        ]
        stack.enter_context(mock.patch.object(hardware, "_gpus", lambda: cards))
        stack.enter_context(mock.patch.object(
            attention_kernels, "kernel", lambda d: varlen if d.type == "cuda" else None
        ))  # fmt: skip

        stack.enter_context(mock.patch.object(kernel_check, "installed", lambda: triton))
        if triton:
            named = {name: one_launch(plain) for name, plain in linear_kernels.PLAIN.items()}
            good = {name: {"why": ""} for name in named}
            stack.enter_context(mock.patch.object(kernel_check, "_kernels", lambda: named))
            stack.enter_context(mock.patch.object(kernel_check, "ask", lambda *_: good))
            stack.enter_context(mock.patch.object(kernel_check, "_versions", lambda: ["fake"]))

        def place(self):
            return log.device if on_gpu(self) and not log.honest else _true(self)

        stack.enter_context(mock.patch.object(torch.Tensor, "device", property(place), create=True))
        grouped = clip._group_tensors_by_device_and_dtype

        def group(lists, with_indices=False):  # C++ answers the true device
            found = {}
            for (device, dtype), (tensors, indices) in grouped(lists, with_indices).items():
                here = any(on_gpu(t) for many in tensors for t in many if t is not None)
                found[log.device if here else device, dtype] = (tensors, indices)
            return found

        stack.enter_context(mock.patch.object(clip, "_group_tensors_by_device_and_dtype", group))
        stack.enter_context(
            mock.patch.object(torch.Tensor, "is_cuda", property(on_gpu), create=True)
        )
        stack.enter_context(
            mock.patch.object(torch.Tensor, "record_stream", lambda self, s: None, create=True)
        )
        places = Places()
        hooks = torch.autograd.graph.saved_tensors_hooks
        real = hooks.__init__

        def seen(call):
            def run(*args, **kwargs):
                with places:
                    return call(*args, **kwargs)

            return run

        stack.enter_context(
            mock.patch.object(hooks, "__init__", lambda self, p, u: real(self, seen(p), seen(u)))
        )
        engine = torch.autograd._engine_run_backward  # a mode is off inside what it sees
        stack.enter_context(mock.patch.object(torch.autograd, "_engine_run_backward", seen(engine)))
        stack.enter_context(places)
        stack.enter_context(Rules())
        log.clear()
        log.all = 0
        yield log


def forget_device():
    """Let accelerate choose a device anew."""
    AcceleratorState._reset_state(True)
    PartialState._reset_state()


def one_launch(plain):
    """Return a kernel that computes as its plain form, seen from outside as one launch."""

    def kernel(*args):
        with quiet():
            found = plain(*args)
        log.launches += 1
        log.ops[plain.__name__] += 1
        for tensor in tree_leaves(found):
            put(tensor)
        return found

    return kernel
