"""The self-test of a base: what it finds, what it keeps, and what a run does with it."""

import json

import pytest
import torch

from studio.backbone import Backbone
from studio.errors import ModelError
from studio.home import Home
from studio.methods.lora import Lora
from studio.models.loading import Loaded, load
from studio.spec import ModelSource
from studio.training.self_test import FILE, check_base
from tests.studio.tiny import tiny_folder


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "home")
    home.state.mkdir(parents=True)
    return home


def opened(tmp_path, name: str) -> tuple[Backbone, Loaded]:
    loaded = load(ModelSource(path=str(tiny_folder(tmp_path / name, name))), "cpu")
    return Backbone(loaded.model), loaded


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral"])
def test_a_right_model_passes_and_its_result_is_kept(name, tmp_path, home):
    backbone, loaded = opened(tmp_path, name)
    backbone.attach("mine", Lora(r=2))
    backbone.use([("mine", 0.5)])
    found = check_base(backbone, loaded, home, quantization="none")
    assert set(found["errors"]) == {"adapted", "packed", "cached"}
    assert max(found["errors"].values()) < 1e-4
    assert list(backbone.adapters) == ["mine"]
    assert backbone.active_for_all == (("mine", 0.5),)
    (kept,) = json.loads((home.state / FILE).read_text()).values()
    assert kept == found
    backbone.model.forward = None  # a second check reads the result
    assert check_base(backbone, loaded, home, quantization="none") == found


def test_a_layer_that_leaks_between_packed_rows_is_named(tmp_path, home):
    backbone, loaded = opened(tmp_path, "llama")

    def leak(module, args, output):
        return output + torch.cat([torch.zeros_like(output[:, :1]), output[:, :-1]], 1)

    assert backbone.anatomy.recording.separable  # before the layer leaks
    backbone.model.model.layers[1].mlp.register_forward_hook(leak)
    with pytest.raises(ModelError, match=r"packed and separate rows differ.*layer 1 \(Llama"):
        check_base(backbone, loaded, home, quantization="none")
    assert not (home.state / FILE).exists()
    assert list(backbone.adapters) == []
