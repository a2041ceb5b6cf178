"""How much a training process keeps: of freed memory, compiled products, logits. Never torch."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
REUSED_BYTES, GIVE_BYTES = 8 << 20, 1 << 20
CHUNK_NUMBERS = 8_000_000  # logits held at once; smaller chunks waste the product
WIDE_NUMBERS = 500_000  # of them in float32 at once on a CPU: 2 MB stay in its cache


def reuse_freed_memory() -> bool:
    """Let glibc reuse freed tensors of up to 8 MB and hand larger ones back to the system.

    Its own threshold follows the largest tensor that was freed, and what lies below it leaves holes
    that nothing fits into. Steps of a 30 M model with 6,400 tokens took 1.9 GB so, 2.5 GB with a
    threshold of 32 MB, and 1.8 GB with one of 1 MB, where fresh pages cost a fifth of the speed.
    Other C libraries are left as they are.

    Returns:
        Whether the allocator took it.
    """
    return _tune(
        {M_MMAP_THRESHOLD: REUSED_BYTES, M_TRIM_THRESHOLD: 2 * REUSED_BYTES, M_TOP_PAD: 0}
    )  # fmt: skip


def keep_few_kernels() -> None:
    """Let oneDNN keep 64 compiled products, where 1,024 are its default.

    It compiles one for each shape of a bfloat16 product, and packed batches hardly ever have the
    same number of tokens: a 30 M model grew by 25 MB a step. A step needs about 30.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def give_back_freed_memory() -> bool:
    """Let glibc hand the pages of every larger tensor back as soon as it is freed.

    Layers that are put together and dropped again leave holes of their size, which activations then
    take a part of: with two processes over 87 M parameters the heap grew to 2.0 GB, with this to
    1.1 GB.

    Returns:
        Whether the allocator took it.
    """
    return _tune({M_MMAP_THRESHOLD: GIVE_BYTES, M_TRIM_THRESHOLD: GIVE_BYTES, M_TOP_PAD: 0})


def _tune(wanted: dict[int, int]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    taken = [mallopt(option, value) for option, value in wanted.items()]
    return taken == [1, 1, 1]
