"""Runs that start from an adapter of the library: trained further, or a fresh one stacked on it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from studio.adapter_stack import StackItem
from studio.adapters import adapter_lineage, library
from studio.backbone import Backbone
from studio.chat import checkpoint_adapters
from studio.chat.lanes import Lane, Message, Sampling
from studio.chat.resident_models import ResidentModels
from studio.device_setting import CLUSTER
from studio.errors import AdapterError, MethodError, SpecError
from studio.evaluation import bakeoff_measurements, promote_checkpoint
from studio.evaluation.evaluate_on_dataset import EvaluateRequest
from studio.evaluation.promote_checkpoint import PromoteRequest
from studio.home import Home
from studio.methods.lora import Lora
from studio.methods.p_tuning import PTuning
from studio.methods.prefix_tuning import PrefixTuning
from studio.models.find_model import facts
from studio.models.loading import load
from studio.spec import RunSpec
from studio.training import starting_point, train_run
from studio.training.loss import row_losses
from studio.training.starting_point import base_model
from studio.training.train_run import open_session, prepare_data, train
from studio.training.training_events import Started, Step
from studio.training.training_session import Session
from tests.studio.tiny import tiny_folder, tiny_spec


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny model, rows and pairs, and an adapter trained on the rows in a home of its own."""
    from studio.home import open_home

    folder = tmp_path_factory.mktemp("stages")
    home = open_home(folder / "home")
    spec = tiny_spec(folder, train__device="cpu", train__num_samples=0, train__max_steps=4,
                     train__self_test=False, train__measure_forgetting=False, name="first",
                     method__r=4)  # fmt: skip
    pairs = [{"prompt": f"say {w}", "chosen": f"{w}{w}", "rejected": f"no {w}"}
             for w in "abcdefghijklmnopqrst"]  # fmt: skip
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    list(train(spec, run_dir=home.run(1), home=home))
    then = spec.with_values({
        "data.path": str(folder / "pairs.jsonl"), "train.loss": "dpo", "name": "second",
        "train.init_adapter": str(home.run(1) / "adapter"), "method.r": 2,
    })  # fmt: skip
    return then, home


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def trained(spec: RunSpec, home: Any, number: int, **values: Any) -> list[Step]:
    spec = starting_point.resolved(spec.with_values(values), home, facts(spec.model))
    events = list(train(spec, run_dir=home.run(number), home=home))
    return [event for event in events if isinstance(event, Step)]


def test_a_run_trains_an_adapter_further(world):
    spec, home = world
    steps = trained(spec, home, 2, **{"train.init_mode": "continue"})
    assert steps[0].loss == pytest.approx(0.6931, abs=1e-3), "the reference is the adapter before"
    before, after = weights(home.run(1)), weights(home.run(2))
    assert before.keys() == after.keys()
    assert all(before[name].shape == after[name].shape for name in before), "its rank, not r=2"
    moved = max(float((before[name] - after[name]).abs().max()) for name in before)
    assert 0 < moved < 0.1
    second = library.describe(home.run(2) / "adapter")
    assert second.parents == ("first",)
    third = trained(spec, home, 3, **{"train.init_adapter": str(home.run(2) / "adapter")})
    assert len(third) == 4
    lineage = library.describe(home.run(3) / "adapter").passport["lineage"]
    assert [one["name"] for one in lineage] == ["first", "second"]


PARENTS = {
    "modules of its own": Lora(r=3, target_modules=("q_proj", "v_proj"), modules_to_save=("norm",),
                               trainable_token_indices=(4, 5)),
    "PiSSA": Lora(r=3, target_modules=("q_proj",), init_lora_weights="pissa"),
    "P-tuning": PTuning(num_virtual_tokens=3, encoder_hidden_size=8),
    "prefix tuning": PrefixTuning(num_virtual_tokens=3, prefix_projection=True),
}  # fmt: skip


@pytest.mark.parametrize("name", PARENTS)
def test_a_checkpoint_of_an_adapter_that_was_trained_further_is_read(world, name, tmp_path):
    """The adapter is from elsewhere: no passport, and no method says all that its files hold."""
    spec, home = world
    own = Backbone(load(base_model(spec), "cpu").model)
    own.attach("parent", PARENTS[name], seed=1)
    own.save("parent", tmp_path, base=spec.model.path)
    number = 20 + [*PARENTS].index(name)
    trained(spec, home, number, **{
        "train.loss": "sft", "data.path": str(Path(spec.model.path).parent / "rows.jsonl"),
        "train.init_adapter": str(tmp_path), "train.max_steps": 2, "train.save_steps": 2,
        "method.name": PARENTS[name].name, "train.self_test": False,
    })  # fmt: skip
    written = RunSpec.parse(library.describe(home.run(number) / "adapter").section("spec"))
    (home.run(number) / "spec.yaml").write_text(written.to_yaml())

    checkpoint_adapters.attach(own, checkpoint_adapters.find(home, f"{number}@2"), name="point")

    own.load("published", home.run(number) / "adapter")
    ids = torch.arange(3, 12)[None]
    answers = []
    for one in ("point", "published"):
        own.use([(one, 1.0)])
        with own.evaluating():
            answers.append(own.model(ids).logits)
    torch.testing.assert_close(*answers)
    if isinstance(PARENTS[name], Lora):
        assert written.method.target_modules == PARENTS[name].target_modules
        own_saved = {"modules of its own": ("model.norm",)}  # PEFT's files have whole names
        assert written.method.modules_to_save == own_saved.get(name, "none")
        assert written.method.trainable_token_indices in (
            PARENTS[name].trainable_token_indices, "none"
        )  # fmt: skip


def test_a_fresh_adapter_is_stacked_on_a_frozen_one(world):
    spec, home = world
    kept = weights(home.run(1))
    steps = trained(spec, home, 4, **{"train.init_mode": "stack", "method.name": "ia3"})
    assert steps[0].loss == pytest.approx(0.6931, abs=1e-3)
    assert steps[-1].rewards_accuracies is not None
    assert all(torch.equal(kept[name], one) for name, one in weights(home.run(1)).items())
    found = library.describe(home.run(4) / "adapter")
    assert (found.method, found.passport["lineage"][0]["frozen"]) == ("ia3", True)


@pytest.mark.parametrize("mode", ["continue", "stack"])
def test_what_is_below_the_adapter_to_start_from_acts_too(world, mode, tmp_path, monkeypatch):
    spec, home = world
    above = {"train.init_mode": "stack", "method.name": "ia3"}
    trained(spec, home, 7, **above)  # on top of run 1
    spec = spec.with_values({**above, "train.init_mode": mode,
                             "train.init_adapter": str(home.run(7) / "adapter")})  # fmt: skip
    loaded, bare = (load(base_model(spec), "cpu") for _ in range(2))
    session = open_session(spec, loaded=loaded, prepared=prepare_data(spec, loaded, home))
    assert session.preference is not None
    list(session.preference.prepare_reference(tmp_path))
    rows = [session.prepared.train[row] for some in session.next_rows() for row in some]
    whole = Backbone(bare.model)
    for number in (1, 7):
        whole.load(str(number), home.run(number) / "adapter")
    whole.use([("1", 1.0), ("7", 1.0)])
    with whole.evaluating():
        chosen = -row_losses(whole, session.batch(rows))[::2]
    first = session.step()
    assert first.loss == pytest.approx(0.6931, abs=1e-3)
    assert first.logps_chosen == pytest.approx(float(chosen.mean()), rel=1e-5)
    line = session.start.passport(home.run(6) / "adapter")["lineage"]
    assert [one["frozen"] for one in line] == [True, mode == "stack"]
    monkeypatch.setattr(
        bakeoff_measurements, "answers", lambda loaded, backbone, prompts: backbone.active
    )
    whole = Backbone(load(base_model(spec), "cpu").model)
    measured = bakeoff_measurements.measure(loaded, whole, home.run(7) / "adapter", (), lambda: 1)
    assert measured["answers"] == [(("below", 1.0), ("candidate", 1.0))] and not whole.adapters


def test_a_stacked_adapter_answers_with_what_is_below_it_wherever_the_home_is(world, tmp_path):
    spec, home = world
    trained(spec, home, 9, **{"train.init_mode": "stack", "method.name": "ia3",
                              "train.save_steps": 2, "name": "top"})  # fmt: skip
    (home.run(9) / "spec.yaml").write_text(json.dumps(
        spec.with_values({"train.init_mode": "stack", "method.name": "ia3"}).model_dump(mode="json")
    ))  # fmt: skip
    models = ResidentModels(home, device="cpu")

    def answered_by(*names: str, weights: Any = None) -> list[tuple[str, float]]:
        lane = Lane(model=spec.model.path, stack=tuple(StackItem(name=name) for name in names),
                    messages=(Message(role="user", content="say a"),),
                    sampling=Sampling(max_new_tokens=3))  # fmt: skip
        wanted = weights and (lambda: {0: weights})
        last = [*models.stream([lane], wanted=wanted)][-1]
        assert last.active is not None, last.error
        return [(name, weight) for name, weight in last.active.stack]

    assert answered_by("top") == [("first", 1.0), ("top", 1.0)]
    assert answered_by("9@4") == [("first", 1.0), ("9@4", 1.0)]
    assert answered_by("first", "top") == [("first", 1.0), ("top", 1.0)], "not twice"
    assert answered_by("top", weights=(("top", 0.5),)) == [("first", 1.0), ("top", 0.5)]
    merged = adapter_lineage.resolve_stack(home, (StackItem(name="top", weight=2.0),))
    assert [(Path(one.name), one.weight) for one in merged] == [
        (home.run(1) / "adapter", 1.0), (home.run(9) / "adapter", 2.0)
    ]  # fmt: skip

    moved = Home(tmp_path / "moved")
    shutil.copytree(home.path, moved.path)
    (below,) = adapter_lineage.frozen_below(library.describe(moved.run(9) / "adapter"))
    assert below.path == moved.run(1) / "adapter"
    names = [one.path.parent.name for one in adapter_lineage.built_on(moved, below.path)]
    assert "9" in names
    shutil.rmtree(below.path)
    with pytest.raises(AdapterError, match='trained on top of "first", which is missing'):
        adapter_lineage.frozen_below(library.describe(moved.run(9) / "adapter"))


def test_a_promoted_checkpoint_of_a_stopped_run_knows_what_is_below(world, monkeypatch):
    spec, home = world
    spec = spec.with_values({"train.init_mode": "stack", "train.save_steps": 2})
    list(train(spec, run_dir=home.run(8), home=home, control=lambda: "stop"))
    (home.run(8) / "spec.yaml").write_text(json.dumps(spec.model_dump(mode="json")))
    stacks = []

    def measured(self: Any, home: Any, loaded: Any, backbone: Backbone, stack: Any) -> Any:
        stacks.append((stack, sorted(backbone.adapters)))
        yield from ()
        return {"token_accuracy": 1.0}

    monkeypatch.setattr(EvaluateRequest, "measured", measured)
    monkeypatch.setattr(promote_checkpoint, "check_gate", lambda *_: None)
    list(PromoteRequest(checkpoint="8@1", min=("token_accuracy=0.1",)).perform(home))
    (line,) = library.describe(home.run(8) / "adapter").passport["lineage"]
    assert (line["name"], line["frozen"]) == ("first", True)
    assert stacks == [((("below", 1.0), ("adapter", 1.0)), ["adapter", "below"])]


@pytest.mark.parametrize(
    ("loss", "mode", "first"), [("dpo", "continue", 0.6931), ("kto", "stack", 0.5)]
)
def test_trials_of_a_rate_have_the_reference_and_leave_no_trace(
    world, loss, mode, first, tmp_path, monkeypatch
):
    spec, home = world
    spec = spec.with_values({"train.loss": loss, "train.init_mode": mode, "method.r": 4,
                             "data.validation_fraction": 0.2})  # fmt: skip
    begun, own = [], Session.step

    def step(session: Session) -> Step:
        event = own(session)
        if session.name == train_run.TRIAL and event.step == 1:
            begun.append(event.loss)
        return event

    monkeypatch.setattr(Session, "step", step)
    searching = spec.with_parts(train={"find_learning_rate": True})
    searched = list(train(searching, run_dir=tmp_path / "a", home=home))
    assert begun == pytest.approx([first] * len(train_run.FACTORS), abs=1e-3)
    (rate,) = (event.learning_rate for event in searched if isinstance(event, Started))
    alone = spec.with_parts(train={"learning_rate": rate})
    given = list(train(alone, run_dir=tmp_path / "b", home=home))
    losses = [[e.loss for e in events if isinstance(e, Step)] for events in (searched, given)]
    assert losses[0] == losses[1]


def test_what_a_run_cannot_start_from_is_one_sentence(world, tmp_path):
    spec, home = world
    known = facts(spec.model)
    with pytest.raises(MethodError, match="LoRA, which train.init_mode=continue trains further"):
        starting_point.resolved(spec.with_values({"method.name": "ia3"}), home, known)
    with pytest.raises(MethodError, match="cannot start from an adapter"):
        starting_point.resolved(spec.with_values({"method.name": "full"}), home, known)
    other = spec.with_values({"model.path": str(tiny_folder(tmp_path / "other", "qwen3"))})
    with pytest.raises(AdapterError, match="was made for"):
        starting_point.resolved(other, home, facts(other.model))
    with pytest.raises(AdapterError, match='no adapter "nothing"'):
        starting_point.resolved(spec.with_values({"train.init_adapter": "nothing"}), home, known)
    shutil.copytree(Path(spec.train.init_adapter), bare := tmp_path / "bare")  # as PEFT leaves it
    (bare / "passport.json").unlink(missing_ok=True)
    unknown = spec.with_values({"train.init_adapter": str(bare)})
    found = starting_point.resolved(unknown, home, known).method
    assert (found.name, found.r) == ("lora", 4), "as its own file says"
    with pytest.raises(AdapterError, match="was made for"):
        made = unknown.with_values({"model.path": other.model.path})
        starting_point.resolved(made, home, facts(other.model))
    to_come = spec.with_values({"train.init_adapter": str(home.run(99) / "adapter")})
    assert starting_point.resolved(to_come, home, known) == to_come, "checked when the run starts"
    with pytest.raises(SpecError, match="and the run on the cluster"):
        starting_point.resolved(to_come.with_values({"train.device": CLUSTER}), home, known)
    with pytest.raises(AdapterError, match="no adapter"):
        list(train(to_come, run_dir=tmp_path / "run", home=home))
    with pytest.raises(MethodError, match="trains further"):  # a bake-off checks one of its runs
        list(train(spec.with_values({"method.name": "ia3"}), run_dir=tmp_path / "b", home=home))
