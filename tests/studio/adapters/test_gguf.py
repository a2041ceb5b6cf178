"""GGUF files answer like the model they were made from, and one that does not is not kept."""

import json
from pathlib import Path

import numpy as np
import pytest

from studio.adapters.verify_logits import Comparison

pytest.importorskip("gguf", reason="the extra gguf is not installed")

from studio import starter
from studio.adapters import gguf_tensors
from studio.adapters.gguf import GgufRequest, verify_gguf
from studio.adapters.gguf_tensors import interleave
from studio.adapters.gguf_write import write
from studio.adapters.verify_logits import GGUF_REPORT
from studio.atomic import read_object
from studio.errors import AdapterError, InputError, ModelError, SpecError


def test_rotary_rows_are_put_into_pairs():
    # One head of four rows: first halves 0, 1 and second halves 2, 3 become 0, 2, 1, 3.
    assert interleave(np.arange(4)[:, None], 1)[:, 0].tolist() == [0, 2, 1, 3]
    assert interleave(np.arange(8)[:, None], 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(
    ("precision", "largest"),
    [("f32", 1e-5), ("f16", 0.05), ("bf16", 0.4), ("q8_0", 0.8), ("q5_1", 4), ("q4_0", 8)],
)
def test_stories_read_back_answer_the_same(real, tmp_path, precision, largest):
    source, file = real / "models" / "stories260k", tmp_path / "x.gguf"

    check, differ = written(source, file, precision)

    check.require("file", "model")
    assert check.max_error <= largest
    coarse = precision in ("q5_1", "q4_0")  # a model of 260,000 parameters has none to spare
    assert check.tokens_changed <= (check.tokens_compared / 3 if coarse else 2)
    assert differ == ()


SHAPE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.1,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "Mistral": {}, "Qwen2": {"tie_word_embeddings": False}, "Qwen3": {"head_dim": 128},
    "Gemma2": {"head_dim": 256, "sliding_window": 64},
    "Gemma3Text": {"head_dim": 256, "sliding_window": 16},
}  # fmt: skip


def make_family(name: str, folder: Path, tokenizer: Path, **changes) -> Path:
    """A random model of a family, its norms moved, with a real tokenizer."""
    import torch
    import transformers

    words = transformers.AutoTokenizer.from_pretrained(tokenizer)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(words), **SHAPE, **{**FAMILIES[name], **changes}
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config)
    for key, parameter in model.named_parameters():
        if "norm" in key:
            parameter.data += torch.randn_like(parameter) * 0.2
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


SENTENCEPIECE, BYTEWISE = "models/stories260k", "tokenizers/minimind"


@pytest.mark.parametrize(
    ("name", "tokenizer"),
    [("Mistral", SENTENCEPIECE), ("Mistral", BYTEWISE), ("Qwen2", BYTEWISE), ("Qwen3", BYTEWISE),
     ("Gemma2", SENTENCEPIECE), ("Gemma3Text", SENTENCEPIECE)],
)  # fmt: skip
def test_every_family_reads_back_exactly(real, tmp_path, name, tokenizer):
    folder = make_family(name, tmp_path / "model", real / tokenizer)

    check, differ = written(folder, tmp_path / "x.gguf")

    check.require("file", "model")
    assert check.max_error <= 1e-5
    assert check.tokens_changed == 0
    if "Gemma" not in name:  # Gemma's own tokenizers put no space before a text, this one does
        assert differ == ()


def written(
    folder: Path, file: Path, precision: str = "f32"
) -> tuple[Comparison | None, tuple[str, ...]]:
    write(folder, file, precision=precision, name="x")
    return verify_gguf(folder, file, precision)


def test_a_file_that_answers_otherwise_is_caught(real, tmp_path, monkeypatch):
    """Rotary rows in the wrong order; Gemma's norms without their shift."""
    stories, file = real / "models" / "stories260k", tmp_path / "x.gguf"
    gemma = make_family("Gemma2", tmp_path / "gemma", stories)
    with monkeypatch.context() as broken:
        broken.setattr(gguf_tensors, "interleave", lambda tensor, heads: tensor)
        with pytest.raises(AdapterError, match="file differs from the model"):
            written(stories, file)[0].require("file", "model")
    own = gguf_tensors.tensors
    monkeypatch.setattr(gguf_tensors, "tensors", lambda where: (
        (key, tensor - 1 if "norm" in key else tensor) for key, tensor in own(where)
    ))  # fmt: skip
    write(gemma, file, precision="f32", name="x")
    monkeypatch.undo()
    with pytest.raises(AdapterError, match=r"norm.weight of the written file differs"):
        verify_gguf(gemma, file, "f32")


def test_a_size_unlike_the_readers_is_checked_tensor_by_tensor(real, tmp_path):
    odd = make_family("Qwen3", tmp_path / "odd", real / "models" / "stories260k", head_dim=32)
    assert written(odd, tmp_path / "x.gguf") == (None, ())


def test_the_starter_is_exported_whole_with_its_chat_template(home):
    request = GgufRequest.parse({"precision": "f32"}).checked(home)

    finished = list(request.perform(home))[-1]

    out = Path(finished.adapter)
    assert read_object(out / GGUF_REPORT)["max_error"] < 1e-5
    assert (out / GGUF_REPORT).is_file() and "FROM ./" in (out / "Modelfile").read_text()
    assert "Base: `starter`" in (out / "README.md").read_text()
    from transformers import AutoTokenizer

    read = AutoTokenizer.from_pretrained(out, gguf_file=next(out.glob("*.gguf")).name)
    assert read.chat_template == (starter.MODEL_DIR / "chat_template.jinja").read_text()


def test_what_has_no_place_in_the_format_is_refused(tmp_path, home):
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="GPT2LMHeadModel has no entry"):
        write(tmp_path, tmp_path / "x.gguf", precision="f32", name="x")
    with pytest.raises(SpecError, match="precision"):
        GgufRequest.parse({"precision": "q4"})
    with pytest.raises(InputError, match="exists already"):
        GgufRequest.parse({"out": str(tmp_path)}).checked(home)
