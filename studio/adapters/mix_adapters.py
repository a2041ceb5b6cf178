"""Mix several LoRAs into one new adapter.

Every way computes what its name says. PEFT's `linear` averages A and B separately, which is not the
weighted sum of the adapters, so it is not offered.

`ΔW_i = s_i B_i A_i` is the update of adapter i; `w_i` its weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from studio.adapters.adapter_lineage import of_other_bases
from studio.adapters.library import StoredAdapter, describe, is_taken, write_passport
from studio.adapters.merge import StackRequest, trained_template
from studio.errors import AdapterError, InputError, MethodError
from studio.fields import knob
from studio.home import Home, publishing, slug
from studio.methods.lora import Lora
from studio.training.training_events import Event, Finished, Loading

if TYPE_CHECKING:
    from torch import Tensor

    from studio.backbone import Adapter, Backbone
    from studio.backbone.sites import Site
    from studio.methods.method import Method, Params

How = Literal["concatenate", "svd", "ties", "dare"]
Parts = Sequence[tuple["Tensor", float]]
MAX_RANK = 1024
WAYS = {
    "concatenate": "Exact weighted sum (the ranks add up)",
    "svd": "Weighted sum, truncated to a rank (SVD)",
    "ties": "TIES: keep the largest, agree on signs",
    "dare": "DARE: drop at random, rescale",
}


class MixRequest(StackRequest):
    """Mix several LoRAs into one new adapter."""

    kind: ClassVar[str] = "mix"
    name: str = knob("", "Name of the new adapter.", title="Name", max_length=120)
    how: How = knob(
        "concatenate", "Exact weighted sum, its best rank-r approximation, TIES, or DARE.",
        title="Way", labels=WAYS,
    )  # fmt: skip
    r: int = knob(
        16, "Rank of the result (not for concatenate).", title="Rank (r)", ge=1, le=1024,
        when={"how": ("svd", "ties", "dare")},
    )  # fmt: skip
    density: float = knob(
        0.5, "Share kept by TIES and DARE.", title="Density", gt=0, le=1,
        when={"how": ("ties", "dare")},
    )  # fmt: skip
    seed: int = knob(0, "For DARE.", ge=0, le=2**31 - 1, advanced=True, when={"how": ("dare",)})

    def checked(self, home: Home) -> Self:
        """Return it with adapters found; the name must be free."""
        self.require_adapters()
        found = self.found(home)
        if not self.name.strip():
            raise InputError("Give the new adapter a name.")
        if is_taken(home, self.name.strip()) or self.target(home).exists():
            raise AdapterError(f'There is already an adapter "{self.name}"; choose another name.')
        return found

    def perform(self, home: Home, *_: Any) -> Iterator[Event]:
        """Load, mix, publish."""
        from studio.backbone import Backbone
        from studio.models.loading import load

        yield Loading(text="Loading the base")
        loaded = load(self.model, "cpu")
        backbone = Backbone(loaded.model)
        parents = [(describe(folder), weight) for folder, weight in self.parts]
        stack = backbone.load_stack((one.name, one.path, weight) for one, weight in parents)
        yield Loading(text="Mixing")
        out = ""  # a name that no adapter has
        mixed = mix(
            backbone, stack, out, how=self.how, r=self.r, density=self.density, seed=self.seed
        )
        folder = self.target(home)
        base = {"path": self.model.path, "revision": self.model.revision,
                "fingerprint": loaded.facts.fingerprint}  # fmt: skip
        publish_mix(
            backbone, out, folder, base=base, parents=parents, mixed=mixed, how=self.how,
            title=self.name.strip(),
            notes=of_other_bases([one.path for one, _ in parents], self.model.path, loaded.facts),
        )  # fmt: skip
        yield Finished(adapter=str(folder))

    def target(self, home: Home) -> Path:
        """Return the folder of the new adapter."""
        return home.adapters / slug(self.name)

    def outcome(self, home: Home, run_dir: Path, result: dict[str, Any]) -> dict[str, Any]:
        """Return the new adapter's folder and how exact it is."""
        folder = result.get("adapter")  # None once it was deleted
        mixed: dict[str, Any] = {}
        if folder and Path(folder).is_dir():
            mixed = describe(Path(folder)).passport.get("mix") or {}
        return {"adapter": folder, **mixed}


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixed:
    """A mix and its relative distance to the exact weighted sum.

    `error` is `‖ΔW_mix − Σ w_i ΔW_i‖ / ‖Σ w_i ΔW_i‖` over all sites. TIES and DARE do not aim at
    the weighted sum: their error is the distance by design.
    """

    method: Lora
    error: float


def mix(
    backbone: Backbone,
    stack: Sequence[tuple[str, float]],
    out: str,
    *,
    how: How = "concatenate",
    r: int = 16,
    density: float = 0.5,
    seed: int = 0,
) -> Mixed:
    """Add a new adapter `out` to the bank, mixed from loaded LoRAs.

    Args:
        how: `concatenate` is exact, at the sum of the ranks; `svd` is the best approximation of
            rank `r`; `ties` trims each to its largest `density`, elects signs and averages what
            agrees (arXiv:2306.01708); `dare` drops all but `density` at random and rescales
            (arXiv:2311.03099). The last two are brought back to rank `r`.
        r: Rank of the result, except for `concatenate`.
        density: Share kept by `ties` and `dare`.
        seed: For `dare`.

    Raises:
        MethodError: The adapters cannot be mixed this way.
    """
    import torch

    from studio.backbone.saved_modules import SavedModules

    adapters = [(_lora(backbone, name), weight) for name, weight in stack if weight != 0]
    if not adapters:
        raise MethodError("A mix needs at least one adapter with a weight other than 0.")
    sites = {site.key: site for adapter, _ in adapters for site in adapter.sites}
    beside: dict[str, Method] = {
        key: SavedModules() for key in sites if any(key in a.beside for a, _ in adapters)
    }
    rank = sum(a.method.r for a, _ in adapters) if how == "concatenate" else r  # type: ignore[attr-defined]
    if rank > MAX_RANK:
        raise MethodError(
            f"The ranks add up to {rank}, more than {MAX_RANK}: choose svd with a rank of its own."
        )
    linears = [s for key, s in sites.items() if not s.num_experts and key not in beside]
    widest = min((min(s.in_features, s.out_features) for s in linears), default=rank)
    if how != "concatenate" and rank > widest:
        raise MethodError(f"r = {rank} is larger than the smallest layer; take at most {widest}.")
    generator = torch.Generator().manual_seed(seed)
    params, missed, whole = [], 0.0, 0.0
    for key, site in sites.items():
        own = [(a, w) for a, w in adapters if key in a.params]
        p, parts = _changes(own, site)
        for name, changes in parts.items():
            exact = torch.stack([w * delta for delta, w in changes]).sum(0)
            found = _TARGETS[how](changes, density, generator) if how in _TARGETS else exact
            if name == "weight" and key not in beside:
                a, b = _concatenated(own, key) if how == "concatenate" else _low_rank(
                    found, Lora(r=rank).rank(site)
                )  # fmt: skip
                p |= {"lora_A": a, "lora_B": b}
                found = b @ a
            else:
                p["lora_bias" if key not in beside else name] = found
            missed += float((found - exact).square().sum())
            whole += float(exact.square().sum())
        params.append(p)
    targets = tuple(key for key in sites if key not in beside) or "all-linear"
    method = Lora(r=rank, lora_alpha=rank, target_modules=targets)
    backbone.add(out, method, list(sites.values()), params, beside)
    return Mixed(method=method, error=(missed / whole) ** 0.5 if whole else 0.0)


def _changes(
    adapters: Sequence[tuple[Adapter, float]], site: Site
) -> tuple[Params, dict[str, Parts]]:
    """Return fixed parameters of a site, and what each adapter changes there, by parameter.

    Changed rows of the embeddings stay rows: of all tokens that one of the adapters trained.
    """
    import torch

    every = [{name: tensor.detach().cpu() for name, tensor in a.params[site.key].items()}
             for a, _ in adapters]  # fmt: skip
    parts: dict[str, list[tuple[Tensor, float]]] = {}
    if all("tokens" in p for p in every):
        index = torch.cat([p["_index"] for p in every]).unique()
        for p, (_, weight) in zip(every, adapters, strict=True):
            rows = torch.zeros(len(index), p["tokens"].shape[-1])
            rows[torch.searchsorted(index, p["_index"])] = p["tokens"].float()
            parts.setdefault("tokens", []).append((rows, weight))
        return {"_index": index}, {**parts}
    for adapter, weight in adapters:
        folded = adapter.method_at(site.key).fold(adapter.params[site.key], site, 1.0)
        for name, delta in folded.items():
            parts.setdefault(name, []).append((delta.detach().cpu(), weight))
    return {}, {**parts}


def publish_mix(
    backbone: Backbone, name: str, folder: Path, *, base: dict[str, str],
    parents: Sequence[tuple[StoredAdapter, float]], mixed: Mixed, how: How,
    title: str = "", notes: Sequence[str] = (),
) -> None:  # fmt: skip
    """Publish a mixed adapter with a passport that names its parents and keeps their template.

    `title` is its name as the user wrote it, else that of the folder.
    """
    template = trained_template(parent.path for parent, _ in parents)
    settings = next(filter(None, (one.chat_template_kwargs for one, _ in parents)), "")
    passport: dict[str, Any] = {
        "name": title or folder.name,
        "base": base,
        "ended": "mixed",
        "mix": {"how": how, "error": mixed.error, "notes": list(notes)},
        "parents": [f"{parent.name}:{weight:g}" for parent, weight in parents],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": {"template": template},
        "spec": {
            "method": mixed.method.model_dump(mode="json"),
            "data": {"chat_template_kwargs": settings},
        },
    }
    if folder.exists():
        raise AdapterError(f'There is already an adapter "{folder.name}"; choose another name.')
    with publishing(folder) as temporary:
        backbone.save(name, temporary, base=base.get("path", ""))
        write_passport(temporary, passport)


def _lora(backbone: Backbone, name: str) -> Adapter:
    adapter = backbone.adapters[name]
    if not isinstance(adapter.method, Lora):
        raise MethodError(
            f'"{name}" is {adapter.method.title}; only LoRAs can be mixed into one. '
            "Stack the others instead."
        )
    if adapter.method.use_dora:
        raise MethodError(
            f'"{name}" uses DoRA, which is not a low-rank sum; stack it, or merge it into a model.'
        )
    return adapter


def _concatenated(adapters: Sequence[tuple[Adapter, float]], key: str) -> tuple[Tensor, Tensor]:
    """Return `A = [A_1; A_2; …]`, `B = [w_1 s_1 B_1, …]`: the exact sum."""
    import torch

    rows, columns = [], []
    for adapter, weight in adapters:
        method: Lora = adapter.method  # type: ignore[assignment]
        p = adapter.params[key]
        rows.append(p["lora_A"].detach().float().cpu())
        columns.append(p["lora_B"].detach().float().cpu() * (weight * method.scaling))
    return torch.cat(rows, dim=-2), torch.cat(columns, dim=-1)


def _low_rank(target: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the best rank-r factors of a matrix, or of each expert's (Eckart–Young)."""
    import torch

    u, s, v = torch.linalg.svd(target, full_matrices=False)
    root = s[..., :rank].sqrt()
    a, b = root[..., None] * v[..., :rank, :], u[..., :rank] * root[..., None, :]
    return a.contiguous(), b.contiguous()


def _ties(parts: Parts, density: float, generator: Any) -> Tensor:
    import torch

    trimmed = []
    for delta, weight in parts:
        keep = max(1, round(density * delta.numel()))
        bar = delta.abs().flatten().kthvalue(delta.numel() - keep + 1).values
        trimmed.append(torch.where(delta.abs() >= bar, weight * delta, torch.zeros_like(delta)))
    stacked = torch.stack(trimmed)
    agrees = (stacked.sign() == stacked.sum(0).sign()) & (stacked != 0)
    return (stacked * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def _dare(parts: Parts, density: float, generator: Any) -> Tensor:
    import torch

    kept = [
        w * delta * (torch.rand(delta.shape, generator=generator) < density) / density
        for delta, w in parts
    ]
    return torch.stack(kept).sum(0)


_TARGETS: dict[str, Callable[[Parts, float, Any], Tensor]] = {"ties": _ties, "dare": _dare}
