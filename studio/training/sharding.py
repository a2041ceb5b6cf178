"""A base too large for one device: each process keeps part of every frozen layer (FSDP2).

A layer's weights are put together when it computes and dropped again after. They come from main
memory layer by layer, so that no device ever holds the base whole. Adapters are small and stay
whole on every process, so their files, checkpoints and gradients are those of any run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from studio.errors import MethodError, SpecError
from studio.methods import Phase

if TYPE_CHECKING:
    import torch

    from studio.methods.layer import Backbone
    from studio.spec import RunSpec


def checked(spec: RunSpec) -> None:
    """Refuse what cannot be shared out.

    Raises:
        SpecError: There is one process, or the base is in 4 bit.
        MethodError: The method trains the base itself.
    """
    if not spec.train.fsdp:
        return
    if spec.train.num_processes == 1:
        raise SpecError(
            "train.fsdp shares the base between processes: set train.num_processes to two or more.",
            field="train.fsdp",
        )
    if spec.model.quantization != "none":
        raise SpecError(
            "train.fsdp cannot share a base in 4 bit: take model.quantization=none, or nf4 without "
            "train.fsdp.",
            field="train.fsdp",
        )
    if spec.method.phase is Phase.PROMPT:
        raise MethodError(
            f"{spec.method.title} runs its prompt through the layers before the rows come, which "
            "train.fsdp has not put together then: leave train.fsdp off, or take prefix tuning."
        )
    if spec.method.phase is Phase.WEIGHTS:
        raise MethodError(
            f"{spec.method.title} moves the weights that train.fsdp would share out frozen: leave "
            "train.fsdp off, or take an adapter method."
        )


def share_base(backbone: Backbone, device: torch.device) -> None:
    """Leave each process its part of every decoder layer on its device, the rest there whole.

    Before anything is attached: what stands beside a layer would be shared out with it.

    Args:
        backbone: The base, in main memory or on the device.
        device: This process's own.
    """
    from torch.distributed.fsdp import fully_shard

    backbone.be_lean(False)  # a layer's weights are there only while the layer itself runs
    for layer in backbone.anatomy.layers():
        small = {parameter for parameter in layer.parameters() if parameter.ndim == 1}
        # Norms and biases stay whole: tuning them writes their own values into the file. The
        # default would keep a root's layers whole.
        fully_shard(layer, reshard_after_forward=True, ignored_params=small)
    backbone.model.to(device)  # embeddings, head, last norm: the layers' parts are there already
