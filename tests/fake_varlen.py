"""The varlen kernel's plain twin on the simulated GPU."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.fakegpu import log, put, quiet


def _pairs(bounds):
    log.quiet = True
    try:
        return list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
    finally:
        log.quiet = False


def _rows(query, key, value, bounds_q, bounds_k, scale, window, gqa):
    outputs = []
    for (q0, q1), (k0, k1) in zip(_pairs(bounds_q), _pairs(bounds_k), strict=True):
        q, k, v = (t.transpose(0, 1)[None] for t in (query[q0:q1], key[k0:k1], value[k0:k1]))
        last = torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0)
        place = torch.arange(k1 - k0)[None]
        mask = place <= last + window[1]
        if window[0] >= 0:
            mask &= place >= last - window[0]
        attended = scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=gqa)
        outputs.append(attended[0].transpose(0, 1))
    return torch.cat(outputs)


class _Varlen(torch.autograd.Function):
    """Attention of each row alone, seen from outside as one kernel."""

    @staticmethod
    def forward(ctx, query, key, value, *how):
        with quiet():
            output = put(_rows(query, key, value, *how))
            sums = put(torch.zeros(query.shape[:2]))  # the real one keeps these as well
        ctx.save_for_backward(query, key, value, output, sums)
        ctx.how = how
        log.launches += 1
        return output

    @staticmethod
    def backward(ctx, gradient):
        with quiet(), torch.enable_grad():
            own = [t.detach().requires_grad_(True) for t in ctx.saved_tensors[:3]]
            found = torch.autograd.grad(_rows(*own, *ctx.how), own, gradient)
        log.launches += 1
        return (*map(put, found), None, None, None, None, None)


def varlen(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1),
    enable_gqa=False, **_,
):  # fmt: skip
    """Stand for `torch.nn.attention.varlen.varlen_attn`, with its checks."""
    for tensor in (query, key, value, cu_seq_q, cu_seq_k):
        assert tensor.device.type == "cuda", "varlen got a CPU tensor"
    assert query.stride(-1) == 1 and cu_seq_q.dtype == torch.int32
    return _Varlen.apply(query, key, value, cu_seq_q, cu_seq_k, scale, window_size, enable_gqa)
