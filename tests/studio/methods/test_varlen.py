"""All packed rows in one kernel call: the same as row after row.

The kernel itself needs a GPU. Elsewhere a reference stands for it, made of torch's attention row by
row, which takes the arguments that the kernel takes and refuses what the kernel refuses.
"""

from inspect import signature

import pytest
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from studio.backbone import Backbone, attention_kernels
from studio.backbone.attention import AttentionShape, Prefix, attend_rows_in_turn
from studio.methods.lora import Lora
from studio.methods.prefix_tuning import PrefixTuning
from studio.methods.prompt_tuning import PromptTuning
from tests.studio.methods.cases import adapted

LENGTHS = (5, 3, 20, 1)
IDS = torch.randint(3, 64, (29,), generator=torch.Generator().manual_seed(0))
KEEP = torch.tensor([2, 3, 6, 10, 26, 27])
METHODS = {
    "lora": Lora(r=4), "prefix": PrefixTuning(num_virtual_tokens=5),
    "prompt": PromptTuning(num_virtual_tokens=4, prompt_tuning_init="RANDOM"),
}  # fmt: skip


class Reference:
    """Stands for `varlen_attn`; remembers how it was called."""

    def __init__(self) -> None:
        self.bounds: list[Tensor] = []
        self.windows: list[tuple[int, int]] = []

    def __call__(self, *args, **kwargs) -> Tensor:
        given = signature(varlen_attn).bind(*args, **kwargs).arguments
        query, key, value = given["query"], given["key"], given["value"]
        rows_q, rows_k, window = given["cu_seq_q"], given["cu_seq_k"], given["window_size"]
        self.bounds += [rows_q, rows_k]
        self.windows.append(window)
        for part, rows in ((query, rows_q), (key, rows_k), (value, rows_k)):
            assert part.dim() == 3 and part.stride(-1) == 1  # (T, H, E)
            assert rows.dtype == torch.int32 and rows.is_contiguous()
            assert rows[0] == 0 and rows[-1] == len(part)
        assert query.shape[2] % 8 == 0
        assert given["enable_gqa"] or query.shape[1] == key.shape[1]
        assert given["max_q"] == rows_q.diff().max() and given["max_k"] == rows_k.diff().max()
        outputs = []
        for (q0, q1), (k0, k1) in zip(pairs(rows_q), pairs(rows_k), strict=True):
            q, k, v = (t.transpose(0, 1)[None] for t in (query[q0:q1], key[k0:k1], value[k0:k1]))
            last = torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0)  # aligned at the end
            place = torch.arange(k1 - k0)[None]
            mask = place <= last + window[1]
            if window[0] >= 0:
                mask &= place >= last - window[0]
            out = scaled_dot_product_attention(
                q, k, v, attn_mask=mask, scale=given["scale"], enable_gqa=given["enable_gqa"]
            )
            outputs.append(out[0].transpose(0, 1))
        return torch.cat(outputs)


def pairs(bounds: Tensor) -> list[tuple[int, int]]:
    return list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))


@pytest.fixture
def kernel(monkeypatch):
    """The reference, in full precision, on any device."""
    made = Reference()
    monkeypatch.setattr(attention_kernels, "DTYPES", (torch.float32,))
    monkeypatch.setattr(attention_kernels, "kernel", lambda device: made)
    return made


def passed(
    backbone: Backbone, parameters: list[torch.nn.Parameter], how: str, shared: tuple[int, ...] = ()
) -> tuple[Tensor, list[Tensor]]:
    backbone.set_attention(how)
    device = next(backbone.model.parameters()).device
    logits = backbone.packed_logits(IDS.to(device), LENGTHS, KEEP.to(device), shared=shared)
    loss = logits.logsumexp(-1).sum()
    return loss.detach(), list(torch.autograd.grad(loss, parameters))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["llama", "gpt2", "qwen3", "gemma", "mistral"])
@pytest.mark.parametrize("shared", [(), (0, 4, 3, 0)], ids=str)
def test_loss_and_gradients_are_those_of_row_after_row(kernel, model, method, shared):
    backbone, parameters = adapted(model, METHODS[method], noise=0.05)
    plain, plain_gradients = passed(backbone, parameters, "sdpa", shared)
    assert not kernel.bounds
    loss, gradients = passed(backbone, parameters, "varlen", shared)
    assert len(kernel.windows) == 2  # one call a layer
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients, plain_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-5)


def test_what_is_taken_is_told(kernel):
    backbone, _ = adapted("llama", METHODS["lora"], noise=0.05)
    assert backbone.attention_kernel == "varlen"
    for how in ("sdpa", "eager"):
        backbone.set_attention(how)
        assert backbone.attention_kernel == how


def test_where_rows_lie_is_laid_out_once_a_forward(kernel):
    backbone, parameters = adapted("llama", METHODS["prefix"], noise=0.05)
    passed(backbone, parameters, "auto")
    assert len(kernel.bounds) == 4
    assert kernel.bounds[0] is kernel.bounds[2]
    assert kernel.bounds[1] is kernel.bounds[3]
    assert kernel.bounds[0].tolist() == [0, 5, 8, 28, 29]
    assert kernel.bounds[1].tolist() == [0, 10, 18, 43, 49]


def test_a_window_counts_the_query_itself_and_is_none_where_no_row_is_longer(kernel):
    backbone, _ = adapted("mistral", METHODS["lora"], noise=0.05)  # a window of 8
    backbone.packed_logits(IDS, LENGTHS, KEEP)
    backbone.packed_logits(IDS[:8], (5, 3), KEEP[:2])
    assert kernel.windows == [(7, 0), (7, 0), (-1, 0), (-1, 0)]


def test_recomputed_layers_meet_the_same_rows(kernel):
    backbone, parameters = adapted("mistral", METHODS["prefix"], noise=0.05)
    _, kept = passed(backbone, parameters, "varlen")
    backbone.checkpointing(True)
    _, recomputed = passed(backbone, parameters, "varlen")
    for one, other in zip(kept, recomputed, strict=True):
        torch.testing.assert_close(one, other)


def test_what_the_kernel_cannot_goes_the_plain_way(kernel):
    capped, parameters = adapted("gemma2", METHODS["lora"], noise=0.05)
    passed(capped, parameters, "varlen")
    weighted, _ = adapted("llama", METHODS["prefix"], noise=0.05)
    weighted.use([("a", 0.5)])
    weighted.packed_logits(IDS, LENGTHS, KEEP)
    backbone, _ = adapted("llama", METHODS["prefix"], noise=0.05)
    backbone.use_rows([[("a", 1.0)], [], [("a", 1.0)], []])  # a hidden place is a bias
    backbone.packed_logits(IDS, LENGTHS, KEEP)
    assert not kernel.bounds


@pytest.mark.parametrize(("window", "virtual"), [(None, 0), (8, 6)])
def test_the_real_kernel_takes_these_arguments(window, virtual):
    # Tensors without storage run torch's own operator up to the device's code, gradients included.
    def made(heads: int, tokens: int) -> Tensor:
        shape = (1, heads, tokens, 64)
        return torch.empty(shape, device="meta", dtype=torch.bfloat16, requires_grad=True)

    q, k, v, own = made(8, 29), made(2, 29), made(2, 29), made(2, virtual)
    prefix = Prefix(own, own, torch.zeros(1, virtual), whole=True) if virtual else None
    spans = attention_kernels.Spans.of(LENGTHS, torch.device("meta"))
    out = attention_kernels.attend_rows(
        varlen_attn, q, k, v, spans, spans, prefix=prefix, scaling=0.1, window=window
    )
    leaves = [q, k, v, own] if virtual else [q, k, v]
    gradients = torch.autograd.grad(out.float().sum(), leaves)
    assert out.shape == q.shape
    assert [g.shape for g in gradients] == [leaf.shape for leaf in leaves]


def test_a_cpu_has_no_kernel_and_says_so():
    cpu = torch.device("cpu")
    assert attention_kernels.kernel(cpu) is None
    assert "on cpu" in attention_kernels.varlen_unavailable(cpu, torch.bfloat16, 64, capped=False)


@pytest.mark.parametrize(
    ("dtype", "head", "capped", "said"),
    [
        (torch.float32, 64, False, "model.dtype=bfloat16"), (torch.float16, 64, True, "caps"),
        (torch.bfloat16, 100, False, "100"), (torch.bfloat16, 128, False, None),
    ],
)  # fmt: skip
def test_why_a_model_cannot_attend_so_is_one_clause(monkeypatch, dtype, head, capped, said):
    monkeypatch.setattr(attention_kernels, "kernel", lambda device: Reference())
    why = attention_kernels.varlen_unavailable(torch.device("cuda:0"), dtype, head, capped=capped)
    assert said in why if said else not why


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("virtual", [0, 6])
@pytest.mark.parametrize("window", [None, 8])
def test_the_real_kernel_gives_what_row_after_row_gives(virtual, window):
    device = torch.device("cuda")
    run = attention_kernels.kernel(device)
    assert run is not None
    shapes = [(1, 8, 29, 64), (1, 2, 29, 64), (1, 2, 29, 64), (1, 2, virtual, 64)]
    results = []
    for name in ("row after row", "at once"):
        torch.manual_seed(0)
        q, k, v, own = (
            torch.randn(s, device=device, dtype=torch.bfloat16, requires_grad=True) for s in shapes
        )
        prefix = None
        if virtual:
            bias = torch.zeros(1, virtual, device=device)
            if name == "row after row" and window:
                at = torch.cat([torch.arange(n, device=device) for n in LENGTHS]) + virtual
                gone = torch.arange(virtual, device=device) <= (at - window)[:, None]
                bias = torch.zeros_like(gone, dtype=torch.float32).masked_fill(gone, -torch.inf)
                bias = bias[None]
            prefix = Prefix(own, own * 0.5, bias, whole=True)
        if name == "at once":
            spans = attention_kernels.Spans.of(LENGTHS, device)
            out = attention_kernels.attend_rows(
                run, q, k, v, spans, spans, prefix=prefix, scaling=None, window=window
            )
        else:
            shape = AttentionShape(window=window)
            out = attend_rows_in_turn(q, k, v, LENGTHS, LENGTHS, None, prefix, shape)
        leaves = [q, k, v, own] if virtual else [q, k, v]
        results.append((out, *torch.autograd.grad(out.float().square().sum(), leaves)))
    for plain, at_once in zip(*results, strict=True):
        torch.testing.assert_close(at_once, plain, rtol=3e-2, atol=3e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("model", ["llama", "mistral"])
@pytest.mark.parametrize("method", METHODS)
def test_a_whole_pass_on_a_gpu_is_the_same(model, method):
    backbone, parameters = adapted(model, METHODS[method], noise=0.05)
    backbone.model.to("cuda", torch.bfloat16)
    for parameter in parameters:
        parameter.data = parameter.data.cuda()
    plain, plain_gradients = passed(backbone, parameters, "sdpa")
    loss, gradients = passed(backbone, parameters, "varlen")
    torch.testing.assert_close(loss, plain, rtol=1e-2, atol=1e-2)
    for one, other in zip(gradients, plain_gradients, strict=True):
        assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.99
