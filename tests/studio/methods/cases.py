"""Which variants of each method the matrix runs; a new method file runs with its defaults."""

from collections.abc import Iterator

import torch

from studio.backbone import Backbone
from studio.methods import Method, Phase, methods
from tests.studio.tiny import CONFIGS, tiny_model

SMALL = {
    "lora": [
        {"r": 4}, {"r": 4, "use_rslora": True}, {"r": 4, "use_dora": True},
        {"r": 4, "init_lora_weights": "pissa"}, {"r": 2, "target_modules": "attention"},
    ],
    "bottleneck": [
        {"bottleneck_dim": 6}, {"placement": "pfeiffer", "bottleneck_dim": 6},
        {"placement": "parallel", "bottleneck_dim": 6, "scaling": 4.0, "non_linearity": "relu"},
        {"reduction_factor": 8, "non_linearity": "gelu"},
    ],
    "loha": [{"r": 3}],
    "lokr": [{"r": 2}, {"r": 1, "decompose_both": True, "decompose_factor": 8}],
    "vera": [{"r": 12}],
    "prefix_tuning": [
        {"num_virtual_tokens": 5},
        {"num_virtual_tokens": 3, "prefix_projection": True, "encoder_hidden_size": 8},
    ],
    "prompt_tuning": [
        {"num_virtual_tokens": 5}, {"num_virtual_tokens": 4, "prompt_tuning_init": "RANDOM"},
    ],
    "p_tuning": [{"num_virtual_tokens": 4, "encoder_hidden_size": 8}],
}  # fmt: skip


def variants() -> Iterator[tuple[str, Method]]:
    """Yield (label, method) for every registered method and variant."""
    for name, cls in methods().items():
        for fields in SMALL.get(name, [{}]):
            label = "-".join([name, *(f"{k}={v}" for k, v in fields.items())])
            yield label, cls(**fields)


def fits(method: Method, model_name: str) -> Method:
    """Return the method as this model takes it."""
    if method.name == "bitfit" and model_name not in ("gpt2", "qwen2"):
        return method.model_copy(update={"create_missing": True})
    return method


ADAPTERS = {label: m for label, m in variants() if m.phase is not Phase.WEIGHTS}
MODELS = list(CONFIGS)


def adapted(
    model_name: str, method: Method, *, noise: float = 0.0, device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Backbone, list[torch.nn.Parameter]]:  # fmt: skip
    """Return a tiny model with one active adapter in training, its parameters moved by noise."""
    backbone = Backbone(tiny_model(model_name).to(device, dtype))
    backbone.attach("a", method, seed=1)
    backbone.use([("a", 1.0)])
    parameters = backbone.train("a")
    with torch.no_grad():
        for i, parameter in enumerate(parameters):
            drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter += noise * drawn.to(parameter)
    return backbone, parameters
