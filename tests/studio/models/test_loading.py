import pytest
import torch

from studio.errors import ModelError
from studio.models.loading import load
from studio.spec import ModelSource


def test_a_model_loads_frozen_and_in_eval_mode(real):
    loaded = load(ModelSource(path=str(real / "models" / "stories260k")), "cpu")
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.dtype == torch.float32
    assert loaded.model.num_parameters() == loaded.facts.parameters


def test_the_dtype_is_the_persons(real):
    source = ModelSource(path=str(real / "models" / "stories260k"), dtype="bfloat16")
    assert next(load(source, "cpu").model.parameters()).dtype == torch.bfloat16


def test_a_device_that_is_not_there_is_one_sentence(real):
    source = ModelSource(path=str(real / "models" / "stories260k"))
    with pytest.raises(ModelError, match="cuda:7"):
        load(source, "cuda:7")
    with pytest.raises(ModelError, match="no device"):
        load(source, "toaster")


def test_nf4_without_its_library_says_what_to_install(real, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    source = ModelSource(path=str(real / "models" / "stories260k"), quantization="nf4")
    with pytest.raises(ModelError, match="pip install bitsandbytes"):
        load(source, "cpu")
