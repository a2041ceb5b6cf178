"""Bring PEFT files made elsewhere into the plain form and under the keys that this model reads.

- Keys as other trainers save them: with the adapter's name (`lora_A.default.weight`) or the prefix
  of a compiled model (`_orig_mod.`).
- `rank_pattern` and `alpha_pattern`: ranks follow from the tensors, and a module's own scale moves
  into its `B`, so the whole adapter has one scale.

A pattern is a name or the end of a path. Of regular expressions only `.*`, `\\d+`, `^` and escaped
dots are understood, and no other expression from a file is run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from studio.backbone.sites import Anatomy
from studio.errors import AdapterError
from studio.methods.lora import Lora
from studio.methods.method import START, Params

T = TypeVar("T")
TOWER = "language_model."
A_ENDINGS = (".lora_A.weight", ".lora_embedding_A")
NAMED = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)\.default(?=\.|$)")
COMPILED = "_orig_mod."
TOKENS = re.compile(r"\\\.|\.\*|\\d\+|\.|[\w-]+")


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
    """Return the tensors under the keys that this model's modules have.

    Args:
        tensors: Tensors by PEFT's key.
        modules: Paths of the model's modules.
    """
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
