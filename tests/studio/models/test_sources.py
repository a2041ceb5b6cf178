import errno
import json
import struct
from pathlib import Path

import huggingface_hub
import pytest

from studio.errors import DiskFull, ModelError, Unreached
from studio.models.sources import available, facts, resolve
from studio.spec import ModelSource


def make_model(folder: Path, **config: object) -> Path:
    """A two-tensor Llama folder: 6 + 4 numbers in bfloat16."""
    folder.mkdir(parents=True)
    values = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2,
        "num_hidden_layers": 1, "vocab_size": 3, "max_position_embeddings": 16, **config,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "tokenizer.json").write_text("{}")
    table = {
        "model.embed_tokens.weight": {"dtype": "BF16", "shape": [3, 2], "data_offsets": [0, 12]},
        "model.q.weight": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [12, 20]},
    }
    head = json.dumps(table).encode()
    data = struct.pack("<Q", len(head)) + head + bytes(range(20))
    (folder / "model.safetensors").write_bytes(data)
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as error:
        facts(ModelSource(path=str(folder)))
    return error.value.text


def test_facts_come_from_the_config_and_the_header(tmp_path):
    known = facts(ModelSource(path=str(make_model(tmp_path / "m"))))
    assert known.parameters == 10
    assert (known.hidden_size, known.num_layers, known.context_length) == (2, 1, 16)
    assert known.architecture == "LlamaForCausalLM"
    assert not known.has_chat_template


def test_the_fingerprint_tells_the_weights_and_the_shapes_apart(tmp_path):
    first = facts(ModelSource(path=str(make_model(tmp_path / "a")))).fingerprint
    again = facts(ModelSource(path=str(make_model(tmp_path / "b")))).fingerprint
    other = make_model(tmp_path / "c") / "model.safetensors"
    other.write_bytes(other.read_bytes()[:-1] + b"\xff")
    changed = facts(ModelSource(path=str(other.parent))).fingerprint
    assert first == again
    assert changed.split("-")[0] == first.split("-")[0]
    assert changed != first


def test_a_missing_folder_is_one_sentence():
    assert "no model folder /nowhere/x" in refused(Path("/nowhere/x"))


def test_a_folder_without_config_is_refused(tmp_path):
    assert "no config.json" in refused(tmp_path)


def test_an_adapter_folder_is_named_as_such(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "is an adapter" in refused(tmp_path)


def test_a_model_without_tokenizer_is_refused(tmp_path):
    folder = make_model(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in refused(folder)


def test_an_unknown_architecture_names_the_nearest(tmp_path):
    folder = make_model(tmp_path / "m", architectures=["LlammaForCausalLM"])
    assert "LlammaForCausalLM" in refused(folder)
    assert '"LlamaForCausalLM"' in refused(folder)


def test_remote_code_is_refused(tmp_path):
    assert "auto_map" in refused(make_model(tmp_path / "m", auto_map={"AutoModel": "x.Y"}))


def test_pickled_weights_are_refused_with_the_way_out(tmp_path):
    folder = make_model(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "save_pretrained" in refused(folder)


def test_a_truncated_file_is_refused_with_both_sizes(tmp_path):
    file = make_model(tmp_path / "m") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    text = refused(file.parent)
    assert "truncated" in text
    assert f"{file.stat().st_size:,}" in text


def test_a_file_that_is_no_safetensors_is_refused(tmp_path):
    file = make_model(tmp_path / "m") / "model.safetensors"
    file.write_bytes(b"hello")
    assert "truncated or not a safetensors file" in refused(file.parent)


def test_a_missing_shard_is_named(tmp_path):
    folder = make_model(tmp_path / "m")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors" in refused(folder)


def test_an_unknown_hub_id_is_one_sentence_offline():
    with pytest.raises(Unreached, match='"no-such-org/no-such-model" is not a folder here'):
        facts(ModelSource(path="no-such-org/no-such-model"))


@pytest.mark.parametrize(
    ("fault", "kind", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DiskFull, "free some room"),
        (ConnectionResetError(errno.ECONNRESET, "reset by peer"), Unreached, "try again"),
        (PermissionError(errno.EACCES, "Permission denied"), ModelError, "Permission denied"),
    ],
    ids=["disk", "network", "permission"],
)
def test_a_download_that_breaks_off_says_why(monkeypatch, fault, kind, sentence):
    def broken(*_: object, **__: object) -> str:
        raise fault

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(kind, match=f'"org/model".*{sentence}'):
        facts(ModelSource(path="org/model"))


def test_available_lists_starter_and_the_homes_models(home, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    make_model(home.models / "mine")
    make_model(home.models / "odd", architectures=["Nope"])
    make_model(tmp_path / "hub" / "models--org--small" / "snapshots" / "abc")
    assert available(home) == ["starter", str(home.models / "mine"), "org/small"]


def test_real_models_are_read(real):
    llama = facts(ModelSource(path=str(real / "models" / "stories260k")))
    gpt2 = facts(ModelSource(path=str(real / "models" / "tarot-gpt2")))
    assert (llama.hidden_size, llama.num_layers, llama.context_length) == (64, 5, 512)
    assert (gpt2.hidden_size, gpt2.num_layers, gpt2.context_length) == (128, 4, 64)
    # 512x64 embeddings + 5 layers of (2*64*64 + 2*64*32 + 3*64*172 + 2*64) + the last norm
    assert llama.parameters == 512 * 64 + 5 * (2 * 4096 + 2 * 2048 + 3 * 11008 + 128) + 64
    assert resolve(ModelSource(path=str(real / "models" / "tarot-gpt2"))) == gpt2.path


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0,
                           "original_max_position_embeddings": 16}}, 64),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 64),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2}}, 32),
        ({"rope_scaling": {"type": "yarn", "factor": 40,
                           "original_max_position_embeddings": 16},
          "max_position_embeddings": 640}, 640),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 16),
        ({"rope_scaling": {"type": "yarn", "factor": "a lot"}}, 16),
    ],
)  # fmt: skip
def test_yarn_in_the_configuration_extends_the_context_as_model_cards_write(
    tmp_path, config, length
):
    assert (
        facts(ModelSource(path=str(make_model(tmp_path / "m", **config)))).context_length == length
    )
