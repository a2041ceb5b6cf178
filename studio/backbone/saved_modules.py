"""What a LoRA trains beside `A` and `B`: whole modules, single tokens, low-rank embeddings.

- `modules_to_save`: full copies of linear layers, norms or the embeddings;
- `trainable_token_indices`: rows of the embeddings (and of the head that shares them);
- LoRA of the embeddings, `lora_embedding_A (r, V)` and `lora_embedding_B (D, r)`.

Each becomes an edit of the same adapter at the module's site that adds the difference to the base,
so it is weighted, stacked and switched like the rest. `fresh` makes those that a run trains; where
head and embeddings share their matrix, they share the difference.

Shapes: `n chosen tokens, V vocabulary, D hidden`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from studio.backbone.sites import Anatomy, Site
from studio.errors import AdapterError, MethodError, nearest
from studio.methods.lora import Lora
from studio.methods.method import START, Method, Params, Phase
from studio.methods.norm_tuning import NormTuning
from studio.models.new_tokens import new_token_ids

TOKENS = "token_adapter.trainable_tokens_delta"
LOW_RANK = ("lora_embedding_A", "lora_embedding_B")


class SavedModules(Method):
    """`y = f(x; W) + f(x; ΔW)` with `ΔW = W' − W` of a module that a file stores in full.

    Parameters of a site: `weight` and `bias` (differences), or `tokens` with their `_index`, or the
    low-rank `A` and `B` of the embeddings.
    """

    title: ClassVar[str] = "Saved modules"
    paper: ClassVar[str] = ""
    phase: ClassVar[Phase] = Phase.DELTA
    peft_type: ClassVar[str] = ""

    name: Literal["saved_modules"] = "saved_modules"

    def delta(self, p: Params, x: Tensor, y: Tensor, site: Site, *, training: bool) -> Tensor:
        """Return what the difference adds to the module's output."""
        if site.kind == "norm":
            return NormTuning().delta(p, x, y, site, training=training)
        if site.kind != "embedding":
            if "tokens" in p:
                rows = linear(x.to(p["tokens"].dtype), p["tokens"])
                change = rows.new_zeros(*rows.shape[:-1], site.out_features)
                return change.index_add(-1, p["_index"], rows)
            change = linear(x.to(p["weight"].dtype), p["weight"])
            return change + p["bias"] if "bias" in p else change
        ids = x[..., 0]
        scale = getattr(site.module, "embed_scale", 1.0)
        if "A" in p:
            return embedding(ids, p["A"].T) @ p["B"].T * scale
        if "tokens" in p:
            chosen = (x == p["_index"]).to(p["tokens"].dtype)
            return chosen @ p["tokens"] * scale
        return embedding(ids, p["weight"]) * scale

    def fold(self, p: Params, site: Site, weight: float) -> Params:
        """Return the differences of `weight` and `bias`."""
        if "A" in p:
            return {"weight": weight * (p["B"] @ p["A"]).T}
        if "tokens" in p:
            whole = torch.zeros(site.parameter.shape, device=p["tokens"].device)
            return {"weight": whole.index_add(0, p["_index"], weight * p["tokens"])}
        return {name: weight * tensor.float() for name, tensor in p.items()}


def fresh(method: Lora, anatomy: Anatomy, taken: Sequence[Site]) -> tuple[list[Site], list[Params]]:
    """Return the saved modules that a method trains beside the sites `taken`, as zero differences.

    Raises:
        MethodError: A module or token does not exist, or is trained already.
    """
    found: dict[str, tuple[Site, Params]] = {}
    embedding_, names = anatomy.embedding(), method.modules_to_save
    shared = _sharing(anatomy, embedding_)
    head = anatomy.model.get_output_embeddings()
    both = [*shared, *(s for s in anatomy.all_linears()
                       if s.module is head and s.key != shared[-1].key)]  # fmt: skip
    for site in both if names == "embeddings" else _named(anatomy, names):
        if site.transposed:
            raise MethodError(f"{site.key} is stored transposed and cannot be trained in full.")
        if _is_quantised(site):
            raise MethodError(
                f"{site.key} is quantised and cannot be trained in full: set "
                "model.quantization=none, or leave it out of method.modules_to_save."
            )
        first = next((p for s, p in found.values() if s.parameter is site.parameter), {})
        found[site.key] = (site, first or {
            name: torch.zeros(own.shape)
            for name in ("weight", "bias")
            if isinstance(own := getattr(site.module, name, None), nn.Parameter)
        })  # fmt: skip
    ids = trained_tokens(method, anatomy)
    if ids and embedding_.key not in found:
        index = torch.tensor(ids)
        deltas = {id(site.parameter): torch.zeros(len(ids), anatomy.hidden_size) for site in both}
        for site in both:
            if site.key in found and site.parameter is embedding_.parameter:
                raise MethodError(
                    f"{site.key} shares its matrix with the embeddings, of which "
                    "method.trainable_token_indices trains single tokens: set "
                    "method.modules_to_save=embeddings or method.trainable_token_indices=none."
                )
            if site.key not in found:
                found[site.key] = (site, {"tokens": deltas[id(site.parameter)], "_index": index})
    if twice := {site.key for site in taken} & found.keys():
        raise MethodError(
            f"{min(twice)} is trained by method.target_modules already: leave it out there, or in "
            "method.modules_to_save."
        )
    return [site for site, _ in found.values()], [own for _, own in found.values()]


def trained_tokens(method: Lora, anatomy: Anatomy) -> list[int]:
    """Return the ids of the tokens whose embeddings a method trains.

    Raises:
        MethodError: The model has no such token.
    """
    chosen = method.trainable_token_indices
    if chosen == "none":
        return []
    if chosen == "new":
        return new_token_ids(Path(anatomy.model.name_or_path))
    rows = len(anatomy.embedding().parameter)
    if wrong := [token for token in chosen if not 0 <= token < rows]:
        raise MethodError(
            f"method.trainable_token_indices has {wrong[0]}, but the model's tokens are 0 to "
            f"{rows - 1}."
        )
    return list(dict.fromkeys(chosen))


def check(config: dict[str, Any], tensors: Params) -> None:
    """Check that a file holds the saved modules that its config announces beside `A` and `B`.

    Raises:
        AdapterError: A field is not a list of names, or its tensors are missing.
    """
    names = config.get("modules_to_save") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise AdapterError("adapter_config.json: modules_to_save must be a list of names.")
    modules = tuple(key.rpartition(".")[0] for key in tensors)
    wanted = [("modules_to_save", name, any(m.endswith(name) for m in modules)) for name in names]
    if config.get("trainable_token_indices"):
        found = any(key.endswith(f".{TOKENS}") for key in tensors)
        wanted.append(("trainable_token_indices", TOKENS, found))
    if config.get("lora_bias"):
        found = any(key.endswith(".lora_B.bias") for key in tensors)
        wanted.append(("lora_bias", "lora_B.bias", found))
    for field, name, there in wanted:
        if not there:
            raise AdapterError(
                f"adapter_config.json has {field}, but the adapter file holds no {name}."
            )


def split(
    method: Lora, config: dict[str, Any], tensors: Params, anatomy: Anatomy
) -> tuple[Params, list[Site], list[Params]]:
    """Return the tensors of `A` and `B` alone, and the sites and parameters of the others.

    Raises:
        AdapterError: A saved module is unknown, quantised, of another kind or of another size.
    """
    left, found = dict(tensors), dict[str, tuple[Site, Params]]()
    known = {site.key: site for site in (*anatomy.all_linears(), *anatomy.norms(),
                                         anatomy.embedding())}  # fmt: skip
    saved = tuple(config.get("modules_to_save") or ())  # PEFT compares the ends of paths
    for key in tensors:
        path = key.removeprefix(START)
        module, _, name = path.rpartition(".")
        if key.endswith(f".{TOKENS}"):
            site = _known(known, path.removesuffix(f".{TOKENS}"), key)
            index = _indices(config, site)
            own = site.parameter.detach().float().cpu()[index]
            delta = _sized(left.pop(key), own, key) - own
            for where in _sharing(anatomy, site):
                if f"{START}{where.key}.weight" in tensors:
                    raise AdapterError(
                        f"The adapter file stores {where.key} in full, and single tokens of the "
                        "embeddings that share its matrix: only one of the two can be loaded."
                    )
                found[where.key] = (where, {"tokens": delta, "_index": index})
        elif name in LOW_RANK and (a := left.get(f"{START}{module}.{LOW_RANK[0]}")) is not None:
            site, b = _known(known, module, key), left.get(f"{START}{module}.{LOW_RANK[1]}")
            rows, width = site.parameter.shape
            if b is None or a.shape[1] != rows or b.shape != (width, len(a)):
                raise AdapterError(f"{key} does not fit {module} of this model ({rows} × {width}).")
            found[module] = (site, {"A": a.float(), "B": b.float() * method.scaling})
            for factor in LOW_RANK:
                del left[f"{START}{module}.{factor}"]
        elif name in ("weight", "bias") and module.endswith(saved):
            site = _known(known, module, key)
            own = anatomy.parameter(path)
            if own is None or site.transposed:
                raise AdapterError(f"{key} is not a parameter of this model.")
            base = own.detach().float().cpu()
            delta = _sized(left.pop(key), base, key) - base
            twin = next((p for s, p in found.values() if s.parameter is site.parameter), {})
            if name in twin and twin[name].equal(delta):
                delta = twin[name]  # tied matrices stay one
            found.setdefault(module, (site, {}))[1][name] = delta
    for module, (site, own) in found.items():
        if site.kind == "norm" and "weight" not in own:
            own["weight"] = torch.zeros(site.in_features)
        elif site.kind == "linear" and "bias" in own and "weight" not in own:
            own["weight"] = torch.zeros(site.out_features, site.in_features)
        if any(key.startswith(f"{START}{module}.lora_") for key in left):
            both = "DoRA of embeddings" if "A" in own else "both a LoRA and a copy of its own"
            raise AdapterError(f"{module} has {both} in the file, which cannot be loaded.")
    return left, [site for site, _ in found.values()], [own for _, own in found.values()]


def joined(
    config: dict[str, Any], method: Lora, sites: Sequence[Site], params: dict[str, Params],
    anatomy: Anatomy,
) -> Params:  # fmt: skip
    """Return the file's tensors of saved modules, and add their fields to its config."""
    tensors: Params = {}
    for site in sites:
        p, key = params[site.key], f"{START}{site.key}"
        if "A" in p:
            tensors[f"{key}.{LOW_RANK[0]}"] = p["A"].detach()
            tensors[f"{key}.{LOW_RANK[1]}"] = p["B"].detach() / method.scaling
            config["target_modules"].append(site.key)
            if (rank := len(p["A"])) != config["r"]:
                alpha = method.scaling * (rank**0.5 if method.use_rslora else rank)
                config.setdefault("rank_pattern", {})[site.key] = rank
                config.setdefault("alpha_pattern", {})[site.key] = alpha
        elif "tokens" in p:
            if site.kind != "embedding" and site.parameter is anatomy.embedding().parameter:
                continue  # PEFT ties the head's rows to those of the embeddings
            own = site.parameter.detach().float().cpu()[p["_index"].cpu()]
            tensors[f"{key}.{TOKENS}"] = own + p["tokens"].detach().cpu()
            name = site.key.rpartition(".")[2]
            config.setdefault("trainable_token_indices", {})[name] = p["_index"].tolist()
        else:
            assert not _is_quantised(site)
            for name, delta in p.items():
                base = getattr(site.module, name).detach().float()
                tensors[f"{key}.{name}"] = base + delta.detach().to(base.device)
            config.setdefault("modules_to_save", []).append(site.key)
    return tensors


def _known(known: dict[str, Site], module: str, key: str) -> Site:
    if module not in known:
        raise AdapterError(
            f"The adapter file stores {key}, which belongs to neither a linear layer nor a norm "
            "nor the embeddings of this model."
        )
    if _is_quantised(known[module]):
        raise AdapterError(
            f"The adapter file stores {key} in full, but {module} of this model is quantised: set "
            "model.quantization=none."
        )
    return known[module]


def _is_quantised(site: Site) -> bool:
    return hasattr(site.parameter, "quant_state")


def _sized(tensor: Tensor, own: Tensor, key: str) -> Tensor:
    if tensor.shape != own.shape:
        raise AdapterError(
            f"{key} has shape {tuple(tensor.shape)}, but this model needs {tuple(own.shape)}: the "
            "adapter was made for another base."
        )
    return tensor.float()


def _indices(config: dict[str, Any], site: Site) -> Tensor:
    """Return the token ids whose rows the file stores."""
    chosen = config.get("trainable_token_indices")
    if isinstance(chosen, dict):
        ends = (ids for name, ids in chosen.items() if f".{site.key}".endswith(f".{name}"))
        chosen = next(ends, None)
    rows = len(site.parameter)
    ids = chosen if isinstance(chosen, list) else [None]
    good = all(isinstance(i, int) and 0 <= i < rows for i in ids)
    if not good or len(set(ids)) < len(ids):
        raise AdapterError(
            "adapter_config.json: trainable_token_indices must list different token ids below "
            f"{rows}, those of {site.key}."
        )
    return torch.tensor(ids)


def _named(anatomy: Anatomy, names: Any) -> list[Site]:
    """Return the sites whose keys end with one of these names, as PEFT compares them."""
    if names == "none":
        return []
    known = (*anatomy.all_linears(), *anatomy.norms(), anatomy.embedding())
    for name in names:
        if not any(f".{site.key}".endswith(f".{name}") for site in known):
            raise MethodError(
                f"method.modules_to_save has {name}, which is neither a linear layer nor a norm "
                f"nor the embeddings of this model.{nearest(name, {s.tail for s in known})}"
            )
    ends = tuple(f".{name}" for name in names)
    return [site for site in known if f".{site.key}".endswith(ends)]


def _sharing(anatomy: Anatomy, site: Site) -> list[Site]:
    """Return the embeddings and the head that shares their matrix."""
    head: nn.Module | None = anatomy.model.get_output_embeddings()
    tied = head is not None and head.weight is site.module.weight
    return [site, *(s for s in anatomy.all_linears() if tied and s.module is head)]
