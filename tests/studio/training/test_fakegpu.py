"""Train on a simulated `cuda:0`: no tensor on a wrong device, few host waits, the CPU's losses."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import scaled_dot_product_attention

from studio.adapters.merge import MergeRequest
from studio.backbone import Backbone, attention, linear_kernels
from studio.backbone.dense_weights import QuantisedLinear
from studio.evaluation.evaluate_on_dataset import EvaluateRequest
from studio.home import open_home
from studio.methods.lora import Lora
from studio.models.loading import dtype_for
from studio.models.quantization import quantised
from studio.spec import RunSpec
from studio.training import kernel_check
from studio.training.batching import pack
from studio.training.loss import loss_sum
from studio.training.train_run import train
from studio.training.training_events import Evaluated, Step
from tests.fakegpu import GPU, MPS, XPU, fake_gpu, log
from tests.studio.training import conftest
from tests.studio.training.conftest import make_model, make_rows, make_session
from tests.studio.training.test_golden import run_steps
from tests.studio.training.test_preference_loss import made, prepared
from tests.studio.training.test_sizes_for_estimates import moved

BASE = {
    "model": {"path": "starter", "dtype": "bfloat16"},
    "data": {"path": "starter:pirate", "validation_fraction": 0.02},
    "method": {"name": "lora"},
    "train": {
        "max_steps": 2, "per_device_train_batch_size": 4, "num_samples": 0, "eval_steps": 2,
        "save_steps": 2, "self_test": False, "measure_forgetting": False,
    },
}  # fmt: skip
CASES = {
    "packed": {"train.self_test": True, "train.measure_forgetting": True},
    "padded": {"train.packing": False},
    "checkpointing": {"train.gradient_checkpointing": True},
    "offloading": {"train.gradient_checkpointing": True, "train.activation_offloading": True},
    "accumulation, NEFTune, smoothing": {
        "train.gradient_accumulation_steps": 2, "train.neftune_noise_alpha": 5.0,
        "train.label_smoothing_factor": 0.1,
    },
    "dropout": {"method.lora_dropout": 0.1},
    "DoRA": {"method.use_dora": True},
    "PiSSA": {"method.init_lora_weights": "pissa"},
    "float16": {"model.dtype": "float16"},
    "eager": {"train.attn_implementation": "eager"},
    "bottleneck": {"method.name": "bottleneck"},
    "bottleneck, parallel": {"method.name": "bottleneck", "method.placement": "parallel"},
    "prefix tuning": {"method.name": "prefix_tuning"},
    "prefix tuning, checkpointing": {
        "method.name": "prefix_tuning", "train.gradient_checkpointing": True,
    },
    "prompt tuning": {"method.name": "prompt_tuning", "train.learning_rate": 0.1},
    "P-tuning": {"method.name": "p_tuning"},
    "IA3": {"method.name": "ia3"},
    "norm tuning": {"method.name": "norm_tuning"},
    "LoHa": {"method.name": "loha"},
    "LoKr": {"method.name": "lokr"},
    "VeRA": {"method.name": "vera"},
    "full": {"method.name": "full", "model.dtype": "float32"},
    "Lion": {"train.optim": "lion"},
    "Muon": {"train.optim": "muon"},
    "kernels": {"triton": True, "train.label_smoothing_factor": 0.1},
}  # fmt: skip
MOST_WAITS = 1  # of a step: loss and gradient norm, fetched together
MAY_WAIT = {"padded": 2, "offloading": 4}  # a boolean index and its gradient; layers copied back


def run(folder, changes, device):
    """Return the losses and norms of a run, and the host waits of its last step by place."""
    spec = RunSpec.parse(BASE).with_values({"train.device": device, **changes})
    losses, waits = [], {}
    for event in train(spec, run_dir=folder / device[:3], home=open_home(folder / "home")):
        if isinstance(event, Step):
            losses += [event.loss, event.grad_norm]
            waits = dict(log.waits)
        if isinstance(event, Evaluated):
            losses.append(event.eval_loss)
        log.clear()
    return losses, waits


@pytest.mark.parametrize("name", CASES)
def test_a_run_on_the_gpu_is_the_run_on_the_cpu(name, tmp_path):
    changes = dict(CASES[name])
    with fake_gpu(triton=changes.pop("triton", False)):
        found, waits = run(tmp_path, changes, "cuda:0")
    # transformers checks the positions of each pass for packed rows, which waits once, too.
    own = {place: count for place, count in waits.items() if "<-" not in place}
    assert sum(own.values()) <= MOST_WAITS + MAY_WAIT.get(name, 0), own
    assert name in MAY_WAIT or not [place for place in own if " @ backbone/" in place], own
    plain = {key: value for key, value in changes.items() if "offloading" not in key}
    expected, _ = run(tmp_path, plain, "cpu")
    assert len(found) == 5
    close = 0.02 if BASE["model"]["dtype"] == changes.get("model.dtype", "bfloat16") else 0.005
    assert found == pytest.approx(expected, rel=close)


@pytest.mark.filterwarnings("ignore:at..frobenius_norm:UserWarning")  # of torch's own Muon
@pytest.mark.parametrize("device", [MPS, XPU], ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        {}, {"train": {"packing": False}}, {"train": {"gradient_checkpointing": True}},
        {"method": {"name": "lora", "use_dora": True}}, {"method": {"name": "prefix_tuning"}},
        {"method": {"name": "full"}, "train": {"optim": "muon"}},
        {"train": {"optim": "adafactor", "label_smoothing_factor": 0.1}},
    ],
    ids=str,
)  # fmt: skip
def test_steps_on_gpus_of_other_makers_are_those_of_the_cpu(device, changes):
    def steps(where):
        settings = {"max_steps": 2, "per_device_train_batch_size": 4}
        spec = {"method": {"name": "lora"}, **changes}
        spec["train"] = settings | spec.get("train", {})
        session = make_session(device=where, **spec)
        events = [session.step(), session.step()]
        losses = [number for event in events for number in (event.loss, event.grad_norm)]
        return [*losses, session.evaluate().eval_loss]

    expected = steps("cpu")
    with fake_gpu(device=device):
        found = steps(str(device))
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", ["dpo", "ipo", "kto", "orpo", "simpo", "cpo"])
@pytest.mark.parametrize("device", [GPU, MPS, XPU], ids=str)
def test_steps_on_preferences_are_those_of_the_cpu(device, loss, tmp_path):
    def steps(where, folder):
        own = prepared(made(loss, device=where), folder)
        return [number for step in run_steps(own, 2) for number in (step.loss, step.grad_norm)]

    expected = steps("cpu", tmp_path / "cpu")
    with fake_gpu(device=device):
        found = steps(str(device), tmp_path / "gpu")
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("device", [GPU, MPS, XPU], ids=str)
def test_steps_over_an_nf4_base_are_those_of_the_cpu(device, monkeypatch):
    pytest.importorskip("bitsandbytes")  # before torch seems to have a GPU
    whole = partial(conftest.make_model, hidden_size=64, intermediate_size=128)
    make_loaded = conftest.make_loaded

    def in_4_bit(where):
        loaded = make_loaded()
        for name, module in loaded.model.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                module.weight = quantised(module.weight.data, 4)
                module.__class__ = QuantisedLinear
        loaded.model, loaded.device = moved(loaded.model, where), torch.device(where)
        return loaded

    monkeypatch.setattr(conftest, "make_model", whole)
    monkeypatch.setattr(conftest, "make_loaded", in_4_bit)

    def steps(where):
        session = make_session(device=where, train={"max_steps": 2})
        return [
            number for _ in range(2) for e in [session.step()] for number in (e.loss, e.grad_norm)
        ]

    expected = steps("cpu")
    with fake_gpu(device=device):
        assert steps(str(device)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.long
def test_evaluation_and_merge_on_the_gpu_are_those_of_the_cpu(tmp_path):
    run(tmp_path, {"model.dtype": "float32", "train.measure_forgetting": False}, "cpu")
    home, model = open_home(tmp_path / "home"), {"path": "starter", "dtype": "float32"}
    stack = [{"name": str(tmp_path / "cpu" / "adapter"), "weight": 1.0}]

    def done(device):
        place = {"model": model, "stack": stack, "device": device}
        folder = tmp_path / f"evaluated-{device[:3]}"
        request = EvaluateRequest.parse({
            **place, "data": {"path": "starter:pirate"}, "max_rows": 4,
        }).checked(home)  # fmt: skip
        *_, end = request.perform(home, folder)
        merged = MergeRequest.parse({**place, "out": str(tmp_path / f"merged-{device[:3]}")})
        list(merged.checked(home).perform(home))
        (weights,) = Path(merged.out).glob("*.safetensors")
        report = json.loads((folder / "evaluation.json").read_text())
        return [end.eval_loss, report["token_accuracy"]], load_file(weights)

    measured, weights = done("cpu")
    with fake_gpu():
        found_measured, found = done("cuda:0")
    assert found_measured == pytest.approx(measured, rel=1e-3)
    assert found.keys() == weights.keys()
    assert all(torch.allclose(found[name], weights[name], atol=1e-5) for name in weights)


@pytest.mark.parametrize(("triton", "most"), [(True, 105), (False, 152)])
def test_a_layer_of_a_training_step_takes_few_launches(triton, most):
    counts = []
    with fake_gpu(triton=triton):
        named = kernel_check._kernels() if triton else {}
        linear_kernels.activate(GPU, torch.bfloat16, named)
        for layers in (2, 3):
            model = make_model(num_hidden_layers=layers).bfloat16().to("cuda:0")
            backbone = Backbone(model)
            backbone.attach("a", Lora(r=4))
            backbone.use([("a", 1.0)])
            parameters = backbone.train("a")
            backbone.set_attention("varlen")
            batch = pack(make_rows().train[:4], GPU)
            for _ in range(2):  # the first pass finds out which projections share their input
                log.clear()
                for parameter in parameters:
                    parameter.grad = None
                loss_sum(backbone, batch).backward()
            counts.append(log.launches)
        assert set(log.ops) >= {name for name in named if not name.startswith("nf4")}
    linear_kernels.activate(GPU, torch.bfloat16, {})
    assert counts[1] - counts[0] <= most, counts


@pytest.mark.parametrize(
    ("capability", "hip", "dtype"),
    [((8, 0), None, torch.bfloat16), ((9, 0), None, torch.bfloat16), ((7, 5), None, torch.float16),
     ((6, 1), None, torch.float16), ((7, 0), "7.0", torch.bfloat16)],
)  # fmt: skip
def test_auto_is_bfloat16_where_a_card_multiplies_it(capability, hip, dtype, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", hip)
    with fake_gpu(capability=capability):
        assert dtype_for("auto", GPU) is dtype
    with fake_gpu(device=XPU):
        assert dtype_for("auto", XPU) is torch.bfloat16


@pytest.mark.parametrize("chosen", [True, False])
def test_float32_products_round_to_tf32_by_choice(chosen, tmp_path):
    before = torch.backends.cuda.matmul.fp32_precision
    changes = {"method.name": "full", "model.dtype": "float32", "train.tf32": chosen}
    with fake_gpu():
        run(tmp_path, changes, "cuda:0")
    assert torch.backends.cuda.matmul.fp32_precision == ("tf32" if chosen else "ieee")
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize(
    ("capability", "dtype", "masked", "repeated"),
    [
        ((8, 0), torch.bfloat16, False, False), ((8, 0), torch.bfloat16, True, True),
        ((8, 0), torch.float32, False, True), ((7, 5), torch.float16, False, True),
    ],
)  # fmt: skip
def test_grouped_heads_are_repeated_where_no_fast_kernel_takes_them(
    capability, dtype, masked, repeated, monkeypatch
):
    query, key = torch.randn(1, 4, 6, 8, dtype=dtype), torch.randn(1, 2, 6, 8, dtype=dtype)
    mask = torch.ones(6, 6, dtype=torch.bool).tril() if masked else None
    wanted = attention.attend(query, key, key, mask, attention.AttentionShape())
    heads = []

    def seen(query, key, value, **how):
        heads.append(key.shape[1])
        return scaled_dot_product_attention(query, key, value, **how)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", seen)
    with fake_gpu(capability=capability):
        query, key = query.to("cuda:0"), key.to("cuda:0")
        mask = mask if mask is None else mask.to("cuda:0")
        found = attention.attend(query, key, key, mask, attention.AttentionShape()).cpu()
    assert heads == [4 if repeated else 2]
    assert torch.allclose(found.float(), wanted.float(), atol=1e-2)
