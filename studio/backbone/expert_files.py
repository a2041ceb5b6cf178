"""Names of expert adapters in PEFT's files, and files that were made for experts in other layouts.

PEFT wraps a module once per targeted parameter, in the order of the module's parameters. The first
wrapper is the innermost: of two, `gate_up_proj` is under `experts.base_layer` and `down_proj` under
`experts`. Inside the studio both are named by their parameter.

transformers 4 kept a list of experts with separate matrices, so files of that time have one LoRA
per expert and matrix. Those of gate and up become one of twice the rank, whose `B` is
block-diagonal, as PEFT converts them.

PEFT reads a parameter as `(E, O, I)` unless its module says otherwise. Llama 4 stores `(E, I, O)`
and does not say so: in its files the factors are those of the transposed matrix, `Bᵀ` and `Aᵀ`.

Shapes: `E experts, R rank, I in_features, O out_features, F inner`.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from transformers import conversion_mapping

from studio.backbone.sites import Anatomy, Site
from studio.errors import AdapterError
from studio.methods.method import START, Params

INNER = ".base_layer"
PARTS = ("lora_A", "lora_B")
OF_ONE_EXPERT = re.compile(
    r"^(?P<module>[\w.]+\.experts)\.(?P<expert>\d+)\.(?P<name>\w+)\.(?P<part>lora_[AB])\.weight$"
)
OLD_NAMES = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down",
             "w2": "down"}  # fmt: skip
OLD_MODULES = {"block_sparse_moe.experts": "mlp.experts"}  # renamed in transformers 5


def to_file(tensors: Params, sites: list[Site]) -> Params:
    """Rename the tensors of experts from their parameter's key to PEFT's wrapper."""
    renamed = _as_peft_reads(tensors, sites)
    for module, own in _by_module(sites).items():
        for depth, site in enumerate(reversed(own)):
            for part in PARTS:
                tensor = renamed.pop(f"{START}{site.key}.{part}.weight")
                renamed[f"{START}{module}{INNER * depth}.{part}.weight"] = tensor
    return renamed


def keep_linears(config: dict[str, Any], sites: list[Site], anatomy: Anatomy) -> None:
    """Name linear layers beside experts by their weight, where PEFT takes them for experts.

    On DeepSeek-V3, GLM-4-MoE and others PEFT reads the target `gate_proj` as the experts of a file
    from transformers 4, a shared expert's or a dense layer's too. It leaves target parameters as
    they are, and warns of their patterns though it applies them.
    """
    known = getattr(conversion_mapping, "_MODEL_TO_CONVERSION_PATTERN", {})
    config_kind = anatomy.model.config.model_type
    if not anatomy.experts() or known.get(config_kind) not in ("mixtral", "qwen2_moe"):
        return
    kept = [s for s in sites if not s.num_experts and s.key.rpartition(".")[2] in OLD_NAMES]
    if not kept:
        return
    others = [site for site in sites if not site.num_experts and site not in kept]
    config["target_modules"] = anatomy.shorten(others)
    named = [f"{site.key}.weight" for site in kept]
    config["target_parameters"] = [*config.get("target_parameters", ()), *named]
    for field in ("rank_pattern", "alpha_pattern"):
        if patterns := config.get(field):
            config[field] = {
                f"{name}.weight" if name.rpartition(".")[2] in OLD_NAMES else name: value
                for name, value in patterns.items()
            }


def from_file(tensors: Params, anatomy: Anatomy, config: dict[str, Any]) -> Params:
    """Rename the tensors of experts from PEFT's wrappers, or join those of each expert.

    Raises:
        AdapterError: An expert is missing, or a wrapper cannot be told.
    """
    sites = anatomy.experts()
    if not sites:
        return tensors
    targets = config.get("target_parameters") or []
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise AdapterError("adapter_config.json: target_parameters must be a list of names.")
    found = _joined(tensors, sites)
    for module, own in _by_module(sites).items():
        wanted = [
            site for site in own
            if any(site.key == name or site.key.endswith(f".{name}") for name in targets)
        ]  # fmt: skip
        for depth, site in enumerate(reversed(wanted)):
            for part in PARTS:
                key = f"{START}{module}{INNER * depth}.{part}.weight"
                if key in found:
                    found[f"{START}{site.key}.{part}.weight"] = found.pop(key)
    return _as_peft_reads(found, sites)


def _as_peft_reads(tensors: Params, sites: list[Site]) -> Params:
    """Swap the factors of matrices that PEFT takes for their transposes; twice changes nothing."""
    found = dict(tensors)
    for site in sites:
        names = [f"{START}{site.key}.{part}.weight" for part in PARTS]
        told = getattr(site.module, "is_transposed", False)
        if site.num_experts and site.transposed and not told and all(n in found for n in names):
            a, b = (found[name] for name in names)
            a_EIR = a.unflatten(0, (site.num_experts, -1)).mT
            b_ERO = b.unflatten(1, (-1, site.num_experts)).permute(2, 1, 0)
            found[names[0]] = b_ERO.flatten(0, 1).contiguous()
            found[names[1]] = a_EIR.permute(1, 2, 0).flatten(1).contiguous()
    return found


def _by_module(sites: list[Site]) -> dict[str, list[Site]]:
    """Return sites by their module, in the order of the module's parameters."""
    modules: dict[str, list[Site]] = {}
    for site in sites:
        modules.setdefault(site.key.rpartition(".")[0], []).append(site)
    return modules


def _joined(tensors: Params, sites: list[Site]) -> Params:
    """Join the tensors of single experts to those of all experts of a projection."""
    left: Params = {}
    single: dict[tuple[str, str, str], dict[int, Tensor]] = {}
    modules = {site.key.rpartition(".")[0] for site in sites}
    for key, tensor in tensors.items():
        match = OF_ONE_EXPERT.match(key.removeprefix(START))
        module = match["module"] if match else ""
        for old, new in OLD_MODULES.items():
            module = module if module in modules else module.replace(old, new)
        if match is None or match["name"] not in OLD_NAMES or module not in modules:
            left[key] = tensor
            continue
        place = (module, OLD_NAMES[match["name"]], match["part"])
        single.setdefault(place, {})[int(match["expert"])] = tensor
    for site in sites:
        module, _, name = site.key.rpartition(".")
        kinds = ("gate", "up") if name == "gate_up_proj" else (name.removesuffix("_proj"),)
        factors = [_stacked(single, module, kind, site) for kind in kinds]
        known = [pair for pair in factors if pair is not None]
        if known:
            if len(known) < len(kinds):
                raise AdapterError(
                    f"The adapter file adapts only a part of {site.key}, which holds gate and up."
                )
            a, b = known[0] if len(known) == 1 else _fused(*known, site=site)
            left[f"{START}{site.key}.lora_A.weight"] = a.flatten(0, 1)
            left[f"{START}{site.key}.lora_B.weight"] = b.permute(1, 2, 0).flatten(1)
    return left


def _stacked(
    single: dict[tuple[str, str, str], dict[int, Tensor]], module: str, kind: str, site: Site
) -> tuple[Tensor, Tensor] | None:
    """Return `A (E, R, I)` and `B (E, O, R)` of one matrix; None if the file has none."""
    stacks = []
    for part in PARTS:
        found = single.get((module, kind, part))
        if found is None:
            return None
        if set(found) != set(range(site.num_experts)):
            missing = min(set(range(site.num_experts)) ^ set(found))
            raise AdapterError(
                f"The adapter file and {site.key} have different experts ({missing} is in one of "
                "them only): the adapter was made for another base."
            )
        own = [found[expert] for expert in range(site.num_experts)]
        if len({tensor.shape for tensor in own}) > 1:
            raise AdapterError(f"The experts of {site.key} have different ranks in the file.")
        stacks.append(torch.stack(own))
    return stacks[0], stacks[1]


def _fused(
    gate: tuple[Tensor, Tensor], up: tuple[Tensor, Tensor], *, site: Site
) -> tuple[Tensor, Tensor]:
    """Return gate and up as one product of the summed rank."""
    (a_gate, b_gate), (a_up, b_up) = gate, up
    size, inner, rank = b_gate.shape
    b = b_gate.new_zeros(size, 2 * inner, rank + b_up.shape[2])
    if getattr(site.module, "is_concatenated", True):
        b[:, :inner, :rank], b[:, inner:, rank:] = b_gate, b_up
    else:  # gate and up alternate
        b[:, ::2, :rank], b[:, 1::2, rank:] = b_gate, b_up
    return torch.cat([a_gate, a_up], 1), b
