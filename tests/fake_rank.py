"""One rank of a distributed run on a simulated GPU of its own; messages go through gloo."""

from unittest import mock

import torch

from studio.training import distributed_rank
from tests.fakegpu import fake_gpu

train = distributed_rank._train


def on_fake_gpu(order, commands, output):
    device = torch.device(order["devices"][order["rank"]])
    with (
        fake_gpu(device=device, count=len(order["devices"])),
        mock.patch.object(torch._C, "_get_accelerator", lambda *_: device),
    ):
        train(order, commands, output)


if __name__ == "__main__":
    distributed_rank._train, distributed_rank.BACKENDS = on_fake_gpu, {}
    distributed_rank.main()
