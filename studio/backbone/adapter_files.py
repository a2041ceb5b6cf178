"""Read and write adapters in PEFT's and AdapterHub's file formats.

PEFT: `adapter_config.json` and `adapter_model.safetensors`. AdapterHub's folder also has an
`adapter_config.json`, recognised by its `config` part and the missing `peft_type`; its weights are
in `adapter.safetensors` (their default, a pickle, is refused), with keys by layer and place such as
`…layers.{i}.output_adapters.adapters.{name}.adapter_up.weight`.

PEFT files made elsewhere are first brought into the plain form:

- Keys as other trainers save them: with the adapter's name (`lora_A.default.weight`), the prefix of
  a compiled model (`_orig_mod.`), or without the part that names a wrapper's text tower.
- `rank_pattern` and `alpha_pattern`: ranks follow from the tensors, and a module's own scale moves
  into its `B`, so the whole adapter has one scale. A pattern is a name or the end of a path. Of
  regular expressions only `.*`, `\\d+`, `^` and escaped dots are understood.

Reading is strict, because files may come from anywhere: safetensors only, a config of bounded size
whose every field is understood, no regular expression or code from it is run, and the tensors must
be exactly those of the method on this model. So no file can change base weights.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from studio.backbone import expert_files, saved_modules
from studio.backbone.sites import Anatomy, Site
from studio.errors import AdapterError
from studio.methods.bottleneck import Bottleneck
from studio.methods.lora import Lora
from studio.methods.method import START, Method, Params
from studio.methods.method_of_config import (
    CONFIG,
    is_adapterhub,
    read_bottleneck,
    read_json,
    read_method,
)

if TYPE_CHECKING:
    from studio.backbone.composition import Adapter


T = TypeVar("T")
WEIGHTS = "adapter_model.safetensors"
ADAPTERHUB_WEIGHTS = "adapter.safetensors"
KEY = re.compile(
    r"^[\w.]*?(?:layers|layer|h)\.(?P<layer>\d+)\.(?P<place>[\w.]*adapters)\.adapters\."
    r"(?P<name>[^.]+)\.(?P<part>adapter_down\.0|adapter_up)\.(?P<kind>weight|bias)$"
)
PLACES = {"attention_adapters": "attention", "output_adapters": "mlp"}
PARTS = {"adapter_down.0": "down", "adapter_up": "up"}
TOWER = "language_model."
A_ENDINGS = (".lora_A.weight", ".lora_embedding_A")
NAMED = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)\.default(?=\.|$)")
COMPILED = "_orig_mod."
TOKENS = re.compile(r"\\\.|\.\*|\\d\+|\.|[\w-]+")


def read(
    folder: Path, anatomy: Anatomy
) -> tuple[Method, list[Site], list[Params], dict[str, Method]]:
    """Return the adapter in a folder for this model: method, sites, parameters, other methods.

    Raises:
        AdapterError: A file is missing or invalid, or does not fit this base.
    """
    config = read_json(folder / CONFIG)
    if is_adapterhub(config):
        return *read_adapterhub(config, read_tensors(folder, ADAPTERHUB_WEIGHTS), anatomy), {}
    method = read_method(config)
    tensors = clean_keys(read_tensors(folder, WEIGHTS))
    if isinstance(method, Lora):
        saved_modules.check(config, tensors)
    tensors = expert_files.from_file(_without_copies(tensors, anatomy), anatomy, config)
    if not isinstance(method, Lora):
        return method, *method.from_tensors(tensors, anatomy), {}
    method, tensors = one_scale(method, config, tensors, anatomy)
    tensors, places, parts = saved_modules.split(method, config, tensors, anatomy)
    sites, params = method.from_tensors(tensors, anatomy) if tensors or not places else ([], [])
    beside: dict[str, Method] = {site.key: saved_modules.SavedModules() for site in places}
    return method, [*sites, *places], [*params, *parts], beside


def write(adapter: Adapter, folder: Path, anatomy: Anatomy, *, base: str) -> None:
    """Write PEFT's two files into an existing folder."""
    method = adapter.method
    own = [site for site in adapter.sites if site.key not in adapter.beside]
    experts = [site for site in own if site.num_experts]
    config = {
        "peft_type": method.peft_type,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "target_modules": anatomy.shorten([site for site in own if not site.num_experts]),
        **method.to_peft(own),
        **method.patterns(own, adapter.params),
    }
    if experts:
        config["target_parameters"] = anatomy.shorten_experts(experts)
    if isinstance(method, Lora) and not method.use_dora:
        expert_files.keep_linears(config, own, anatomy)
    if config["target_modules"] is None:
        del config["target_modules"]
    tensors = expert_files.to_file(method.to_tensors(own, adapter.params), experts)
    if isinstance(method, Lora):
        beside = [site for site in adapter.sites if site.key in adapter.beside]
        tensors |= saved_modules.joined(config, method, beside, adapter.params, anatomy)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def write_adapterhub(adapter: Adapter, folder: Path, anatomy: Anatomy, *, name: str) -> None:
    """Write a bottleneck adapter in AdapterHub's format into an existing folder.

    Raises:
        AdapterError: The adapter is not a bottleneck.
    """
    if not isinstance(adapter.method, Bottleneck):
        raise AdapterError(
            f"{adapter.method.title} cannot be written in AdapterHub's format; export it as PEFT."
        )
    config = write_config(adapter.method, name, anatomy)
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    tensors = write_tensors(adapter.sites, adapter.params, name)
    save_file(tensors, folder / ADAPTERHUB_WEIGHTS, metadata={"format": "pt"})


def read_tensors(folder: Path, name: str) -> Params:
    """Return the tensors of a safetensors file in an adapter folder.

    Raises:
        AdapterError: The file is missing, a pickle, or damaged.
    """
    path = folder / name
    if not path.is_file():
        pickles = [p.name for p in folder.glob("*.bin")]
        if pickles:
            raise AdapterError(
                f"{folder} stores its weights as a pickle ({pickles[0]}), which can run code "
                "when opened. Convert it where you trust it: load it with its own library and "
                "save it as safetensors (PEFT: save_pretrained(folder, safe_serialization=True))."
            )
        raise AdapterError(f"{folder} has no {name}.")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(f"{path} is damaged or truncated ({error}).") from None


def _without_copies(tensors: Params, anatomy: Anatomy) -> Params:
    """Return the tensors under this model's keys, without copies of the base's.

    PEFT stores such copies when it adapts the output head.
    """
    kept = {}
    for key, tensor in own_keys(tensors, anatomy.modules).items():
        own_key = key.removeprefix(START).replace(".base_layer.", ".")
        own_key = own_key.replace(".token_adapter.", ".")
        own = anatomy.parameter(own_key)
        if own is None or not own.detach().to("cpu", tensor.dtype).equal(tensor):
            kept[key] = tensor
    return kept


def read_adapterhub(
    config: dict[str, Any], tensors: Params, anatomy: Anatomy
) -> tuple[Bottleneck, list[Site], list[Params]]:
    """Return an AdapterHub bottleneck for this model: method, sites, parameters.

    Raises:
        AdapterError: It is not a plain bottleneck, or its tensors do not fit the model.
    """
    method = read_bottleneck(config, anatomy.hidden_size)
    sites = method.sites(anatomy)
    found: dict[tuple[int, str], Params] = {}
    for key, tensor in tensors.items():
        match = KEY.match(key)
        place = PLACES.get(match["place"]) if match else None
        if match is None or place is None:
            raise AdapterError(
                f"The adapter file holds {key}, which is not a tensor of a bottleneck."
            )
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
    model, width = anatomy.model, anatomy.hidden_size
    size = method.size(width)
    factor = width / (size if width % size == 0 else size + 0.5)  # `width // factor` is the size
    return {
        "config": {
            "architecture": None, "mh_adapter": method.placement == "houlsby",
            "output_adapter": True, "reduction_factor": factor,
            "non_linearity": method.non_linearity, "scaling": float(method.scaling),
            "dropout": method.adapter_dropout, "init_weights": "mam_adapter",
            "is_parallel": method.placement == "parallel",
            "original_ln_before": method.placement == "pfeiffer", "original_ln_after": True,
            "ln_before": False, "ln_after": False, "residual_before_ln": True,
            "adapter_residual_before_ln": False, "use_gating": False, "inv_adapter": None,
            "inv_adapter_reduction_factor": None, "cross_adapter": False, "leave_out": [],
            "phm_layer": False,
        },
        "hidden_size": width, "model_class": type(model).__name__,
        "model_name": model.config.name_or_path, "model_type": model.config.model_type,
        "name": name, "version": "adapters.1.3.0",
    }  # fmt: skip


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


def clean_keys(tensors: Params) -> Params:
    """Return the tensors under the keys of PEFT's own files."""
    found = {NAMED.sub(r".\1", key.replace(COMPILED, "")): one for key, one in tensors.items()}
    vector = "lora_magnitude_vector"
    return {key.replace(f"{vector}.weight", vector): one for key, one in found.items()}


def one_scale(
    method: Lora, config: dict[str, Any], tensors: Params, anatomy: Anatomy
) -> tuple[Lora, Params]:
    """Move the scale of every module into its `B`; return the method with the common rank.

    Raises:
        AdapterError: A pattern is not understood, or a rank is not that of the config.
    """
    r, alpha = method.r, method.lora_alpha
    ranks, alphas = (_patterns(config, name) for name in ("rank_pattern", "alpha_pattern"))
    root = 0.5 if method.use_rslora else 1.0
    scale, made, found = method.scaling, dict(tensors), Counter[int]()
    experts = {site.key: site.num_experts for site in anatomy.experts()}
    for key, a in tensors.items():
        ending = next((one for one in A_ENDINGS if key.endswith(one)), None)
        if ending is None:
            continue
        module = key.removeprefix(START).removesuffix(ending)
        rank, size = _matched(ranks, module, r), experts.get(module, 0)
        stored = a.shape[0] // max(1, size)
        # Gate and up of single experts were joined to twice the rank.
        if stored != rank and not (size and stored == 2 * rank):
            raise AdapterError(
                f"{key} has rank {stored}, but adapter_config.json says {rank}: the adapter was "
                "made for another base or r."
            )
        own = _matched(alphas, module, alpha) / rank**root
        name = f"{START}{module}{ending.replace('A', 'B')}"
        for scaled in {name, name.replace(".weight", ".bias")}:
            if own != scale and scaled in made:
                made[scaled] = made[scaled].float() * (own / scale)
        found[stored] += 0 if size else 1
    common = found.most_common(1)[0][0] if found.total() else r
    return method.model_copy(update={"r": common, "lora_alpha": scale * common**root}), made


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _patterns(config: dict[str, Any], field: str) -> list[tuple[re.Pattern[str], float]]:
    values = config.get(field) or {}
    if not isinstance(values, dict) or not all(_is_number(value) for value in values.values()):
        raise AdapterError(f"adapter_config.json: {field} must map names to positive numbers.")
    # A linear layer among the `target_parameters` goes by its weight.
    return [(_pattern(k.removesuffix(".weight"), field), value) for k, value in values.items()]


def _pattern(name: str, field: str) -> re.Pattern[str]:
    """Return a pattern that matches a path or its end as PEFT does, in linear time."""
    tokens = TOKENS.findall(name.removeprefix("^").removesuffix("$"))
    if "".join(tokens) != name.removeprefix("^").removesuffix("$") or tokens.count(".*") > 2:
        raise AdapterError(
            f"adapter_config.json: {field} has the expression {name[:60]!r}; only module names, "
            "`.*` (at most twice) and `\\d+` are read."
        )
    known = {".*": ".*", r"\d+": r"\d+", ".": r"\.", r"\.": r"\."}
    body = "".join(known.get(token, token) for token in tokens)
    return re.compile(body if name.startswith("^") else rf"(?:.*\.)?{body}")


def _matched(patterns: list[tuple[re.Pattern[str], float]], module: str, default: Any) -> Any:
    return next((value for pattern, value in patterns if pattern.fullmatch(module)), default)


def plain(path: str) -> str:
    """Return a module path without the part that names the text tower of a wrapper."""
    return path.replace(TOWER, "")


def own_keys(tensors: Mapping[str, T], modules: Iterable[str]) -> dict[str, T]:
    """Return tensors, by PEFT's keys, under the keys that this model's modules have."""
    known = set(modules)
    by_plain = {plain(path): path for path in known}
    return {_own_key(key, known, by_plain): tensor for key, tensor in tensors.items()}


def _own_key(key: str, known: set[str], by_plain: Mapping[str, str]) -> str:
    if not key.startswith(START):
        return key
    rest = key.removeprefix(START)
    path = rest
    parts: list[str] = []
    while path:
        if path in known:
            return key
        if plain(path) in by_plain:
            return ".".join([f"{START}{by_plain[plain(path)]}", *reversed(parts)])
        path, _, part = path.rpartition(".")
        parts.append(part)
    return key
