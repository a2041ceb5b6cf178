"""Bottleneck adapters in AdapterHub's format, read and written.

Their folder also holds an `adapter_config.json`, told from PEFT's by its `config` part and the
missing `peft_type`; the weights are in `adapter.safetensors` (their default, a pickle, is refused).
Keys name the layer and the place: `…layers.{i}.attention_adapters.adapters.{name}.adapter_down.0…`
and `…layers.{i}.output_adapters.adapters.{name}.adapter_up…`.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from studio.errors import AdapterError
from studio.methods.bottleneck import Bottleneck
from studio.methods.layer.sites import Anatomy, Site
from studio.methods.method import Params

WEIGHTS = "adapter.safetensors"
KEY = re.compile(
    r"^[\w.]*?(?:layers|layer|h)\.(?P<layer>\d+)\.(?P<place>[\w.]*adapters)\.adapters\."
    r"(?P<name>[^.]+)\.(?P<part>adapter_down\.0|adapter_up)\.(?P<kind>weight|bias)$"
)
PLACES = {"attention_adapters": "attention", "output_adapters": "mlp"}
PARTS = {"adapter_down.0": "down", "adapter_up": "up"}
UNSUPPORTED = ("phm_layer", "inv_adapter", "use_gating", "cross_adapter", "ln_before", "ln_after",
               "stochastic_depth", "shared_W_phm")  # fmt: skip


def is_adapterhub(config: dict[str, Any]) -> bool:
    """Whether an `adapter_config.json` is AdapterHub's."""
    return "peft_type" not in config and isinstance(config.get("config"), dict)


def read(
    config: dict[str, Any], tensors: Params, anatomy: Anatomy
) -> tuple[Bottleneck, list[Site], list[Params]]:
    """Match an AdapterHub bottleneck with this model.

    Raises:
        AdapterError: Another architecture than a plain bottleneck, or tensors that do not fit.
    """
    method = _method(config, anatomy.hidden_size)
    sites = method.sites(anatomy)
    found: dict[tuple[int, str], Params] = {}
    for key, tensor in tensors.items():
        match = KEY.match(key)
        place = PLACES.get(match["place"]) if match else None
        if match is None or place is None:
            raise AdapterError(f"The adapter file holds {key}, which is no bottleneck's tensor.")
        own = found.setdefault((int(match["layer"]), place), {})
        own[f"{PARTS[match['part']]}.{match['kind']}"] = tensor.float()
    params = [_checked(found.pop((site.layer, site.kind), {}), method, site) for site in sites]
    if found:
        layer, place = min(found)
        raise AdapterError(
            f"The adapter file has a bottleneck in the {place} of layer {layer}, which this model "
            "or placement does not have: it was made for another base."
        )
    return method, sites, params


def write_config(method: Bottleneck, name: str, anatomy: Anatomy) -> dict[str, Any]:
    """Return AdapterHub's `adapter_config.json`."""
    houlsby, parallel = method.placement == "houlsby", method.placement == "parallel"
    size = method.size(anatomy.hidden_size)
    model = anatomy.model
    return {
        "config": {
            "architecture": None,
            "mh_adapter": houlsby,
            "output_adapter": True,
            "reduction_factor": anatomy.hidden_size / size,
            "non_linearity": method.non_linearity,
            "original_ln_before": method.placement == "pfeiffer",
            "original_ln_after": True,
            "ln_before": False,
            "ln_after": False,
            "init_weights": "mam_adapter",
            "is_parallel": parallel,
            "scaling": float(method.scaling),
            "residual_before_ln": True,
            "adapter_residual_before_ln": False,
            "dropout": method.adapter_dropout,
            "use_gating": False,
            "inv_adapter": None,
            "inv_adapter_reduction_factor": None,
            "cross_adapter": False,
            "leave_out": [],
            "phm_layer": False,
        },
        "hidden_size": anatomy.hidden_size,
        "model_class": type(model).__name__,
        "model_name": model.config.name_or_path,
        "model_type": model.config.model_type,
        "name": name,
        "version": "adapters.1.3.0",
    }


def write_tensors(sites: list[Site], params: dict[str, Params], name: str) -> Params:
    """Return the tensors under AdapterHub's keys."""
    parts = {short: long for long, short in PARTS.items()}
    places = {kind: place for place, kind in PLACES.items()}
    tensors = {}
    for site in sites:
        block = site.key.rpartition(".")[0]
        for key, tensor in params[site.key].items():
            short, _, kind = key.rpartition(".")
            where = f"{block}.{places[site.kind]}.adapters.{name}"
            tensors[f"{where}.{parts[short]}.{kind}"] = tensor.detach().cpu().contiguous()
    return tensors


def _method(config: dict[str, Any], hidden_size: int) -> Bottleneck:
    inner = config["config"]
    for field in UNSUPPORTED:
        if inner.get(field):
            raise AdapterError(
                f"This AdapterHub adapter uses {field}={inner[field]!r}; only plain bottlenecks "
                "can be loaded."
            )
    factor = inner.get("reduction_factor")
    if not isinstance(factor, int | float) or isinstance(factor, bool) or factor <= 0:
        raise AdapterError(f"reduction_factor must be one number, not {str(factor)[:60]}.")
    activation = str(inner.get("non_linearity", ""))
    if activation == "gelu" and not config.get("version"):
        activation = "gelu_new"  # files from before versions meant the approximation
    values = {
        "placement": _placement(inner),
        "bottleneck_dim": max(1, int(hidden_size // factor)),
        "non_linearity": activation,
        "scaling": inner.get("scaling", 1.0),
        "adapter_dropout": inner.get("dropout", 0.0),
    }
    return Bottleneck.from_peft(values)


def _placement(inner: dict[str, Any]) -> str:
    if inner.get("is_parallel"):
        return "parallel"
    if (
        inner.get("mh_adapter")
        and inner.get("output_adapter")
        and not inner.get("original_ln_before")
    ):
        return "houlsby"
    if (
        inner.get("output_adapter")
        and not inner.get("mh_adapter")
        and inner.get("original_ln_before")
    ):
        return "pfeiffer"
    raise AdapterError(
        "This AdapterHub adapter sits in an unusual place (neither after both sub-layers, nor "
        "after the MLP on the residual, nor beside the MLP)."
    )


def _checked(own: Params, method: Bottleneck, site: Site) -> Params:
    r, d = method.size(site.in_features), site.in_features
    shapes = {"down.weight": (r, d), "down.bias": (r,), "up.weight": (d, r), "up.bias": (d,)}
    for name, shape in shapes.items():
        tensor: Tensor | None = own.get(name)
        if tensor is None:
            raise AdapterError(f"The adapter file lacks {name} for {site.key}.")
        if tuple(tensor.shape) != shape:
            raise AdapterError(
                f"{name} for {site.key} has shape {tuple(tensor.shape)}, but this model needs "
                f"{shape}: the adapter was made for another base."
            )
    return own
