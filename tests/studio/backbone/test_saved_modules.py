"""Modules and tokens trained beside the low-rank products: gradients, PEFT's files, new tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, LlamaConfig

from studio.adapters.merge import merge
from studio.backbone import Backbone
from studio.chat.lanes import Lane, Message, Sampling
from studio.chat.resident_models import ResidentModels
from studio.errors import AdapterError, MethodError, ModelError
from studio.home import Home
from studio.methods.lora import Lora
from studio.models.find_model import facts
from studio.models.loading import load
from studio.models.new_tokens import ExtendRequest, new_token_ids, read_tokens
from studio.spec import ModelSource, RunSpec
from studio.training.train_run import train
from tests.studio.tiny import SIZES, tiny_folder, tiny_tokenizer, verifying_here

IDS = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(5))
WAYS: list[dict[str, Any]] = [
    {"modules_to_save": "embeddings"},
    {"modules_to_save": ("norm", "lm_head")},
    {"trainable_token_indices": tuple(IDS[0, :4].tolist())},
]


def model(*, tied: bool) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(**{**SIZES, "tie_word_embeddings": tied})
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in made.parameters():
        parameter.data += torch.randn(parameter.shape) * 0.1
    return made.eval()


def attached(tied: bool, way: dict[str, Any]) -> Backbone:
    backbone = Backbone(model(tied=tied))
    backbone.attach("a", Lora(r=2, target_modules=("q_proj",), **way))
    backbone.use([("a", 1.0)])
    return backbone


def loss_of(own: Any) -> torch.Tensor:
    logits = own(input_ids=IDS).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_gradients_are_those_of_the_models_own_weights(way, tied):
    if tied and way == WAYS[1]:
        pytest.skip("a head of its own beside shared embeddings has no weight in the plain model")
    plain = model(tied=tied)
    loss_of(plain).backward()
    backbone = attached(tied, way)
    backbone.train("a")
    loss_of(backbone.model).backward()
    trained = dict(backbone.adapters["a"].named_parameters())
    mine = {name: p.grad for name, p in trained.items() if "lora" not in name}
    own = dict(plain.named_parameters())
    assert all(grad is not None and grad.any() for grad in mine.values())
    assert len(mine) == (1 if tied else 2)
    for name, grad in mine.items():
        key, _, part = name.rpartition("/")
        if part == "tokens":
            wanted = own[f"{key}.weight"].grad[list(way["trainable_token_indices"])]
        else:
            wanted = own[f"{key}.{part}"].grad
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.filterwarnings("ignore:.*tie")
def test_what_was_trained_is_read_by_peft_and_here_with_equal_logits(way, tied, tmp_path):
    from peft import PeftModel

    backbone = attached(tied, way)
    generator = torch.Generator().manual_seed(3)
    for parameter in backbone.adapters["a"].parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.2
    backbone.save("a", tmp_path)
    again = Backbone(model(tied=tied))
    loaded = again.load("a", tmp_path)
    assert loaded.num_parameters == backbone.adapters["a"].num_parameters  # shared ones stay so
    again.use([("a", 1.0)])
    theirs = PeftModel.from_pretrained(model(tied=tied), tmp_path).eval()
    with torch.no_grad():
        expected = backbone.model(input_ids=IDS).logits
        assert (expected - model(tied=tied)(input_ids=IDS).logits).abs().max() > 0.1
        for other in (again.model, theirs):
            found = other(input_ids=IDS).logits
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"modules_to_save": ("lm_heat",)}, "Did you mean"),
        ({"modules_to_save": ("q_proj",)}, "trained by method.target_modules already"),
        ({"trainable_token_indices": (64,)}, "tokens are 0 to 63"),
    ],
)
def test_what_cannot_be_trained_in_full_is_one_sentence(fields, words):
    with pytest.raises(MethodError, match=words):
        attached(False, fields)


def test_a_head_cannot_be_trained_beside_tokens_of_the_embeddings_that_it_shares(tmp_path):
    both = {"modules_to_save": ("lm_head",), "trainable_token_indices": (5,)}
    with pytest.raises(MethodError, match=r"lm_head shares its matrix .* set"):
        attached(True, both)
    attached(False, both).save("a", tmp_path)
    with pytest.raises(AdapterError, match=r"stores lm_head in full, and single tokens"):
        Backbone(model(tied=True)).load("a", tmp_path)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantised_layer_is_neither_trained_in_full_nor_replaced(quantization, tmp_path):
    pytest.importorskip("bitsandbytes")
    folder, own = tiny_folder(tmp_path / "base"), tmp_path / "adapter"
    own.mkdir()
    plain = Backbone(load(ModelSource(path=str(folder)), "cpu").model)
    base = ModelSource(path=str(folder), quantization=quantization)
    quantised = Backbone(load(base, "cpu").model)
    method = Lora(r=2, target_modules=("q_proj",), modules_to_save=("up_proj", "norm"))
    with pytest.raises(MethodError, match=r"up_proj is quantised .* model.quantization=none, or"):
        quantised.attach("a", method)
    plain.attach("a", method)
    plain.save("a", own)
    with pytest.raises(AdapterError, match=r"up_proj of this model is quantised: set"):
        quantised.load("a", own)
    norms = method.model_copy(update={"modules_to_save": ("norm", "lm_head")})
    quantised.attach("b", norms)
    quantised.save("b", own)
    quantised.load("c", own)


@pytest.fixture(scope="module", params=["llama", "tied"])
def extended(request, tmp_path_factory):
    """A tiny base with two more tokens, in a home of its own."""
    from studio.home import open_home

    folder = tmp_path_factory.mktemp("tokens")
    home, base = open_home(folder / "home"), folder / "base"
    if request.param == "llama":
        tiny_folder(base)
    else:
        model(tied=True).save_pretrained(base)
        tiny_tokenizer().save_pretrained(base)
    asked = ExtendRequest(
        model=ModelSource(path=str(base)), token=("<call>", "<abc>=abc"), name="more"
    ).checked(home)
    *_, last = asked.perform(home)
    return home, base, Path(str(last.adapter))


def test_new_tokens_start_at_the_mean_or_at_their_description(extended):
    _, base, folder = extended
    old, new = (AutoModelForCausalLM.from_pretrained(one, dtype=torch.float32)
                for one in (base, folder))  # fmt: skip
    assert new_token_ids(folder) == [64, 65]
    assert new.get_input_embeddings().weight.shape[0] == 66
    with torch.no_grad():
        both = [one(input_ids=IDS).logits for one in (old, new)]
    torch.testing.assert_close(both[1][..., :64], both[0], rtol=1e-5, atol=1e-5)
    for table in ("get_input_embeddings", "get_output_embeddings"):
        weight = getattr(new, table)().weight
        torch.testing.assert_close(weight[64], weight[:64].mean(0))
        torch.testing.assert_close(weight[65], weight[[3, 4, 5]].mean(0), msg="a, b, c")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_new_tokens_leave_the_precision_of_the_file_as_it_is(home, tmp_path, dtype):
    model(tied=True).to(dtype).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    source = ModelSource(path=str(tmp_path / "base"))
    *_, last = ExtendRequest(model=source, token=("<call>",)).checked(home).perform(home)
    old, new = facts(source), facts(ModelSource(path=str(last.adapter)))
    assert new.weights_dtype == old.weights_dtype != "F32"
    config = json.loads((new.path / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")


def test_a_run_trains_new_tokens_which_chat_merge_and_peft_know(extended, tmp_path):
    from peft import PeftModel
    from transformers import AutoTokenizer

    home, _, folder = extended
    rows = [{"question": f"say {w}", "answer": f"<call>{w}"} for w in "abcdefghijklmnopqrst"]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = RunSpec().with_values({
        "model.path": str(folder), "data.path": str(tmp_path / "rows.jsonl"), "method.r": 4,
        "data.chat_template": "plain", "train.max_steps": 60, "train.device": "cpu",
        "train.learning_rate": 0.02, "train.num_samples": 0, "train.self_test": False,
        "train.measure_forgetting": False, "name": "caller",
    })  # fmt: skip
    *_, last = train(spec, run_dir=home.run(1), home=home)
    adapter = Path(str(last.adapter))
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["trainable_token_indices"]["embed_tokens"] == [64, 65]

    lane = Lane(model=str(folder), stack=({"name": str(adapter)},), template="plain",
                messages=(Message(role="user", content="say c"),),
                sampling=Sampling(max_new_tokens=2))  # fmt: skip
    deltas = [*ResidentModels(Home(home.path), device="cpu").stream([lane])]
    assert next(d.token_id for d in deltas if d.token_id is not None) == 64, deltas

    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)("say <call>a")["input_ids"]])
    assert 64 in ids
    backbone = Backbone(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    backbone.load("a", adapter)
    backbone.use([("a", 1.0)])
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(theirs, adapter).eval()
    with verifying_here():
        events = list(merge(spec.model, [(adapter, 1.0)], home.models / "merged", device="cpu"))
    merged = AutoModelForCausalLM.from_pretrained(events[-1].adapter, dtype=torch.float32)
    with torch.no_grad():
        expected = backbone.model(input_ids=ids).logits
        for other in (theirs, merged.eval()):
            found = other(input_ids=ids).logits
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    tied = merged.config.tie_word_embeddings
    assert tied == theirs.config.tie_word_embeddings, "what was shared stays shared"


def test_tokens_that_cannot_be_added_are_one_sentence(tmp_path, home):
    for texts, words in (((), "Name 1 to"), (("a", "a=b"), "given twice"), (("=x",), "is empty")):
        with pytest.raises(ModelError, match=words):
            read_tokens(texts)
    base = tiny_folder(tmp_path / "base")
    asked = ExtendRequest(model=ModelSource(path=str(base)), token=("b",), name="x").checked(home)
    with pytest.raises(ModelError, match='"b" is a token of this model already'):
        list(asked.perform(home))
