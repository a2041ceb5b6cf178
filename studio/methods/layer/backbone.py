"""The backbone: one resident base model with many adapters beside it.

The base model's weights, module paths and state dict never change. Adapters keep their parameters
in a bank beside it; hooks on the sites apply whatever stack is active. Loading a second adapter
costs only its own parameters, and changing a weight costs a dictionary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from studio.errors import AdapterError, MethodError, nearest
from studio.methods.layer import attention, files
from studio.methods.layer.sites import Anatomy, Site
from studio.methods.layer.stack import Edit, Rows, SitePlan, Stack, group_rows
from studio.methods.method import Method, Params, Phase

EDITS = (Phase.DELTA, Phase.GAIN, Phase.TRANSFORM)


class Adapter:
    """One method's trained parameters, per site."""

    def __init__(self, name: str, method: Method, sites: list[Site], params: list[Params]) -> None:
        self.name = name
        self.method = method
        self.sites = sites
        self.training = False
        self.params: dict[str, Params] = {
            site.key: {
                key: nn.Parameter(tensor.to(_device(site.module)), requires_grad=False)
                for key, tensor in own.items()
            }
            for site, own in zip(sites, params, strict=True)
        }

    def parameters(self) -> list[nn.Parameter]:
        """Every trainable tensor, in a fixed order."""
        return [p for own in self.params.values() for p in own.values()]  # type: ignore[misc]

    @property
    def num_parameters(self) -> int:
        """How many numbers the adapter trains."""
        return sum(parameter.numel() for parameter in self.parameters())

    def state(self) -> dict[str, Tensor]:
        """Every tensor by `<site key>/<name>`, detached, for checkpoints."""
        return {
            f"{key}/{name}": tensor.detach()
            for key, own in self.params.items()
            for name, tensor in own.items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Copy a checkpoint's tensors in.

        Raises:
            AdapterError: The names or shapes are not exactly this adapter's.
        """
        mine = self.state()
        if mine.keys() != state.keys():
            raise AdapterError("The checkpoint was made with other target modules or methods.")
        for key, tensor in mine.items():
            if tensor.shape != state[key].shape:
                raise AdapterError(
                    f"The checkpoint's {key} has shape {tuple(state[key].shape)}, "
                    f"this run's {tuple(tensor.shape)}."
                )
            tensor.copy_(state[key])


class Backbone:
    """A transformers model and the adapters that may edit it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.anatomy = Anatomy(model)
        self.adapters: dict[str, Adapter] = {}
        self._rows: list[Stack] | None = None
        self._stack: Stack = ()
        self._plans: dict[str, SitePlan] = {}
        self._handles: dict[str, list[Any]] = {}
        self._state = attention.AttentionState()
        model.requires_grad_(False)
        model.eval()
        model.set_attn_implementation(attention.NAME)
        model.register_forward_pre_hook(self._forget_packing)
        for site in self.anatomy.attentions():
            site.module.__dict__["studio_state"] = self._state

    # -- the bank ------------------------------------------------------------------------------

    def attach(self, name: str, method: Method, *, seed: int = 0) -> Adapter:
        """Create a fresh adapter; at its start it changes nothing (where the method promises so).

        Raises:
            MethodError: The name is taken, or the method does not fit this model.
        """
        self._check_new(name)
        sites = method.sites(self.anatomy)
        if not sites:
            raise MethodError(
                f"{method.title} finds nothing to edit in {type(self.model).__name__}."
            )
        generator = torch.Generator().manual_seed(seed)
        params = [method.create(site, generator) for site in sites]
        return self._add(Adapter(name, method, sites, params))

    def load(self, name: str, folder: Path) -> Adapter:
        """Load an adapter from PEFT's two files.

        Raises:
            AdapterError: The folder is unsafe, broken, or made for another base.
        """
        self._check_new(name)
        method, sites, params = files.read(folder, self.anatomy)
        return self._add(Adapter(name, method, sites, params))

    def save(self, name: str, folder: Path, *, base: str = "") -> None:
        """Write an adapter as PEFT's two files into an existing folder."""
        files.write(self.adapters[name], folder, self.anatomy, base=base)

    def detach(self, name: str) -> None:
        """Forget an adapter and take it out of the active stack."""
        del self.adapters[name]
        self._stack = tuple(item for item in self._stack if item[0] != name)
        if self._rows is not None:
            self._rows = [tuple(i for i in row if i[0] != name) for row in self._rows]
        self._plan()

    def train(self, name: str) -> list[nn.Parameter]:
        """Make one adapter trainable (all others frozen), and return its parameters."""
        self.eval()
        adapter = self.adapters[name]
        adapter.training = True
        for parameter in adapter.parameters():
            parameter.requires_grad_(True)
        self._plan()
        return adapter.parameters()

    def eval(self) -> None:
        """Freeze every adapter and switch their dropout off."""
        for adapter in self.adapters.values():
            adapter.training = False
            for parameter in adapter.parameters():
                parameter.requires_grad_(False)
                parameter.grad = None
        self._plan()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switch dropout and gradients off for a while, keeping what is being trained."""
        was = {name: adapter.training for name, adapter in self.adapters.items()}
        for adapter in self.adapters.values():
            adapter.training = False
        self._plan()
        try:
            with torch.no_grad():
                yield
        finally:
            for name, training in was.items():
                self.adapters[name].training = training
            self._plan()

    # -- the active stack ----------------------------------------------------------------------

    def use(self, stack: Sequence[tuple[str, float]]) -> None:
        """Activate a stack of (adapter, weight) for every row; an empty one is the bare base.

        Raises:
            MethodError: An adapter is not here, or the stack cannot be combined.
        """
        self._stack, self._rows = self._checked(stack), None
        self._plan()

    def use_rows(self, stacks: Sequence[Sequence[tuple[str, float]]]) -> None:
        """Activate one stack per row of the coming batches (packed rows count as rows).

        Raises:
            MethodError: As in `use`.
        """
        self._stack, self._rows = (), [self._checked(stack) for stack in stacks]
        self._plan()

    @property
    def active(self) -> list[Stack]:
        """The stacks that really act now: one for all rows, or one per row."""
        return [self._stack] if self._rows is None else list(self._rows)

    def _checked(self, stack: Sequence[tuple[str, float]]) -> Stack:
        for name, _ in stack:
            if name not in self.adapters:
                raise MethodError(f'No adapter "{name}" is loaded.{nearest(name, self.adapters)}')
        return tuple((name, float(weight)) for name, weight in stack if weight != 0)

    def _plan(self) -> None:
        """Work out which edits act where; called on every change, so that forwards only look up."""
        if self._rows is None:
            items = [(name, weight, Rows(None)) for name, weight in self._stack]
        else:
            items = group_rows(self._rows)
        plans: dict[str, SitePlan] = {}
        for name, weight, rows in items:
            adapter = self.adapters[name]
            if adapter.method.phase not in EDITS:
                continue
            for site in adapter.sites:
                plan = plans.setdefault(site.key, SitePlan(site))
                plan.add(
                    Edit(
                        adapter.method, adapter.params[site.key], weight, rows, name,
                        adapter.training,
                    )  # fmt: skip
                )
        self._plans = plans
        for key in self._handles.keys() - plans.keys():
            for handle in self._handles.pop(key):
                handle.remove()
        for key in plans.keys() - self._handles.keys():
            self._handles[key] = self._hook(plans[key].site)

    def _hook(self, site: Site) -> list[Any]:
        key = site.key

        def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            plan = self._plans[key]
            if not plan.gains or not args:
                return None
            return (plan.apply_input(args[0], self._state.lengths), *args[1:])

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            x = args[0] if args else hidden
            changed = self._plans[key].apply_output(x, hidden, None, self._state.lengths)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return [
            site.module.register_forward_pre_hook(before),
            site.module.register_forward_hook(after),
        ]

    # -- use -----------------------------------------------------------------------------------

    def packed_logits(self, ids_T: Tensor, lengths: Sequence[int], keep_N: Tensor) -> Tensor:
        """Run rows that are concatenated without padding; compute only the logits that are asked.

        Each row attends only to itself and its positions start at zero.

        Args:
            ids_T: Token ids of all rows, one after the other; `sum(lengths)` of them.
            lengths: Tokens of each row.
            keep_N: Positions in `ids_T` whose logits are wanted.

        Returns:
            logits_NV.
        """
        device = ids_T.device
        positions_T = torch.cat([torch.arange(n, device=device) for n in lengths])
        token = attention.packing.set(True)
        self._state.lengths = tuple(lengths)
        try:
            output = self.model(
                input_ids=ids_T[None],
                position_ids=positions_T[None],
                use_cache=False,
                logits_to_keep=keep_N,
            )
        finally:
            attention.packing.reset(token)
        return output.logits[0]

    def _forget_packing(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        # Row lengths outlive a packed forward, because checkpointing recomputes in the backward.
        if not attention.packing.get():
            self._state.lengths = None

    def _check_new(self, name: str) -> None:
        if name in self.adapters:
            raise MethodError(f'An adapter "{name}" is already loaded.')

    def _add(self, adapter: Adapter) -> Adapter:
        self.adapters[adapter.name] = adapter
        return adapter


def _device(module: nn.Module) -> torch.device:
    return next(iter(module.parameters()), torch.empty(0)).device
