"""The loss: a sum over trained tokens, divided once by all trained tokens of the step.

Dividing by the step's count, not each batch's own, makes four small batches equal one large one.
Where rows bring weights `w` it is `Σ w_n loss_n / Σ w_n` over the tokens of the step.
Losses of preferences (`preference_loss.py`) take the sum of each row instead of the sum of all.

The loss is computed at label positions only, and without holding all their logits: the head's
product, the softmax and the gradient are computed chunk by chunk in the forward pass. The logits of
a chunk become their own gradient in place and are multiplied back through the head at once, so the
backward keeps one `(N, D)` gradient instead of three `(N, V)` tensors. A head with soft-capping,
scaling, a bias or an adapter uses `cross_entropy` on its logits.

Shapes: `N positions that predict a trained token, D hidden, V vocabulary, C rows of a chunk,
R of them in float32`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from studio.backbone import Backbone
from studio.backbone.linear_kernels import replaceable
from studio.hardware import torch_module
from studio.training.allocator_and_threads import WIDE_NUMBERS, chunk_numbers
from studio.training.batching import PackedBatch, PaddedBatch, total_weight

Stack = Sequence[tuple[str, float]]
EVAL_TOKENS, EVAL_LOGITS = 4096, 2**26


class HeadLoss(torch.autograd.Function):
    """`−log softmax(h_n Wᵀ)[target_n]`, with the gradient of `h_n` computed in the forward.

    With label smoothing `ε` the target is `1 − ε` for the right token plus `ε / V` for every token.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk: int,
        smoothing: float,
    ) -> Tensor:  # fmt: skip
        """Return the loss of each position `(N,)` in float32."""
        losses_N = torch.empty(len(hidden_ND), dtype=torch.float32, device=hidden_ND.device)
        gradient_ND = torch.empty_like(hidden_ND)
        for start in range(0, hidden_ND.shape[0], chunk):
            part = slice(start, start + chunk)
            logits_CV = hidden_ND[part] @ weight_VD.T
            losses_N[part] = loss_and_gradient(logits_CV, targets_N[part], smoothing)
            if ctx.needs_input_grad[0]:
                gradient_ND[part] = logits_CV @ weight_VD
        ctx.save_for_backward(gradient_ND)
        return losses_N

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Weight the gradient of each position that the forward computed."""
        (gradient_ND,) = ctx.saved_tensors
        return gradient_ND * outputs[0].to(gradient_ND.dtype)[:, None], None, None, None, None


@replaceable
def loss_and_gradient(logits_CV: Tensor, targets_C: Tensor, smoothing: float) -> Tensor:
    """Return the losses `(C,)` in float32; replace the logits by their gradient in place."""
    losses = []
    for rows_RV, target_R in _row_chunks(logits_CV, targets_C):
        wide_RV, target_R1 = rows_RV.float(), target_R[:, None]
        wanted_R = wide_RV.gather(1, target_R1)[:, 0]
        if smoothing:
            wanted_R = (1 - smoothing) * wanted_R + smoothing * wide_RV.mean(1)
        largest_R1 = wide_RV.amax(1, keepdim=True)
        wide_RV.sub_(largest_R1).exp_()
        sums_R1 = wide_RV.sum(1, keepdim=True)
        losses.append((sums_R1.log() + largest_R1)[:, 0] - wanted_R)
        wide_RV.div_(sums_R1)
        if smoothing:
            wide_RV.sub_(smoothing / wide_RV.shape[1])
        wide_RV.scatter_add_(1, target_R1, torch.full_like(sums_R1, smoothing - 1))
        if wide_RV is not rows_RV:
            rows_RV.copy_(wide_RV)
    return torch.cat(losses)


def head_loss(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Return the losses `(N,)` of hidden states under a plain head."""
    chunk = _chunk_rows(weight_VD)
    losses_N: Tensor = HeadLoss.apply(hidden_ND, weight_VD, targets_N, chunk, smoothing)
    return losses_N


def head_measured(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, weights_N: Tensor | None = None
) -> tuple[float, int]:
    """Return the summed loss and the number of correct predictions, without gradients."""
    chunk, total, correct, at = _chunk_rows(weight_VD), 0.0, 0, 0
    for start in range(0, hidden_ND.shape[0], chunk):
        part = slice(start, start + chunk)
        for rows_RV, target_R in _row_chunks(hidden_ND[part] @ weight_VD.T, targets_N[part]):
            weights_R = None if weights_N is None else weights_N[at : at + len(target_R)]
            total += _measured(rows_RV, target_R, weights_R)
            correct += int((rows_RV.argmax(-1) == target_R).sum())
            at += len(target_R)
    return total, correct


def _measured(logits_NV: Tensor, targets_N: Tensor, weights_N: Tensor | None) -> float:
    """Return the summed loss of logits, as a number."""
    if weights_N is None:
        return float(cross_entropy(logits_NV.float(), targets_N, reduction="sum"))
    return float(cross_entropy(logits_NV.float(), targets_N, reduction="none") @ weights_N)


def _chunk_rows(weight_VD: Tensor) -> int:
    """Return the rows whose logits are held at once, from the head's weights."""
    device, vocabulary, memory = weight_VD.device, weight_VD.shape[0], 0
    if of := torch_module(device):
        memory = of.get_device_properties(device).total_memory
    return chunk_numbers(memory, vocabulary) // vocabulary


def _row_chunks(logits_CV: Tensor, others_C: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the rows to compute at once: as many as fit a CPU's cache, or all on a GPU."""
    rows = len(logits_CV)
    if logits_CV.device.type == "cpu":
        rows = max(1, WIDE_NUMBERS // logits_CV.shape[1])
    return zip(logits_CV.split(rows), others_C.split(rows), strict=True)


def plain_head(backbone: Backbone) -> nn.Linear | None:
    """Return the head if it is a frozen matrix product without bias, scaling or adapter."""
    head = backbone.model.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None or head.weight.requires_grad:
        return None
    recording = backbone.anatomy.recording
    if not (recording.plain_head and recording.separable and backbone.keeps_logits):
        return None
    edited = {id(site.module) for a in backbone.adapters.values() for site in a.sites}
    return None if id(head) in edited else head


def packed_hidden(backbone: Backbone, head: nn.Linear, batch: PackedBatch) -> Tensor:
    """Return the head's input `(N, D)` at the positions `keep_N`."""
    return _head_input(head, lambda: _packed_logits(backbone, batch))[0]


def _head_input(head: nn.Linear, forward: Callable[[], Tensor]) -> Tensor:
    """Return the head's input in a forward pass, which computes no logits."""
    seen: list[Tensor] = []

    def intercept(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        seen.append(args[0])
        return (args[0].detach()[:, :0],)

    handle = head.register_forward_pre_hook(intercept)
    try:
        forward()
    finally:
        handle.remove()
    return seen[0]


def loss_sum(
    backbone: Backbone, batch: PackedBatch | PaddedBatch, smoothing: float = 0.0
) -> Tensor:
    """Return the summed negative log-likelihood of the batch's trained tokens, in float32."""
    return _loss_sum(*_forward(backbone, batch), batch, smoothing)


def row_losses(backbone: Backbone, batch: PackedBatch | PaddedBatch) -> Tensor:
    """Return each row's summed negative log-likelihood of its trained tokens, in float32."""
    found, head = _forward(backbone, batch)
    losses_N = _cross_entropy(found, head, batch.targets_N, 0.0)
    return torch.stack([losses.sum() for losses in losses_N.split(list(batch.kept))])


def token_losses(
    backbone: Backbone, batch: PackedBatch | PaddedBatch, temperature: float = 1.0
) -> Tensor:
    """Return each trained token's negative log-likelihood `(N,)` at a temperature, in float32."""
    found, head = _forward(backbone, batch)
    return _cross_entropy(found / temperature, head, batch.targets_N, 0.0)


def token_kl(
    backbone: Backbone, batch: PackedBatch | PaddedBatch, stack: Stack, reference: Stack
) -> float:
    """Return the summed `KL(π ‖ π_ref)` over the vocabulary at the label positions."""
    found = []
    for one in (stack, reference):
        backbone.use(one)
        hidden, head = _forward(backbone, batch)
        found.append(hidden)
    chunk, sums = _chunk_rows(found[0].T if head is None else head.weight), []
    for parts in zip(*(one.split(chunk) for one in found), strict=True):
        ours, theirs = parts if head is None else (part @ head.weight.T for part in parts)
        for pair in _row_chunks(ours, theirs):
            p_RV, q_RV = (one.float().log_softmax(-1) for one in pair)
            sums.append((p_RV.exp() * (p_RV - q_RV)).sum())
    return sum(torch.stack(sums).tolist())  # the only wait


def loss_sums(
    backbone: Backbone, batches: Sequence[PackedBatch], smoothings: Sequence[float]
) -> list[Tensor]:
    """Return the `loss_sum` of each batch, from one pass over the rows of all."""
    edges = accumulate((batch.num_tokens for batch in batches), initial=0)
    found, head = _forward(
        backbone,
        PackedBatch(
            ids_T=torch.cat([batch.ids_T for batch in batches]),
            lengths=tuple(length for batch in batches for length in batch.lengths),
            keep_N=torch.cat([b.keep_N + start for b, start in zip(batches, edges, strict=False)]),
            targets_N=torch.cat([batch.targets_N for batch in batches]),
            rows=(),
            kept=tuple(count for batch in batches for count in batch.kept),
        ),
    )
    parts = found.split([batch.num_targets for batch in batches])
    return [
        _loss_sum(part, head, batch, smoothing)
        for part, batch, smoothing in zip(parts, batches, smoothings, strict=True)
    ]


def _forward(
    backbone: Backbone, batch: PackedBatch | PaddedBatch
) -> tuple[Tensor, nn.Linear | None]:
    """Return the plain head and its input `(N, D)`, or None and the logits `(N, V)`."""
    head = plain_head(backbone)
    if isinstance(batch, PackedBatch):
        if head is None:
            return _packed_logits(backbone, batch), None
        return packed_hidden(backbone, head, batch), head
    if head is None:
        return _padded_logits(backbone, batch)[batch.keep_BT], None
    hidden = _head_input(head, lambda: _padded_logits(backbone, batch))
    rows_BTD = hidden[:, -batch.keep_BT.shape[1] :]  # without a prompt that stands before them
    return rows_BTD[batch.keep_BT], head


def _packed_logits(backbone: Backbone, batch: PackedBatch) -> Tensor:
    return backbone.packed_logits(
        batch.ids_T, batch.lengths, batch.keep_N, batch.kept, batch.shared
    )


def _loss_sum(
    found: Tensor, head: nn.Linear | None, batch: PackedBatch | PaddedBatch, smoothing: float
) -> Tensor:
    losses_N = _cross_entropy(found, head, batch.targets_N, smoothing)
    return (losses_N * batch.weights.of_N if batch.weights else losses_N).sum()


def _cross_entropy(
    found: Tensor, head: nn.Linear | None, targets_N: Tensor, smoothing: float
) -> Tensor:
    if head is not None:
        return head_loss(found, head.weight, targets_N, smoothing)
    return cross_entropy(found.float(), targets_N, reduction="none", label_smoothing=smoothing)


def _padded_logits(backbone: Backbone, batch: PaddedBatch) -> Tensor:
    """Return `(B, T, V)` through the model's ordinary forward."""
    position_ids = (batch.mask_BT.cumsum(-1) - 1).clamp(min=0)
    output = backbone.model(
        input_ids=batch.ids_BT,
        attention_mask=batch.mask_BT,
        position_ids=position_ids,
        use_cache=False,
    )
    logits_BTV: Tensor = output.logits
    return logits_BTV


@dataclass(frozen=True, slots=True)
class EvalLoss:
    """Summed loss, correct predictions and tokens of validation rows."""

    loss_sum: float
    correct: int
    tokens: int
    weight: float  # of all tokens, equal to their number unless rows bring weights

    @classmethod
    def of(cls, parts: Iterable[EvalLoss]) -> EvalLoss:
        """Return the sum of parts."""
        sums = zip(*map(astuple, parts), strict=True)
        return cls(*map(sum, sums))

    @property
    def loss(self) -> float:
        """Loss per trained token."""
        return self.loss_sum / (self.weight or 1)

    @property
    def accuracy(self) -> float:
        """Fraction of tokens that were predicted correctly."""
        return self.correct / max(1, self.tokens)


def eval_tokens(backbone: Backbone) -> int:
    """Return the tokens of a batch without gradients: fewer if their logits are held at once."""
    if plain_head(backbone) is not None:
        return EVAL_TOKENS
    weight_VD = backbone.model.get_input_embeddings().weight
    return min(EVAL_TOKENS, max(_chunk_rows(weight_VD), EVAL_LOGITS // weight_VD.shape[0]))


def evaluate_loss(backbone: Backbone, batches: Iterable[PackedBatch | PaddedBatch]) -> EvalLoss:
    """Evaluate validation batches, with dropout off."""
    total, correct, tokens, weight = 0.0, 0, 0, 0.0
    with backbone.evaluating():
        for batch in batches:
            found, head = _forward(backbone, batch)
            weights_N = batch.weights.of_N if batch.weights else None
            if head is not None:
                loss, right = head_measured(found, head.weight, batch.targets_N, weights_N)
            else:
                loss = _measured(found, batch.targets_N, weights_N)
                right = int((found.argmax(-1) == batch.targets_N).sum())
            total, correct, tokens = total + loss, correct + right, tokens + batch.num_targets
            weight += total_weight(batch)
    return EvalLoss(total, correct, tokens, weight)
