import pytest

from studio.errors import SpecError
from studio.presets import BUILT_IN, apply_preset, delete_preset, presets, save_preset
from studio.spec import RunSpec


@pytest.mark.parametrize("name", BUILT_IN)
def test_ours_set_fields_that_exist_and_keep_what_is_trained(home, name):
    own = {"name": "mine", "data.path": "starter:json", "method.r": 4}
    spec = RunSpec().with_values(own | {"train.lr_scheduler_type": "linear"})
    found = apply_preset(home, name, spec)
    assert (found.name, found.data.path, found.method.r) == ("mine", "starter:json", 4)
    assert found.train.lr_scheduler_type == "cosine"  # back to the default
    flat = found.model_dump()
    for field, value in BUILT_IN[name][1].items():
        part, _, inner = field.partition(".")
        assert flat[part][inner] == value


def test_a_persons_own_is_saved_by_name_without_model_and_data(home):
    spec = RunSpec().with_values(
        {"data.path": "starter:json", "method.name": "vera", "method.r": 8, "train.max_steps": 7}
    )
    save_preset(home, "short vera", spec)
    assert [p["name"] for p in presets(home) if p["own"]] == ["short vera"]
    found = apply_preset(home, "short vera", RunSpec())
    assert (found.data.path, found.method.name, found.method.r) == ("starter:pirate", "vera", 8)
    assert found.train.max_steps == 7
    delete_preset(home, "short vera")
    assert not any(p["own"] for p in presets(home))


def test_a_preset_does_not_change_what_is_trained_or_with_which_loss(home):
    spec = RunSpec().with_values({
        "train.loss": "dpo", "train.init_adapter": "first", "model.quantization": "nf4",
        "data.thoughts": "turns", "data.max_length": 99, "train.optim": "adafactor", "seed": 5,
    })  # fmt: skip
    found = apply_preset(home, "balanced", spec)
    usual = RunSpec()
    assert (found.train.loss, found.train.init_adapter, found.seed) == ("dpo", "first", 5)
    assert (found.model.quantization, found.data.thoughts) == ("nf4", "turns")
    assert found.data.max_length == usual.data.max_length
    assert found.train.optim == usual.train.optim


def test_a_preset_with_settings_of_a_method_brings_the_method(home):
    save_preset(home, "mine", RunSpec().with_values({"method.r": 64}))
    other = RunSpec().with_values({"method.name": "loha"})
    method = apply_preset(home, "mine", other).method
    assert (method.name, method.r) == ("lora", 64)


def test_bad_names_are_one_sentence(home):
    for name in ("", "balanced", "x" * 61):
        with pytest.raises(SpecError, match="cannot be a preset"):
            save_preset(home, name, RunSpec())
    with pytest.raises(SpecError, match='Did you mean "balanced"'):
        apply_preset(home, "balance", RunSpec())
    with pytest.raises(SpecError, match="of your own"):
        delete_preset(home, "thorough")
    (home.path / "presets.json").write_text("{")
    with pytest.raises(SpecError, match="cannot be read"):
        presets(home)
