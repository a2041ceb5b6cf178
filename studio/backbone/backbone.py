"""The backbone: one base model with many adapters beside it, stacked with weights and per row.

The base model's weights, module paths and state dict never change. Adapters keep their parameters
beside it; hooks on the sites apply the active stack. Loading another adapter costs only its own
parameters, and changing a weight costs a dictionary lookup.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from studio import hardware
from studio.backbone import (
    adapter_files,
    attention,
    attention_kernels,
    experts,
    row_isolation,
    saved_modules,
)
from studio.backbone.activation_memory import (
    install_lean_forwards,
    keep_positions,
    set_checkpointing,
)
from studio.backbone.composition import Adapter, Edit, Rows, SitePlan, Stack, group_rows
from studio.backbone.forward_probes import accepted, reached, shares_prompts
from studio.backbone.forward_recording import Recording, record
from studio.backbone.row_isolation import install_row_factors
from studio.backbone.site_hooks import Hooks, Plans
from studio.backbone.sites import Anatomy, Site
from studio.backbone.virtual_tokens import VIRTUAL, VirtualTokens, insert_packed
from studio.errors import MethodError, nearest
from studio.methods.lora import Lora
from studio.methods.method import Init, Method, Params, Phase
from studio.models.find_model import LENGTH_ROPE_TYPES

T = TypeVar("T")


class Backbone:
    """A transformers model and the adapters on it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.anatomy = Anatomy(model, self._record, lambda: self._observed(reached))
        self.adapters: dict[str, Adapter] = {}
        self.changes = 0  # of the active stacks
        self._rows: list[Stack] | None = None
        self._stack: Stack = ()
        self._state = attention.AttentionState()
        self._recording = False
        self._hooks = Hooks(self.anatomy, self._state)
        self._virtual = VirtualTokens(self.anatomy, self._state, self._prompt_context)
        model.requires_grad_(False)
        model.eval()
        if type(model)._can_set_attn_implementation():
            model.set_attn_implementation(attention.NAME)
        self.set_attention("auto")
        install_lean_forwards(self.anatomy, self._state, self._hooks)
        self._has_row_factors = install_row_factors(
            self.anatomy.tower, self._state, LENGTH_ROPE_TYPES
        )
        self.experts = experts.install(
            self.anatomy.modules.items(), self._hooks.plan_of, self._state
        )
        model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        model.register_forward_hook(self._after_forward)
        for module in self.anatomy.tower.modules():
            module.__dict__["studio_state"] = self._state

    # -- adapters ------------------------------------------------------------------------------

    def attach(
        self,
        name: str,
        method: Method,
        *,
        seed: int = 0,
        tokenize: Callable[[str], list[int]] | None = None,
        example: Sequence[int] = (),
    ) -> Adapter:
        """Create a fresh adapter; most methods start without effect.

        Methods that start from a text get the model's `tokenize`, and token ids of the data as an
        `example` where no text is given.

        Raises:
            MethodError: The name is taken, or the method does not fit this model.
        """
        sites = method.sites(self.anatomy)
        if method.trains_base:
            return self.add(name, method, sites, [dict(self.model.named_parameters())])
        init = Init(
            torch.Generator().manual_seed(seed), tuple(sites), tokenize, example,
            self._virtual.keys_values_of,
        )  # fmt: skip
        params = [method.create(site, init) for site in sites]
        whole: list[Site] = []
        zeros: list[Params] = []
        if isinstance(method, Lora):
            whole, zeros = saved_modules.fresh(method, self.anatomy, sites)
        beside: dict[str, Method] = {site.key: saved_modules.SavedModules() for site in whole}
        return self.add(name, method, [*sites, *whole], [*params, *zeros], beside)

    def add(
        self,
        name: str,
        method: Method,
        sites: list[Site],
        params: list[Params],
        beside: dict[str, Method] | None = None,
    ) -> Adapter:
        """Add an adapter with known parameters.

        `beside` has the methods, by key, of sites whose parameters are not those of `method`.

        Raises:
            MethodError: The name is taken.
        """
        if name in self.adapters:
            raise MethodError(f'An adapter "{name}" is already loaded.')
        self.adapters[name] = Adapter(name, method, sites, params, beside)
        return self.adapters[name]

    def load(self, name: str, folder: Path) -> Adapter:
        """Load an adapter from PEFT's two files.

        Raises:
            AdapterError: The folder is unsafe, damaged, or made for another base.
        """
        return self.add(name, *adapter_files.read(folder, self.anatomy))

    def load_stack(self, items: Iterable[tuple[str, Path, float]]) -> Stack:
        """Load adapters by name, folder and weight; return them as a stack under unique names.

        Raises:
            AdapterError: As in `load`.
        """
        stack = list[tuple[str, float]]()
        for name, folder, weight in items:
            names = itertools.chain([name], (f"{name} ({n})" for n in itertools.count(2)))
            unique = next(one for one in names if one not in self.adapters)
            self.load(unique, folder)
            stack.append((unique, weight))
        return tuple(stack)

    def save(self, name: str, folder: Path, *, base: str = "") -> None:
        """Write an adapter as PEFT's two files into an existing folder.

        After full fine-tuning the whole model is written.
        """
        if self.adapters[name].method.trains_base:
            self.model.save_pretrained(folder)
            return
        adapter_files.write(self.adapters[name], folder, self.anatomy, base=base)

    def detach(self, name: str) -> None:
        """Remove an adapter, also from the active stacks."""
        del self.adapters[name]
        self._stack = tuple(item for item in self._stack if item[0] != name)
        if self._rows is not None:
            self._rows = [tuple(i for i in row if i[0] != name) for row in self._rows]
        self._plan()

    def train(self, *names: str) -> list[nn.Parameter]:
        """Make these adapters trainable and all others frozen; return their parameters."""
        self.eval()
        chosen = [self.adapters[name] for name in names]
        for adapter in chosen:
            adapter.training = True
            for parameter in adapter.parameters():
                parameter.requires_grad_(True)
        self._plan()
        return [parameter for adapter in chosen for parameter in adapter.parameters()]

    def eval(self) -> None:
        """Freeze every adapter and disable dropout."""
        for adapter in self.adapters.values():
            adapter.training = False
            for parameter in adapter.parameters():
                parameter.requires_grad_(False)
                parameter.grad = None
        self._plan()

    def set_attention(self, how: str) -> None:
        """Select the attention kernel: "varlen", "sdpa", "eager", or "auto" for the fastest."""
        device = next(self.model.parameters()).device
        self._state.eager = how == "eager"
        self._state.products = how == "auto" and hardware.has_fast_bfloat16()
        self._state.kernel = attention_kernels.kernel(device) if how in ("auto", "varlen") else None

    @property
    def keeps_logits(self) -> bool:
        """True if the model computes logits only at the positions that it is asked for."""
        return "logits_to_keep" in signature(self.model.forward).parameters

    @property
    def attention_kernel(self) -> str:
        """Kernel of packed rows, where it supports them: "varlen", "sdpa" or "eager"."""
        return "varlen" if self._state.kernel else "eager" if self._state.eager else "sdpa"

    def set_lean(self, on: bool) -> None:
        """Keep and compute only what training needs (`activation_memory.py`), or switch it off."""
        self._state.lean = on

    def checkpointing(self, on: bool, *, offload: bool = False) -> None:
        """Switch gradient checkpointing of every layer; `offload` keeps inputs in main memory."""
        self.set_lean(not on)  # a recomputed layer keeps nothing anyway
        set_checkpointing(self.anatomy, on, offload=offload)

    @contextmanager
    def without_checkpointing(self) -> Iterator[None]:
        """Switch gradient checkpointing off temporarily, as KV caches and prompts need."""
        layers = [layer for layer in self.anatomy.layers() if layer.training]
        for layer in layers:
            layer.training = False
        try:
            yield
        finally:
            for layer in layers:
                layer.training = True

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switch dropout and gradients off temporarily."""
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
        """Activate a stack of (adapter, weight) for every row; an empty one is the base.

        Raises:
            MethodError: An adapter is not loaded, or the stack cannot be combined.
        """
        self._stack, self._rows = self._checked(stack), None
        self._plan()

    def use_rows(self, stacks: Sequence[Sequence[tuple[str, float]]]) -> None:
        """Activate one stack per row of the next batches (packed rows count as rows).

        Raises:
            MethodError: As in `use`.
        """
        self._stack, self._rows = (), [self._checked(stack) for stack in stacks]
        self._plan()

    @property
    def active(self) -> list[Stack]:
        """Active stacks: one for all rows, or one per row."""
        return [self._stack] if self._rows is None else list(self._rows)

    @property
    def active_for_all(self) -> Stack | None:
        """The stack of all rows; None if each row has its own."""
        return self._stack if self._rows is None else None

    def _checked(self, stack: Sequence[tuple[str, float]]) -> Stack:
        for name, weight in stack:
            if name not in self.adapters:
                raise MethodError(f'No adapter "{name}" is loaded.{nearest(name, self.adapters)}')
            method = self.adapters[name].method
            if method.phase in VIRTUAL and weight < 0:
                raise MethodError(
                    f'"{name}" is {method.title.lower()}: virtual tokens can be weighted from 0 '
                    f"upwards, but not negatively ({weight})."
                )
            if method.phase is Phase.PROMPT and weight not in (0, 1) and self.anatomy.carries_state:
                raise MethodError(
                    f'"{name}" is {method.title.lower()}, which passes through the states of this '
                    f"model as tokens: its weight must be 0 or 1, not {weight}."
                )
            if method.trains_base and (len(stack) > 1 or weight != 1):
                raise MethodError(
                    f'"{name}" is full fine-tuning, a model of its own: it cannot be stacked with '
                    f"{', '.join(n for n, _ in stack if n != name) or 'a weight'}."
                )
        return tuple((name, float(weight)) for name, weight in stack if weight != 0)

    def _plan(self) -> None:
        """Compute which edits act at which site; called on every change of stacks."""
        self.changes += 1
        if self._rows is None:
            items = [(name, weight, Rows(None)) for name, weight in self._stack]
        else:
            items = group_rows(self._rows)
        self._hooks.apply(self._edits(items))
        self._virtual.use(self.active, self.adapters)

    def _edits(self, items: Sequence[tuple[str, float, Rows]]) -> Plans:
        plans: Plans = {}
        for name, weight, rows in items:
            adapter = self.adapters[name]
            if adapter.method.phase in (*VIRTUAL, Phase.WEIGHTS):
                continue
            for site in adapter.sites:
                params = adapter.params[site.key]
                method = adapter.method_at(site.key)
                edit = Edit(method, params, weight, rows, name, adapter.training)
                plans.setdefault(site.key, SitePlan(site)).add(edit)
        return plans

    @contextmanager
    def _prompt_context(self, stack: Stack) -> Iterator[None]:
        """Apply a prompt's own stack while the prompt runs, without gradient checkpointing.

        A recomputed layer would see the rows' state in the backward pass, not the prompt's.
        """
        edits = self._edits([(name, weight, Rows(None)) for name, weight in stack])
        with self.without_checkpointing(), self._hooks.applying(edits):
            yield

    # -- use -----------------------------------------------------------------------------------

    def packed_logits(
        self, ids_T: Tensor, lengths: Sequence[int], keep_N: Tensor,
        kept: Sequence[int] | None = None, shared: Sequence[int] = (),
    ) -> Tensor:  # fmt: skip
        """Run concatenated rows and return the logits at some positions.

        Each row attends only to itself and its positions start at zero, or after the beginning of
        another row that it continues.

        Args:
            ids_T: Token ids of all rows, one after the other; `sum(lengths)` of them.
            lengths: Tokens of each row, without those of a beginning that it continues.
            keep_N: Positions in `ids_T` whose logits are returned.
            kept: How many of them are of each row; counted if not given, which waits for a GPU.
            shared: Tokens that each row continues, the first ones of the last row before it that
                continues none; possible where `shares_prompts`.

        Returns:
            logits_NV.
        """
        if not self.anatomy.recording.paddable:
            return self._logits_row_by_row(ids_T, lengths, keep_N)
        if not self.anatomy.recording.separable:
            return self._padded_logits(ids_T, lengths, keep_N)
        device, given = ids_T.device, {"input_ids": ids_T[None]}
        if prompts := self._virtual.prompts():
            self._virtual.replaced, ids, lengths, keep_N = insert_packed(
                prompts, ids_T, lengths, keep_N
            )
            given = {"input_ids": ids[None]}
        firsts = shared or [0] * len(lengths)
        rows = [torch.arange(s, s + n) for s, n in zip(firsts, lengths, strict=True)]
        positions_T = torch.cat(rows).to(device, non_blocking=True)
        with row_isolation.packed(self._state, lengths, device, shared):
            skips = keep_positions(self.anatomy, self._state, keep_N, kept)
            try:
                return self._logits(keep_N, skips=skips, position_ids=positions_T[None], **given)[0]
            finally:
                self._state.lengths, self._state.keep = tuple(lengths), None
                self._virtual.replaced = None

    @cached_property
    def shares_prompts(self) -> bool:
        """True if packed rows may continue the beginning of another one on this model."""
        return not self._has_row_factors and self._observed(shares_prompts)

    def _padded_logits(self, ids_T: Tensor, lengths: Sequence[int], keep_N: Tensor) -> Tensor:
        """Return `packed_logits` of a model whose packed rows would reach each other."""
        self._state.lengths = None
        rows, longest = len(lengths), max(lengths)
        lengths_R = torch.tensor(lengths, device=ids_T.device)
        columns_N = torch.arange(longest, device=ids_T.device)
        mask_RN = (columns_N < lengths_R[:, None]).long()
        ids_RN = ids_T.new_zeros(rows, longest).masked_scatter(mask_RN.bool(), ids_T)
        kept_RN = torch.zeros_like(mask_RN, dtype=torch.bool)
        kept_RN[mask_RN.bool().nonzero().unbind(1)] = torch.zeros_like(
            ids_T, dtype=torch.bool
        ).index_fill(0, keep_N, True)
        columns = kept_RN.any(0).nonzero()[:, 0]
        logits = self._logits(
            columns, skips=False, input_ids=ids_RN, attention_mask=mask_RN,
            position_ids=columns_N.expand(rows, -1),
        )  # fmt: skip
        return logits[kept_RN[:, columns]]

    def _logits_row_by_row(self, ids_T: Tensor, lengths: Sequence[int], keep_N: Tensor) -> Tensor:
        """Return `packed_logits` of a model on which even padding changes a row."""
        self._state.lengths = None
        stacks = self.active if self._rows is not None else [self._stack] * len(lengths)
        found, start = [], 0
        for stack, row in zip(stacks, ids_T.split(list(lengths)), strict=True):
            kept = keep_N[(keep_N >= start) & (keep_N < start + len(row))] - start
            edits = self._edits([(name, weight, Rows(None)) for name, weight in stack])
            with self._hooks.applying(edits):
                found.append(self._logits(kept, skips=False, input_ids=row[None])[0])
            start += len(row)
        return torch.cat(found)

    def _logits(self, keep: Tensor, *, skips: bool, **given: Tensor) -> Tensor:
        """Return the model's logits at some positions, which it has skipped to already or not."""
        wanted = {**given, "use_cache": False}
        if self.keeps_logits:
            wanted["logits_to_keep"] = 0 if skips else keep
        logits: Tensor = self.model(**accepted(self.model, wanted)).logits
        return logits if skips or self.keeps_logits else logits[:, keep]

    def _observed(self, observe: Callable[[Anatomy, attention.AttentionState], T]) -> T:
        """Observe the bare model, with no edits and no virtual tokens."""
        self._recording = True
        try:
            with self._hooks.applying({}), self.without_checkpointing():
                return observe(self.anatomy, self._state)
        finally:
            self._recording = False

    def _record(self) -> Recording:
        """Record one forward pass.

        Raises:
            MethodError: The model does not run on a short text.
        """
        found = self._observed(record)
        if found.problem:
            raise MethodError(
                f"{type(self.model).__name__} cannot be used here: it does not run on a short text "
                f"({found.problem}). The log has the reason; choose another model."
            )
        return found

    def _before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # Row lengths outlive a packed forward: checkpointing recomputes layers in the backward.
        if not attention.packing.get():
            self._state.lengths = None
        kwargs = accepted(module, kwargs, optional=("position_ids", "logits_to_keep"))
        if self._recording:
            return args, kwargs
        if not self.anatomy.recording.positions:
            kwargs.pop("position_ids", None)
        if self._has_row_factors:
            self._state.row_ends = _row_ends(kwargs)
        placed = self._virtual.place(args, kwargs)
        args = () if "input_ids" in placed else args
        tokens = placed.get("inputs_embeds", placed.get("input_ids", args[0] if args else None))
        self._state.batch = (0, 0) if tokens is None else (tokens.shape[0], tokens.shape[1])
        return args, placed

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._virtual.dropped:  # the logits of prompts that stand before the rows
            output.logits = output.logits[:, self._virtual.dropped :]
            self._virtual.dropped = 0


def _row_ends(given: dict[str, Any]) -> list[int] | None:
    """Return the last position of each row of a padded batch."""
    mask, positions = given.get("attention_mask"), given.get("position_ids")
    if mask is None or positions is None or mask.dim() != 2:
        return None
    return list((positions * mask[:, -positions.shape[-1] :]).amax(-1).tolist())
