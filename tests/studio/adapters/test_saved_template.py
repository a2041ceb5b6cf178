"""The template of an adapter goes with it: into merged models, exports and GGUF."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from studio.adapters.export import export_adapter
from studio.adapters.merge import merge, read_certificate, trained_template
from studio.adapters.verify_logits import verify
from studio.backbone import Backbone
from studio.data.template.choose_template import (
    CONVERSATION,
    STYLES,
    choose,
    conversation_ids,
    keep_template,
)
from studio.errors import AdapterError
from studio.home import open_home
from studio.methods.lora import Lora
from studio.models.loading import load, tokenizer_at
from studio.spec import ModelSource
from tests.studio.data.conftest import labelled
from tests.studio.tiny import verifying_here


@pytest.fixture(scope="module")
def base(real):
    """A model without a chat template whose tokenizer puts `<s>` in front."""
    return real / "models" / "stories260k"


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    """Save an adapter that was trained with the alpaca template."""
    backbone = Backbone(load(ModelSource(path=str(base)), "cpu").model)
    for parameter in backbone.attach("a", Lora(r=4), seed=0).parameters():
        parameter.data += 0.005
    folder = tmp_path_factory.mktemp("adapter")
    backbone.save("a", folder)
    passport = {"name": "a", "data": {"template": "alpaca"}, "base": {"path": str(base)}}
    (folder / "passport.json").write_text(json.dumps(passport))
    return folder


@pytest.fixture(scope="module")
def merged(base, adapter, tmp_path_factory):
    """Merge that adapter into the model."""
    out = tmp_path_factory.mktemp("merged") / "out"
    with verifying_here():
        [*_] = merge(ModelSource(path=str(base)), [(adapter, 1.0)], out, device="cpu")
    return out


def prompt(folder, name="auto"):
    return choose(tokenizer_at(folder), name).encode_prompt(CONVERSATION)


@pytest.mark.parametrize(
    "model", ["models/stories260k", "models/tarot-gpt2", "tokenizers/minimind"]
)
@pytest.mark.parametrize("name", [*STYLES])
def test_a_saved_template_renders_the_tokens_of_training(real, tmp_path, model, name):
    folder = real / model
    tokenizer = tokenizer_at(folder)
    named = choose(tokenizer, name)

    ids = keep_template(tokenizer, name)
    tokenizer.save_pretrained(tmp_path)
    again = tokenizer_at(tmp_path)
    text = again.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)

    assert ids == named.encode_prompt(CONVERSATION) == conversation_ids(again)
    assert again(text, add_special_tokens=False)["input_ids"] == ids
    answered = [*CONVERSATION, {"role": "assistant", "content": "The captain."}]
    assert labelled(choose(again), answered) == labelled(named, answered)


def test_a_merged_model_answers_with_the_template_of_its_adapter(base, merged):
    assert prompt(merged) == prompt(base, "alpaca") != prompt(base)
    assert read_certificate(merged)["tokens_changed"] == 0


@pytest.mark.parametrize("template", ["model", "text", "", None])
def test_an_adapter_without_a_named_template_changes_none(base, adapter, tmp_path, template):
    folder = shutil.copytree(adapter, tmp_path / "a")
    passport = {"name": "a", "data": {"template": template}}
    (folder / "passport.json").write_text(json.dumps(passport))
    tokenizer = tokenizer_at(base)

    keep_template(tokenizer, trained_template([folder]))

    assert tokenizer.chat_template is None and trained_template([adapter]) == "alpaca"


def test_a_folder_that_renders_a_conversation_otherwise_is_not_verified(merged, tmp_path):
    reference = tmp_path / "reference.safetensors"
    plan = {"ids": [[1]], "left": [], "fp32": True, "conversation": [1, 2, 3]}
    save_file({"logits": torch.zeros(1, 512)}, reference, {"plan": json.dumps(plan)})

    with pytest.raises(AdapterError, match="renders a conversation to other tokens"):
        verify(merged, reference)


def test_an_exported_adapter_brings_its_template(base, adapter, tmp_path):
    home = open_home(tmp_path / "home")
    out = export_adapter(home, str(adapter), tmp_path / "out", model=str(base))

    tokenizer = tokenizer_at(base)
    tokenizer.chat_template = (out / "chat_template.jinja").read_text()
    assert conversation_ids(tokenizer) == prompt(base, "alpaca")


def test_a_gguf_file_of_a_merged_model_holds_the_template(merged):
    gguf = pytest.importorskip("gguf")
    from studio.adapters.gguf_write import add_tokenizer

    writer = gguf.GGUFWriter(None, "llama")
    notes = add_tokenizer(writer, merged, 512, "llama")

    template = writer.kv_data[0]["tokenizer.chat_template"].value
    assert not notes and template == tokenizer_at(merged).chat_template
    assert "### Response" in template and "endgeneration" not in template
