"""A run's memory and time from its files alone, and the precision that a device gets."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from studio import hardware
from studio.errors import OutOfMemory, WeightsTooLarge
from studio.hardware import Device
from studio.models.find_model import facts
from studio.spec import RunSpec
from studio.training import train_run
from studio.training.estimate_memory_and_time import START_SECONDS, estimate, memory, steps_before
from studio.training.fit_in_memory import make_it_fit, next_remedy
from studio.training.preflight import REPORT, corrected, preflight
from studio.training.sizes_for_estimates import BatchLoad, Shape, batch_load, shape_of
from studio.training.starting_point import base_model, loaded_dtype
from studio.training.steps_and_learning_rate import plan_run
from studio.training.training_events import Finished, Loading, Step
from tests.studio.tiny import tiny_folder


def make_spec(tmp_path: Path, **fields: Any) -> RunSpec:
    if not (tmp_path / "model").exists():
        tiny_folder(tmp_path / "model")
        rows = [{"prompt": "ab" * (n % 7 + 1), "completion": "abc"} for n in range(40)]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    usual = {
        "model.path": str(tmp_path / "model"), "data.path": str(tmp_path / "rows.jsonl"),
        "train.max_steps": 4, "train.device": "cpu",
    }  # fmt: skip
    return RunSpec().with_values(usual | fields)


def test_the_load_is_that_of_the_runs_own_batches_and_processes_share_a_step():
    plan = plan_run(
        RunSpec.parse({"train": {"per_device_train_batch_size": 2, "num_train_epochs": 1}}),
        num_rows=4, hidden_size=8,
    )  # fmt: skip
    lengths, targets = np.array([10, 20, 30, 40]), np.array([1, 2, 3, 4])
    steps = [plan.step_rows(0), plan.step_rows(1)]
    packed = batch_load(plan, lengths, targets, packing=True)
    assert packed.tokens == max(int(lengths[rows].sum()) for rows in steps)
    assert packed.step_tokens == 50
    assert packed.step_targets == 5
    padded = batch_load(plan, lengths, targets, packing=False)
    assert padded.tokens == 80  # two rows as wide as the widest of all

    whole = plan_run(
        RunSpec.parse({"train": {"per_device_train_batch_size": 4, "num_train_epochs": 1}}),
        num_rows=4, hidden_size=8,
    )  # fmt: skip
    rows = whole.step_rows(0)
    both = batch_load(whole, lengths, targets, packing=True, processes=2)
    assert both.tokens == max(lengths[rows[0::2]].sum(), lengths[rows[1::2]].sum())
    assert both.share_tokens == both.tokens  # one batch each
    assert both.step_tokens == 100
    assert batch_load(whole, lengths, targets, packing=True, processes=4).tokens == 40


def on_two_cards(monkeypatch: pytest.MonkeyPatch, free: tuple[int, int] = (10**10, 10**10)) -> None:
    cards = [
        Device(name=f"cuda:{n}", label="", total_bytes=10**10, free_bytes=bytes_)
        for n, bytes_ in enumerate(free)
    ]
    monkeypatch.setattr(hardware, "devices", lambda: cards)


def test_each_device_holds_the_base_or_its_part_of_it(tmp_path, home, monkeypatch):
    on_two_cards(monkeypatch, (9 * 10**9, 6 * 10**9))
    one = estimate(make_spec(tmp_path, **{"train.device": "cuda:0"}), home)
    two = estimate(make_spec(tmp_path, **{"train.device": "all"}), home)
    shared = estimate(make_spec(tmp_path, **{"train.device": "all", "train.fsdp": True}), home)

    assert (two.device, two.processes, two.device_bytes) == ("cuda:0,cuda:1", 2, 6 * 10**9)
    for part in ("weights", "adapter", "gradients", "optimizer"):
        assert two.parts[part] == one.parts[part]
    assert two.parts["activations"] < 0.7 * one.parts["activations"]
    assert two.total_bytes == two.process_bytes, "each card has its own memory"
    # 2 layers of q 32·32, k and v 32·16, o 32·32, gate, up, down 32·48, in bfloat16: half stays
    layers = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48) * 2
    assert one.parts["weights"] - shared.parts["weights"] == layers // 2
    assert shared.parts["workspace"] > two.parts["workspace"], "a layer that is put together"
    assert two.seconds > one.seconds, "a short run is not worth the start of two processes"
    longer = {"train.max_steps": 10**6, "train.gradient_accumulation_steps": 2}
    alone = estimate(make_spec(tmp_path, **{"train.device": "cuda:0"}, **longer), home).seconds
    both = estimate(make_spec(tmp_path, **{"train.device": "all"}, **longer), home).seconds
    assert both == pytest.approx(alone / 2, rel=0.05), "one pass each instead of two"


def test_processes_on_a_processor_need_the_sum_and_a_mapped_base_once(tmp_path, home):
    one = estimate(make_spec(tmp_path), home)
    two = estimate(make_spec(tmp_path, **{"train.num_processes": 2}), home)
    half = {"train.num_processes": 2, "model.dtype": "bfloat16"}
    copied = estimate(make_spec(tmp_path, **half), home)

    assert (two.processes, two.on_device) == (2, 2)
    assert two.total_bytes == 2 * two.process_bytes - two.shared_bytes + two.beside_bytes
    assert two.total_bytes > 1.5 * one.total_bytes
    assert two.shared_bytes - copied.shared_bytes == two.parts["weights"]
    assert one.total_bytes == one.process_bytes


def test_sharing_the_base_is_offered_where_there_are_several_cards(tmp_path, home, monkeypatch):
    on_two_cards(monkeypatch)
    small = {
        "train.per_device_train_batch_size": 1, "train.gradient_checkpointing": True,
        "train.activation_offloading": True,
    }  # fmt: skip
    pair = make_spec(tmp_path, **{"train.device": "cuda:0,cuda:1"}, **small)
    assert next_remedy(pair) == {"train.fsdp": True}
    assert next_remedy(pair.with_values({"train.fsdp": True})) is None
    for change in ({"model.quantization": "nf4"}, {"train.loss": "orpo"}):
        assert next_remedy(pair.with_values(change)) is None
    assert next_remedy(pair.with_values({"method.name": "full"})) is None
    assert next_remedy(pair.with_values({"train.device": "cuda:0"})) is None


def test_one_process_of_several_is_measured(tmp_path, home):
    spec = make_spec(tmp_path, **{"train.num_processes": 2, "train.fsdp": True})
    list(preflight(spec, run_dir=tmp_path / "run", home=home))
    report = json.loads((tmp_path / "run" / REPORT).read_text())
    counted = estimate(spec, home)
    assert report["measured"] and report["processes"] == 2
    assert report["longest_batch_tokens"] == counted.longest_batch_tokens
    assert report["parts"]["weights"] == counted.parts["weights"]
    assert report["total_bytes"] > report["process_bytes"]


def test_parts_follow_the_settings(tmp_path, home):
    def parts(**fields: Any) -> dict[str, int]:
        return estimate(make_spec(tmp_path, **fields), home).parts

    usual = parts()
    # q, o 32+32; k, v 32+16; gate, up, down 32+48: 16 · 2 layers · (2·64 + 2·48 + 3·80) numbers
    assert usual["adapter"] == 4 * 16 * 2 * (2 * 64 + 2 * 48 + 3 * 80)
    assert usual["optimizer"] == 2 * usual["adapter"]
    assert parts(**{"train.optim": "lion"})["optimizer"] == usual["adapter"]
    assert parts(**{"model.dtype": "bfloat16"})["weights"] * 2 == usual["weights"]
    halved = parts(**{
        "train.per_device_train_batch_size": 4, "train.gradient_accumulation_steps": 2
    })  # fmt: skip
    assert halved["activations"] < 0.7 * usual["activations"]
    saving = parts(**{"train.gradient_checkpointing": True})
    assert saving["activations"] < 0.7 * usual["activations"]
    assert (
        parts(**{"train.gradient_checkpointing": True, "train.activation_offloading": True})[
            "activations"
        ]
        == saving["activations"]
    )  # two layers: one is in use, one comes next
    assert parts(**{"method.name": "full"})["optimizer"] == 8 * usual["weights"] // 4


def test_the_time_counts_what_comes_before_the_first_step_measured_or_not(tmp_path, home):
    spec = make_spec(tmp_path, **{"train.find_learning_rate": True})
    plan = plan_run(spec, num_rows=40, hidden_size=8)
    assert steps_before(spec, plan) == 4 * 4, "four trials of min(4, 5) steps"
    dpo = make_spec(tmp_path, **{"train.loss": "dpo"})
    assert steps_before(dpo, plan) == 0.5 * 4, "a forward pass over the rows of the four steps"
    found = estimate(spec, home)
    measured = corrected(found, peak_bytes=1, step_seconds=1.0, batches=1.0)
    assert measured.seconds == START_SECONDS + 4 + 4 * 4
    usual = estimate(make_spec(tmp_path), home)
    assert found.seconds - START_SECONDS == pytest.approx(5 * (usual.seconds - START_SECONDS))


def test_logits_are_held_whole_where_the_head_is_no_plain_product(tmp_path, home):
    def logits(**fields: Any) -> int:
        return estimate(make_spec(tmp_path, **fields), home).parts["logits"]

    usual = logits()
    assert logits(**{"train.packing": False}) == usual
    held = logits(**{"method.name": "full"})
    for name in ("modules_to_save", "target_modules"):
        assert logits(**{f"method.{name}": ["lm_head"]}) == held > usual
    assert logits(**{"method.modules_to_save": "embeddings"}) == held
    assert logits(**{"method.trainable_token_indices": [3]}) == held
    (tmp_path / "model" / "new_tokens.json").write_text('{"tokens": [{"token": "<t>", "id": 3}]}')
    assert logits() == held
    assert logits(**{"train.packing": False}) > held, "of every position"
    (tmp_path / "model" / "new_tokens.json").unlink()
    config = tmp_path / "model" / "config.json"
    for values, whole in (
        ({"final_logit_softcapping": 30.0}, True), ({"logits_scaling": 8}, True),
        ({"logit_scale": 1.0, "attn_logit_softcapping": 50.0}, False),
    ):  # fmt: skip
        changed = {**json.loads(config.read_text()), **values}
        known = facts(make_spec(tmp_path).model)
        assert shape_of(changed, known).plain_head is not whole


def test_making_it_fit_keeps_the_effective_batch(tmp_path, home):
    spec = make_spec(tmp_path, **{"train.gradient_accumulation_steps": 3})
    whole = estimate(spec, home)
    room = int((whole.total_bytes - whole.parts["activations"] // 3) / 0.95)
    changes, found = make_it_fit(spec, home, device_bytes=room)
    args = spec.with_values(changes).train
    assert changes
    assert found.total_bytes <= 0.95 * room
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 24
    with pytest.raises(OutOfMemory, match="even at batch size 1"):
        make_it_fit(spec, home, device_bytes=1000)


def test_batches_shrink_to_one_and_then_activations_are_recomputed():
    spec, seen = RunSpec.parse({"train": {"per_device_train_batch_size": 6}}), []
    while changes := next_remedy(spec):
        spec = spec.with_values(changes)
        seen.append(list(changes.values()))
    assert seen == [[3, 2], [1, 6], [True]]
    assert list(next_remedy(spec, on_gpu=True)) == ["train.activation_offloading"]


def test_two_real_steps_correct_the_estimate(tmp_path, home):
    spec = make_spec(tmp_path)
    events = list(preflight(spec, run_dir=tmp_path / "run", home=home))
    report = json.loads((tmp_path / "run" / REPORT).read_text())
    assert isinstance(events[-1], Finished)
    assert report["measured"]
    assert report["longest_batch_tokens"] == estimate(spec, home).longest_batch_tokens
    assert sum(report["parts"].values()) == pytest.approx(report["total_bytes"])
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert json.loads((home.state / "speed.json").read_text())["cpu"] > 0


def test_a_full_memory_is_retried_with_smaller_batches(tmp_path, home, monkeypatch):
    from studio.training.training_session import Session

    real = Session.step

    def step(self: Session) -> Step:
        if self.plan.micro_batch > 2 and self.progress.step == 2:
            raise MemoryError
        return real(self)

    monkeypatch.setattr(Session, "step", step)
    spec = make_spec(tmp_path, **{
        "train.retry_when_out_of_memory": True, "train.save_steps": 1, "train.num_samples": 0
    })  # fmt: skip
    events = list(train_run.train(spec, run_dir=tmp_path / "run", home=home))
    said = [e.text for e in events if isinstance(e, Loading) and "Out of memory" in e.text]
    assert len(said) == 2  # 8, 4, then 2 rows at once
    assert [e.step for e in events if isinstance(e, Step)] == [1, 2, 3, 4]
    assert isinstance(events[-1], Finished)
    with pytest.raises(OutOfMemory):
        list(train_run.train(
            spec.with_values({"train.retry_when_out_of_memory": False}),
            run_dir=tmp_path / "other", home=home,
        ))  # fmt: skip


def test_weights_that_do_not_fit_are_not_tried_again_with_smaller_batches(
    tmp_path, home, monkeypatch
):
    tried = []

    def load(*args: object, **_: object) -> None:
        tried.append(args)
        raise WeightsTooLarge("The weights do not fit.")

    monkeypatch.setattr("studio.training.train_run.load", load)
    spec = make_spec(tmp_path, **{"train.retry_when_out_of_memory": True})
    with pytest.raises(WeightsTooLarge):
        list(train_run.train(spec, run_dir=tmp_path / "run", home=home))
    assert len(tried) == 1


def test_offloaded_inputs_leave_two_of_them_on_the_gpu(tmp_path, home):
    shape = Shape(
        layers=32, hidden=4096, attention=4096, keys_values=1024, inner=14_336, vocabulary=128_256,
        gated=True, tied=False, model_type="llama",
    )  # fmt: skip
    load = BatchLoad(
        tokens=8192, targets=3000, step_tokens=8192, step_targets=3000, share_tokens=8192,
        share_targets=3000,
    )  # fmt: skip
    spec = make_spec(tmp_path, **{"train.gradient_checkpointing": True})
    known = facts(spec.model)
    card = hardware.Device(name="cuda:0", label="", total_bytes=80 << 30, free_bytes=80 << 30)
    kept, offloaded = (
        memory(spec.with_values({"train.activation_offloading": on}), shape, known, load, card)
        ["activations"] for on in (False, True)
    )  # fmt: skip
    assert kept - offloaded == 30 * 8192 * 4096 * 2  # of 32 layers, in bfloat16: 2 GB


def test_weights_that_train_are_float32_unless_asked_otherwise():
    def on_gpu(method: str, dtype: str) -> str:
        spec = RunSpec.parse({"method": method, "model": {"dtype": dtype}})
        assert base_model(spec).dtype in (dtype, "float32")
        return loaded_dtype(spec, on_gpu=True)

    assert on_gpu("full", "auto") == "float32"
    assert on_gpu("full", "bfloat16") == "bfloat16"
    assert on_gpu("lora", "auto") == "bfloat16"
