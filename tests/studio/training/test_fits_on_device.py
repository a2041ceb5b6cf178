"""What fits is the estimate's own answer on sizes alone, for every curated model at once."""

import re
from datetime import date
from pathlib import Path

import pytest

from studio import hardware
from studio.errors import ModelError
from studio.models.find_model import facts, facts_of_config
from studio.models.model_files import read_config
from studio.models.model_list import CURATED, curated
from studio.spec import ModelSource
from studio.starter import MODEL_DIR
from studio.training import fits_on_device
from studio.training.sizes_for_estimates import shape_of

GIB = 2**30


def device(size: float, name: str = "cuda:0") -> hardware.Device:
    return hardware.Device(
        name=name, label=name, total_bytes=int(size * GIB), free_bytes=int(size * GIB)
    )


def bytes_of(row: list[fits_on_device.Fit]) -> list[int]:
    return [one.bytes for one in row]


def weights(config: dict, parameters: int) -> int:
    """The matrices of all layers and the vocabulary, counted from the sizes."""
    shape = shape_of(config, facts_of_config(config, Path("m"), parameters=parameters))
    heads = 1 if shape.tied else 2
    return shape.matrices + heads * shape.vocabulary * shape.hidden


def test_curated_facts_are_dated_and_the_sizes_add_up_to_the_parameters():
    entries = fit_entries()
    assert len(entries) == len({one["id"] for one in entries}) == len(curated()) >= 19
    for one in entries:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", one["id"]) and one["what"]
        assert set(one["facts"]) <= {"parameters", "active", "bytes", "license", "gated",
                                     "context", "template"}  # fmt: skip
        for value, day in one["facts"].values():
            assert value is not None and date(2026, 1, 1) <= date.fromisoformat(day)
    for model in curated():
        if model.config:
            share = weights(model.config, model.parameters) / model.parameters
            assert 0.7 < share < 1.05, model.name  # vision towers and delta rules are not counted
            assert model.config["max_position_embeddings"] == model.context


def fit_entries() -> list[dict]:
    import json

    return json.loads(CURATED.read_text())["models"]


def test_more_tokens_need_more_and_four_bits_less():
    for model in curated():
        if not model.parameters:
            continue
        found = fits_on_device.fits(model.config, model.parameters, device(1000))
        for row in found.values():
            assert bytes_of(row) == sorted(bytes_of(row)) and {one.state for one in row} == {"fits"}
        full, lora, qlora = (bytes_of(found[way])[0] for way in fits_on_device.WAYS)
        assert full > 2.5 * lora and full > 16 * model.parameters  # float32: base, gradient, Adam
        assert model.parameters * 2 < lora < model.parameters * 2 + 6 * GIB
        if model.parameters > 2e9:
            assert qlora < 0.75 * lora, model.name


def test_badges_follow_the_memory_of_the_device():
    llama = next(one for one in curated() if "Llama-3.2-1B" in one.name)
    states = [
        fits_on_device.fits(llama.config, llama.parameters, device(size / 4))["lora"][1].state
        for size in range(64, 4, -1)
    ]
    assert list(dict.fromkeys(states)) == ["fits", "tight", "no"]
    assert fits_on_device.fits({}, 2_000_000_000, device(8))["full"][0].bytes > 30 * GIB


def test_sizes_are_made_up_where_only_the_parameters_are_known():
    for parameters in (300e6, 1.2e9, 3e9, 8e9, 30e9):
        assert weights(
            fits_on_device.usual_config(int(parameters)), int(parameters)
        ) == pytest.approx(parameters, rel=0.2)


def test_a_local_model_is_as_its_files_say():
    known, config = facts(ModelSource()), read_config(MODEL_DIR)
    found = fits_on_device.fits(config, known.parameters, device(16, "cpu"), weights_dtype="F32")
    assert [one.state for one in found["lora"]] == ["fits", "short", "short"]
    with pytest.raises(ModelError, match="Odd"):
        fits_on_device.fits({"architectures": ["Odd"], "hidden_size": 8}, 10, device(16))
    for strange in ({"text_config": "x"}, {"text_config": [1]}, {"rope_scaling": 7}):
        assert fits_on_device.fits(config | strange, known.parameters, device(16))["lora"]
