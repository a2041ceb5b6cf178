"""Every method's formula again, in plain matrices, sharing no line with the studio's own maths.

`logits(model_name, adapter, ids)` takes a fresh copy of the base and changes its weights, wraps its
modules, fills its cache or its embeddings by hand, and returns the logits that must come out.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.pytorch_utils import Conv1D

from studio.backbone import Adapter
from studio.chat.decoding import cache_argument
from tests.studio.tiny import tiny_model


def logits(model_name: str, adapter: Adapter, ids_BT: Tensor) -> Tensor:
    """Return logits_BTV of the base with this adapter, computed by hand."""
    model = tiny_model(model_name)
    how = {
        "lora": _lora, "qlora": _lora, "loha": _loha, "lokr": _lokr, "vera": _vera,
        "bitfit": _bitfit, "norm_tuning": _norm, "ia3": _ia3, "bottleneck": _bottleneck,
    }  # fmt: skip
    values = {key: {n: t.detach() for n, t in p.items()} for key, p in adapter.params.items()}
    with torch.no_grad():
        if adapter.method.name == "prefix_tuning":
            return _prefix(model, adapter.method, values[""], ids_BT)
        if adapter.method.name in ("prompt_tuning", "p_tuning"):
            return _prompt(model, values[""], ids_BT)
        for key, p in values.items():
            if ".experts." in key:
                _experts(model.get_parameter(key), p, adapter.method)
                continue
            how[adapter.method.name](model.get_submodule(key), p, adapter.method, model, key)
        return model(ids_BT).logits


def _add(module: nn.Module, delta_OI: Tensor) -> None:
    module.weight += delta_OI.T if isinstance(module, Conv1D) else delta_OI


def _lora(module: Any, p: Any, method: Any, model: Any, key: str) -> None:
    s = method.lora_alpha / (math.sqrt(method.r) if method.use_rslora else method.r)
    delta = s * torch.einsum("or,ri->oi", p["lora_B"], p["lora_A"])
    if "_lora_A0" in p:
        delta -= s * torch.einsum("or,ri->oi", p["_lora_B0"], p["_lora_A0"])
    if method.use_dora:
        w = module.weight.T.clone() if isinstance(module, Conv1D) else module.weight.clone()
        new = w + delta
        new = p["magnitude"][:, None] * new / new.pow(2).sum(1, keepdim=True).sqrt()
        delta = new - w
    _add(module, delta)


def _experts(weight_EOI: nn.Parameter, p: Any, method: Any) -> None:
    s = method.lora_alpha / (math.sqrt(method.r) if method.use_rslora else method.r)
    for expert, (a, b) in enumerate(zip(p["lora_A"], p["lora_B"], strict=True)):
        weight_EOI[expert] += s * b @ a


def _loha(module: Any, p: Any, method: Any, model: Any, key: str) -> None:
    left = torch.einsum("or,ri->oi", p["hada_w1_a"], p["hada_w1_b"])
    right = torch.einsum("or,ri->oi", p["hada_w2_a"], p["hada_w2_b"])
    _add(module, left * right * method.alpha / method.r)


def _lokr(module: Any, p: Any, method: Any, model: Any, key: str) -> None:
    c = p["lokr_w1"] if "lokr_w1" in p else p["lokr_w1_a"] @ p["lokr_w1_b"]
    d = p["lokr_w2"] if "lokr_w2" in p else p["lokr_w2_a"] @ p["lokr_w2_b"]
    rows = [torch.cat([c[i, j] * d for j in range(c.shape[1])], 1) for i in range(c.shape[0])]
    _add(module, torch.cat(rows, 0) * method.alpha / method.r)


def _vera(module: Any, p: Any, method: Any, model: Any, key: str) -> None:
    o, i = len(p["lambda_b"]), (module.nx if isinstance(module, Conv1D) else module.in_features)
    a, b = p["__A"][:, :i], p["__B"][:o]
    _add(module, torch.diag(p["lambda_b"]) @ b @ torch.diag(p["lambda_d"]) @ a)


def _bitfit(module: Any, p: Any, method: Any, model: Any, key: str) -> None:
    if module.bias is None:
        module.bias = nn.Parameter(torch.zeros_like(p["bias"]))
    module.bias += p["bias"]


def _norm(module: Any, p: Any, method: Any, model: Any, key: str) -> None:
    module.weight += p["weight"]
    if "bias" in p:
        module.bias += p["bias"]


def _ia3(module: Any, p: Any, method: Any, model: Any, key: str) -> None:
    conv = isinstance(module, Conv1D)
    if "gain_in" in p:
        module.weight *= p["gain_in"][:, None] if conv else p["gain_in"][None]
        return
    module.weight *= p["gain_out"][None] if conv else p["gain_out"][:, None]
    if module.bias is not None:
        module.bias *= p["gain_out"]


def _bottleneck(module: Any, p: Any, method: Any, model: Any, key: str) -> None:
    """Wrap the sub-layer; the residual stream is caught at the input of its norm."""
    layer = model.get_submodule(key.rpartition(".")[0])
    names = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2")
    norm = next(getattr(layer, name) for name in names if hasattr(layer, name))
    caught = {}
    norm.register_forward_pre_hook(lambda m, args: caught.update(x=args[0]))
    sigma = {
        "swish": lambda z: z * torch.sigmoid(z), "relu": lambda z: z.clamp(min=0),
        "gelu": lambda z: 0.5 * z * (1 + torch.erf(z / math.sqrt(2))), "tanh": torch.tanh,
        "linear": lambda z: z,
    }[method.non_linearity]  # fmt: skip

    def after(module: Any, args: Any, output: Any) -> Any:
        h = output[0] if isinstance(output, tuple) else output
        u = {"houlsby": h}.get(method.placement)
        if u is None:
            u = caught["x"] + h if method.placement == "pfeiffer" else caught["x"]
        z = sigma(u @ p["down.weight"].T + p["down.bias"])
        new = h + method.scaling * (z @ p["up.weight"].T + p["up.bias"])
        return (new, *output[1:]) if isinstance(output, tuple) else new

    module.register_forward_hook(after)


def _prefix(model: Any, method: Any, p: Any, ids_BT: Tensor) -> Tensor:
    table = p["embedding"]
    if "transform.0.weight" in p:
        inner = torch.tanh(table @ p["transform.0.weight"].T + p["transform.0.bias"])
        table = inner @ p["transform.2.weight"].T + p["transform.2.bias"]
    config = model.config
    kv = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_layer = table.reshape(len(table), config.num_hidden_layers, 2, kv, head)
    cache = DynamicCache()
    rows = ids_BT.shape[0]
    for layer in range(config.num_hidden_layers):
        keys, values = per_layer[:, layer].permute(1, 2, 0, 3)
        expand = lambda t: t[None].expand(rows, -1, -1, -1)  # noqa: E731
        cache.update(expand(keys), expand(values), layer)
    mask = torch.ones(rows, len(table) + ids_BT.shape[1], dtype=torch.long)
    return model(ids_BT, attention_mask=mask, **{cache_argument(model): cache}).logits


def _prompt(model: Any, p: Any, ids_BT: Tensor) -> Tensor:
    table = p["embedding"]
    for place in (0, 2, 4):
        if f"mlp.{place}.weight" in p:
            table = table @ p[f"mlp.{place}.weight"].T + p[f"mlp.{place}.bias"]
            table = table.clamp(min=0) if place < 4 else table
    words = model.get_input_embeddings()(ids_BT)
    whole = torch.cat([table[None].expand(len(ids_BT), -1, -1), words], 1)
    return model(inputs_embeds=whole).logits[:, len(table) :]
