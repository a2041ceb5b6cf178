"""What a run's base is loaded in."""

import torch

from studio.spec import RunSpec
from studio.training.estimate import base_model, loaded_dtype


def test_weights_that_train_are_float32_unless_asked_otherwise():
    def on_gpu(method: str, dtype: str) -> str:
        spec = RunSpec.parse({"method": method, "model": {"dtype": dtype}})
        assert base_model(spec).dtype in (dtype, "float32")
        return loaded_dtype(spec, on_gpu=True)

    assert on_gpu("full", "auto") == "float32"
    assert on_gpu("full", "bfloat16") == "bfloat16"
    assert on_gpu("lora", "auto") == "bfloat16"


def test_small_steps_are_lost_in_bfloat16():
    def moved(dtype: torch.dtype) -> float:
        weight = torch.nn.Parameter(torch.full((1000,), 0.02, dtype=dtype))
        optimizer = torch.optim.AdamW([weight], lr=1e-5, weight_decay=0.0)
        for _ in range(3):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        return float((weight != torch.tensor(0.02, dtype=dtype)).float().mean())

    assert moved(torch.float32) == 1
    assert moved(torch.bfloat16) == 0
