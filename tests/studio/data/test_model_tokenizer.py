"""One tokenizer: the pages' ids are those of transformers' own object, for every class of it."""

import json
import shutil
import subprocess
import sys

import pytest

from studio.data.model_tokenizer import (
    _stands_as_it_is,
    backend_for,
    backend_from_folder,
    backend_of,
)
from studio.data.prepare_run_data import prepare
from studio.data.xray import xray
from studio.errors import ModelError
from studio.home import open_home
from studio.models.loading import tokenizer_at
from studio.spec import DataSource
from studio.starter import MODEL_DIR
from tests.studio.data.conftest import assert_same, write_rows

TEXTS = [
    "Where is  the cat?",
    " two\n\nlines ",
    "<s>not a token</s>",
    "naïve 日本 🙂",
    "don't 1234",
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
CLASSES = [
    ("LlamaTokenizerFast", "llama"), ("LlamaTokenizer", "mistral"), ("GPT2TokenizerFast", "gpt2"),
    ("PreTrainedTokenizerFast", "llama"), ("PreTrainedTokenizerFast", "qwen2"),
    ("TokenizersBackend", "llama"), ("Qwen2TokenizerFast", "qwen2"),
    ("GemmaTokenizerFast", "gemma"),
    ("CodeLlamaTokenizerFast", "llama"), ("GPTNeoXTokenizerFast", "gpt_neox"),
    ("CohereTokenizerFast", "cohere"), ("NoSuchTokenizerFast", "llama"), (None, "llama"),
]  # fmt: skip


@pytest.fixture(scope="module")
def byte_level():
    """Train a byte-level BPE tokenizer with the special tokens of Llama."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[*SPECIAL.values()], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    core.train_from_iterator(TEXTS * 4, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    return core


@pytest.mark.parametrize(("values", "template"), [
    ({"chat_template": [1, {"name": ["x"], "template": 2}], "eos_token": {"x": 1}}, b""),
    ({"tokenizer_class": "PreTrainedTokenizerFast", "extra_special_tokens": 5}, b"\xff"),
])  # fmt: skip
def test_damaged_settings_of_a_tokenizer_are_left_out_or_refused(tmp_path, values, template):
    folder = shutil.copytree(MODEL_DIR, tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | values))
    (folder / "chat_template.jinja").write_bytes(template)
    if template:
        with pytest.raises(ModelError, match="not UTF-8"):
            backend_from_folder(folder)
        (folder / "chat_template.jinja").unlink()
    assert backend_from_folder(folder).core.get_vocab_size() > 0
    assert _stands_as_it_is(folder, str(tmp_path)) is not bool(template)


@pytest.fixture(scope="module")
def metaspace():
    """Train a BPE tokenizer with the normalizer that Llama's and Mistral's files have."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    tokens = [*SPECIAL.values(), *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=tokens, show_progress=False)
    core.train_from_iterator(TEXTS * 4, trainer)
    return core


def model_folder(folder, core, tokenizer_class, model_type, **more):
    folder.mkdir()
    core.save(str(folder / "tokenizer.json"))
    config = {"chat_template": TEMPLATE, **SPECIAL, **more}
    if tokenizer_class:
        config["tokenizer_class"] = tokenizer_class
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def rows(tmp_path):
    messages = [
        {"role": role, "content": text}
        for text in TEXTS for role in ("user", "assistant")
    ]  # fmt: skip
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": messages}])
    return DataSource(path=path, validation_fraction=0)


@pytest.mark.parametrize("core", ["byte_level", "metaspace"])
@pytest.mark.parametrize(("tokenizer_class", "model_type"), CLASSES)
def test_the_xray_has_the_ids_that_enter_the_loss(
    tmp_path, request, core, tokenizer_class, model_type
):
    core = request.getfixturevalue(core)
    folder = model_folder(tmp_path / "model", core, tokenizer_class, model_type)
    home, source = open_home(tmp_path / "home"), rows(tmp_path)

    shown = xray(source, backend_for(folder, home), context_length=4096)
    trained = prepare(source, tokenizer_at(folder), context_length=4096, seed=0).train

    assert_same(shown, trained)


@pytest.mark.parametrize(
    "more",
    [
        {"add_bos_token": False},
        {"add_eos_token": True},
        {"add_prefix_space": True},
        {"extra_special_tokens": ["<new>"]},
        {"additional_special_tokens": ["<new>"]},
        {"pad_token": "<pad>"},
        {"added_tokens_decoder": {"0": {"content": "<s>", "special": True}}},
    ],
)
@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "LlamaTokenizerFast"])
def test_flags_of_the_configuration_are_read_as_transformers_does(
    tmp_path, byte_level, tokenizer_class, more
):
    folder = model_folder(tmp_path / "model", byte_level, tokenizer_class, "llama", **more)

    ours, theirs = backend_for(folder), backend_of(tokenizer_at(folder))

    assert (ours.special, ours.prefix, ours.controls) == (
        theirs.special, theirs.prefix, theirs.controls
    )  # fmt: skip
    for text in [*TEXTS, "a<new>b<pad>"]:
        assert ours.core.encode(text).ids == theirs.core.encode(text).ids


def test_tokens_named_only_in_the_special_tokens_map_are_known(tmp_path, byte_level):
    folder = model_folder(tmp_path / "model", byte_level, "PreTrainedTokenizerFast", "llama")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for name in SPECIAL:
        del config[name]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(SPECIAL))

    assert backend_for(folder).special == backend_of(tokenizer_at(folder)).special == SPECIAL


def test_a_process_without_transformers_asks_once_and_remembers(tmp_path, metaspace):
    folder = model_folder(tmp_path / "model", metaspace, "LlamaTokenizerFast", "llama")
    home = open_home(tmp_path / "home")
    code = (
        "import sys; from pathlib import Path; from studio.data import model_tokenizer as files;"
        "from studio.home import open_home; home = open_home(sys.argv[2]);"
        "backend = files.backend_for(Path(sys.argv[1]), home); files._known.clear();"
        "files._resolved = None; again = files.backend_for(Path(sys.argv[1]), home);"
        "assert backend.fingerprint() == again.fingerprint();"
        "assert 'transformers' not in sys.modules and 'torch' not in sys.modules;"
        "print(backend.fingerprint())"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(home.path)], capture_output=True, text=True
    )

    assert done.stdout.strip() == backend_of(tokenizer_at(folder)).fingerprint(), done.stderr


def test_a_run_keeps_what_transformers_made_of_the_files(tmp_path, metaspace, monkeypatch):
    folder = model_folder(tmp_path / "model", metaspace, "LlamaTokenizerFast", "llama")
    home = open_home(tmp_path / "home")
    loaded = tokenizer_at(folder)
    monkeypatch.setattr("studio.data.model_tokenizer._known", {})

    prepare(rows(tmp_path), loaded, context_length=4096, seed=0, home=home)
    monkeypatch.setattr("studio.data.model_tokenizer._resolved", None)

    assert backend_for(folder, home).fingerprint() == backend_of(loaded).fingerprint()
