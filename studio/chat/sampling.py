"""Sample the next token of each row: greedy, or drawn with the row's own generator.

Every row has its own seed and arithmetic, so the same seed and prompt give the same tokens whatever
the other rows are. A draw is one uniform number looked up in the cumulative probabilities
(float64): rounding noise of a batch changes a token only at an exact boundary. Filters have the
order and meaning of transformers' generate.

Shapes: `B rows, V vocabulary, C candidates`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from studio.chat.lanes import Sampling

FEW = 1024  # most nuclei are smaller, so that the vocabulary need not be sorted


class Sampler:
    """The state of one row: its generator and the tokens it has seen."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], vocab_size: int) -> None:
        self.sampling = sampling
        self.greedy = sampling.temperature == 0
        self.plain = self.greedy and sampling.repetition_penalty == 1
        self._generator = torch.Generator().manual_seed(sampling.seed)
        self._seen_V: Tensor | None = None
        if sampling.repetition_penalty != 1:
            self._seen_V = torch.zeros(vocab_size, dtype=torch.bool)
            self._seen_V[torch.tensor(list(prompt), dtype=torch.long)] = True

    def pick(self, logits_V: Tensor) -> int:
        """Return the next token for this row's logits and remember it."""
        token = int(self._choose(self._penalised(logits_V.float())))
        if self._seen_V is not None:
            self._seen_V[token] = True
        return token

    def _penalised(self, logits_V: Tensor) -> Tensor:
        if self._seen_V is None:
            return logits_V
        self._seen_V = self._seen_V.to(logits_V.device)
        penalty = self.sampling.repetition_penalty
        worse_V = logits_V.where(logits_V < 0, logits_V / penalty).where(
            logits_V >= 0, logits_V * penalty
        )
        return worse_V.where(self._seen_V, logits_V)

    def _choose(self, logits_V: Tensor) -> Tensor:
        if self.greedy:
            return logits_V.argmax()
        probabilities_C, tokens_C = candidates(logits_V, self.sampling)
        cumulative_C = probabilities_C.cpu().double().cumsum(0)
        point = torch.rand((), generator=self._generator, dtype=torch.float64) * cumulative_C[-1]
        place = torch.searchsorted(cumulative_C, point, right=True)
        return tokens_C[place.clamp_max(len(cumulative_C) - 1)]


def candidates(logits_V: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Return relative probabilities and ids of the tokens that may be drawn, by rising id.

    Temperature, then top k, then top p of what is left, as in transformers. By id and not by
    probability, so that two nearly equal tokens cannot change places and with them the draw.
    """
    scaled_V = logits_V / sampling.temperature
    size = logits_V.shape[-1]
    count = min(sampling.top_k or size, size)
    if count == size and sampling.top_p == 1:
        return scaled_V.softmax(-1), torch.arange(size, device=logits_V.device)
    values_C, tokens_C = scaled_V.topk(count if sampling.top_p == 1 else min(FEW, count))
    if sampling.top_p < 1:
        total = scaled_V.logsumexp(-1) if count == size else scaled_V.topk(count)[0].logsumexp(-1)
        kept = _nucleus((values_C - total).exp(), sampling.top_p)
        if kept == len(values_C) < count:  # flat: the few do not hold the share
            values_C, tokens_C = scaled_V.topk(count)
            kept = _nucleus((values_C - total).exp(), sampling.top_p)
        values_C, tokens_C = values_C[:kept], tokens_C[:kept]
    tokens_C, order_C = tokens_C.sort()
    return values_C[order_C].softmax(-1), tokens_C


def _nucleus(probabilities_C: Tensor, share: float) -> int:
    """Return the number of most likely tokens that hold `share`; at least one."""
    precise_C = probabilities_C.cpu().double()  # Apple GPUs have no float64
    before_C = precise_C.cumsum(-1) - precise_C
    return max(1, int((before_C < share).sum()))


def pick_all(samplers: Sequence[Sampler], logits_BV: Tensor) -> list[int | None]:
    """Return the next token of every row; None where the logits overflowed."""
    values_B, tokens_B = logits_BV.max(-1)
    finite, likeliest = values_B.isfinite().tolist(), tokens_B.tolist()
    picked: list[int | None] = []
    for row, sampler in enumerate(samplers):
        if not finite[row]:
            picked.append(None)
        else:
            picked.append(likeliest[row] if sampler.plain else sampler.pick(logits_BV[row]))
    return picked
