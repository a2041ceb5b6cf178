"""Run a model over a batch of growing rows: one prefill, then one token per row and step.

Rows are padded on the left and carry explicit positions, so a row's logits do not depend on how
long its neighbours are. Finished rows leave the batch and its cache. It knows token ids and logits;
which token is picked, and what a stack is, it does not.

Shapes: `B rows, T tokens, K kept positions, V vocabulary`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ROOM = 64


class Batch:
    """Rows that go through the model together.

    Args:
        model: A transformers causal language model.
        prompts: The token ids of each row; none may be empty.
        device: Where the model's input goes.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], device: torch.device) -> None:
        import torch

        from studio.chat.cache import cache_argument, roomy_cache

        assert prompts and all(prompts)
        self._model = model
        self._device = device
        self._cache = roomy_cache(model.config)
        self._cache_argument = {cache_argument(model): self._cache}
        self._width = max(map(len, prompts))
        self._pads = [self._width - len(prompt) for prompt in prompts]
        padded = [[0] * pad + list(prompt) for pad, prompt in zip(self._pads, prompts, strict=True)]
        self._ids_BT = torch.tensor(padded, device=device)
        self._lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self._mask_BT = self._grown_mask() if any(self._pads) else None

    def __len__(self) -> int:
        return len(self._pads)

    def prefill(self, probes: Sequence[int] | None = None) -> tuple[Tensor, Tensor | None]:
        """Read the prompts.

        Args:
            probes: One position within each row's own prompt whose logits are wanted too.

        Returns:
            The logits after each prompt `(B, V)`, and those at the probes `(B, V)` or None.
        """
        import torch

        kept = [self._width - 1]
        places: list[int] = []
        if probes is not None:
            wanted = [pad + probe for pad, probe in zip(self._pads, probes, strict=True)]
            kept = sorted({*kept, *wanted})
            places = [kept.index(place) for place in wanted]
        logits_BKV = self._forward(
            self._ids_BT, torch.tensor(kept, device=self._device) if len(kept) > 1 else 1
        )
        probed_BV = None
        if probes is not None:
            probed_BV = logits_BKV[torch.arange(len(self)), torch.tensor(places)]
        return logits_BKV[:, -1], probed_BV

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append one token to every row and return the logits after it `(B, V)`."""
        import torch

        self._lengths_B += 1
        self._width += 1
        return self._forward(torch.tensor(tokens, device=self._device)[:, None], 1)[:, -1]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        import torch

        index = torch.tensor(list(rows), device=self._device)
        self._cache.batch_select_indices(index)
        self._pads = [self._pads[row] for row in rows]
        self._lengths_B = self._lengths_B[index]
        if self._mask_BT is not None:
            self._mask_BT = self._mask_BT[index] if any(self._pads) else None

    def _forward(self, ids_BT: Tensor, keep: Tensor | int) -> Tensor:
        import torch

        positions_BT = (
            self._lengths_B[:, None] - ids_BT.shape[1] + torch.arange(
                ids_BT.shape[1], device=self._device
            )
        ).clamp_min(0)  # fmt: skip
        if self._mask_BT is not None and self._mask_BT.shape[1] < self._width:
            self._mask_BT = self._grown_mask()
        with torch.no_grad():
            output = self._model(
                input_ids=ids_BT,
                attention_mask=None if self._mask_BT is None else self._mask_BT[:, : self._width],
                position_ids=positions_BT,
                use_cache=True,
                logits_to_keep=keep,
                **self._cache_argument,
            )
        logits_BKV: Tensor = output.logits
        return logits_BKV

    def _grown_mask(self) -> Tensor:
        import torch

        columns = torch.arange(self._width + ROOM, device=self._device)
        return (columns >= torch.tensor(self._pads, device=self._device)[:, None]).long()
