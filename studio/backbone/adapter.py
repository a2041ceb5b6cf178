"""An adapter in memory: the parameters of one method at each site."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from studio.backbone.sites import Site
from studio.errors import AdapterError
from studio.methods.method import Method, Params


class Adapter:
    """Trained parameters of one method, by site."""

    def __init__(
        self, name: str, method: Method, sites: list[Site], params: list[Params],
        beside: dict[str, Method] | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.method = method
        self.beside = beside or {}
        """Methods of sites whose parameters are not those of `method`, by key."""
        self.sites = sites
        self.training = False
        self.params: dict[str, Params] = {}
        placed: dict[tuple[int, torch.device], nn.Parameter] = {}  # shared tensors stay shared
        for site, own in zip(sites, params, strict=True):
            self.params[site.key] = {
                key: _placed(tensor, site, placed) for key, tensor in own.items()
            }

    def method_at(self, key: str) -> Method:
        """Return the method whose parameters a site has."""
        return self.beside.get(key, self.method)

    def parameters(self) -> list[nn.Parameter]:
        """Return every trained tensor, in a fixed order."""
        return [parameter for _, parameter in self.named_parameters()]

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return every trained tensor with its name `<site key>/<name>`, in a fixed order.

        One that several sites share is returned once.
        """
        found = {
            id(tensor): (f"{key}/{name}", tensor)
            for key, own in reversed(self.params.items())
            for name, tensor in reversed(own.items())
            if isinstance(tensor, nn.Parameter) and not name.startswith("_")
        }
        return list(reversed(found.values()))

    @property
    def num_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def num_expert_parameters(self) -> int:
        """Number of trained parameters at routed experts."""
        experts = [site.key for site in self.sites if site.num_experts]
        return sum(p.numel() for key in experts for p in self.params[key].values())

    def state(self) -> dict[str, Tensor]:
        """Return every tensor by `<site key>/<name>`, detached, for checkpoints."""
        return {
            f"{key}/{name}": tensor.detach()
            for key, own in self.params.items()
            for name, tensor in own.items()
            if not name.startswith("__")
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Load the tensors of a checkpoint.

        Raises:
            AdapterError: The names or shapes differ from this adapter's.
        """
        mine = self.state()
        if mine.keys() != state.keys():
            raise AdapterError(
                "The checkpoint was made with another method or other target modules."
            )
        for key, tensor in mine.items():
            if tensor.shape != state[key].shape:
                raise AdapterError(
                    f"The checkpoint's {key} has shape {tuple(state[key].shape)}, "
                    f"this run's {tuple(tensor.shape)}."
                )
            tensor.copy_(state[key])


def _placed(
    tensor: Tensor, site: Site, placed: dict[tuple[int, torch.device], nn.Parameter]
) -> nn.Parameter:
    if isinstance(tensor, nn.Parameter):
        return tensor  # full fine-tuning: the model's own
    device = next((p.device for p in site.module.parameters()), tensor.device)
    key = (id(tensor), device)
    if key not in placed:
        placed[key] = nn.Parameter(tensor.to(device), requires_grad=False)
    return placed[key]
