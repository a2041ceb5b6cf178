"""Sample the next token of each row: greedy, or drawn with the row's own generator.

Every row has its own seed and arithmetic, so the same seed and prompt give the same tokens whatever
the other rows are. A draw is one uniform number looked up in the cumulative probabilities
(float64): rounding noise of a batch changes a token only at an exact boundary. Filters have the
order and meaning of transformers' generate. What the choices of all rows read of the logits leaves
the device in one transfer; the choices are made on the host.

Shapes: `B rows, V vocabulary, C candidates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice

import torch
from torch import Tensor

from studio.chat.lanes import Sampling

FEW = 1024  # most nuclei are smaller, so that the vocabulary need not be sorted


class Sampler:
    """The state of one row: its generator and the tokens it has seen."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], vocab_size: int) -> None:
        self.sampling = sampling
        self.greedy = sampling.temperature == 0
        self.plain = self.greedy and sampling.repetition_penalty == 1 and sampling.logprobs < 0
        self.logits_V: Tensor | None = None  # on the host, where log-probabilities are wanted
        self._generator = torch.Generator().manual_seed(sampling.seed)
        self._seen_V: Tensor | None = None
        if sampling.repetition_penalty != 1:
            self._seen_V = torch.zeros(vocab_size, dtype=torch.bool)
            self._seen_V[torch.tensor(list(prompt), dtype=torch.long)] = True

    def reads(self, logits_V: Tensor) -> list[Tensor]:
        """Return what `choose` reads of the logits, as tensors of one dimension on their device."""
        wide_V = self._penalised(logits_V.float())
        own = [wide_V.argmax()[None]] if self.greedy else _likeliest(wide_V, self.sampling, FEW)
        return [*own, logits_V] if self.sampling.logprobs >= 0 else own

    def choose(self, read: list[Tensor], logits_V: Tensor) -> int:
        """Return the next token and remember it.

        Args:
            read: What `reads` returned, on the host.
            logits_V: This row's logits, where the nucleus has more tokens than were read.
        """
        if self.sampling.logprobs >= 0:
            *read, self.logits_V = read
        token = int(read[0] if self.greedy else self._drawn(read, logits_V))
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

    def _drawn(self, read: list[Tensor], logits_V: Tensor) -> Tensor:
        found = _narrowed(read, self.sampling)
        probabilities_C, tokens_C = found or candidates(
            self._penalised(logits_V.float()), self.sampling
        )
        cumulative_C = probabilities_C.double().cumsum(0)
        point = torch.rand((), generator=self._generator, dtype=torch.float64) * cumulative_C[-1]
        place = torch.searchsorted(cumulative_C, point, right=True)
        return tokens_C[place.clamp_max(len(cumulative_C) - 1)]


def candidates(logits_V: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Return relative probabilities and ids of the tokens that may be drawn, by rising id.

    Temperature, then top k, then top p of what is left, as in transformers. By id and not by
    probability, so that two nearly equal tokens cannot change places and with them the draw.
    """
    for few in (FEW, len(logits_V)):
        found = _narrowed(to_host(_likeliest(logits_V, sampling, few)), sampling)
        if found is not None:
            return found
    raise AssertionError("the whole vocabulary holds every share")


def _likeliest(logits_V: Tensor, sampling: Sampling, few: int) -> list[Tensor]:
    """Return all probabilities, or logits and ids of the likeliest and the sum they are parts of.

    With `top_p`, at most `few` of them.
    """
    scaled_V, size = logits_V / sampling.temperature, logits_V.shape[-1]
    count = min(sampling.top_k or size, size)
    if sampling.top_p == 1:
        return [scaled_V.softmax(-1)] if count == size else list(scaled_V.topk(count))
    whole = scaled_V if count == size else scaled_V.topk(count)[0]
    return [
        *scaled_V.topk(min(few, count)),
        whole.logsumexp(-1)[None],
        torch.full_like(whole[:1], count),
    ]


def _narrowed(read: list[Tensor], sampling: Sampling) -> tuple[Tensor, Tensor] | None:
    """Return the candidates among what was read; None if they do not hold the share `top_p`."""
    if len(read) == 1:
        return read[0], torch.arange(len(read[0]))
    values_C, tokens_C = read[:2]
    if sampling.top_p < 1:
        kept = _nucleus((values_C - read[2]).exp(), sampling.top_p)
        if kept == len(values_C) < read[3]:  # flat: the few do not hold the share
            return None
        values_C, tokens_C = values_C[:kept], tokens_C[:kept]
    tokens_C, order_C = tokens_C.sort()
    return values_C[order_C].softmax(-1), tokens_C


def to_host(tensors: list[Tensor]) -> list[Tensor]:
    """Return tensors of one dimension on the host, from a GPU in one transfer as 32-bit numbers."""
    if not tensors or tensors[0].device.type == "cpu":
        return tensors
    bits = [
        one.float() if one.is_floating_point() else one.to(torch.int32).view(torch.float32)
        for one in tensors
    ]
    parts = torch.cat(bits).cpu().split([len(one) for one in bits])
    return [
        part if one.is_floating_point() else part.view(torch.int32).long()
        for one, part in zip(tensors, parts, strict=True)
    ]


def _nucleus(probabilities_C: Tensor, share: float) -> int:
    """Return the number of most likely tokens that hold `share`; at least one."""
    precise_C = probabilities_C.double()
    before_C = precise_C.cumsum(-1) - precise_C
    return max(1, int((before_C < share).sum()))


def pick_all(samplers: Sequence[Sampler], logits_BV: Tensor) -> list[int | None]:
    """Return the next token of every row; None where the logits overflowed."""
    rows = zip(samplers, logits_BV, strict=True)
    reads = [[] if one.plain else one.reads(logits_V) for one, logits_V in rows]
    values_B, tokens_B, *found = to_host([*logits_BV.max(-1), *chain(*reads)])
    finite, likeliest, left = values_B.isfinite().tolist(), tokens_B.tolist(), iter(found)
    picked: list[int | None] = []
    for row, (sampler, read) in enumerate(zip(samplers, reads, strict=True)):
        own = list(islice(left, len(read)))
        if not finite[row]:
            picked.append(None)
        else:
            picked.append(likeliest[row] if sampler.plain else sampler.choose(own, logits_BV[row]))
    return picked
