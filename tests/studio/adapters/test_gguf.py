"""GGUF files answer like the model they were made from, and one that does not is not kept."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf", reason="the extra gguf is not installed")

from studio import starter
from studio.adapters import gguf_write
from studio.adapters.gguf_export import REPORT, GgufRequest, compare, judge, read_check
from studio.adapters.gguf_write import interleave, write
from studio.errors import AdapterError, InputError, ModelError, SpecError
from studio.home import Home


def test_rotary_rows_are_put_into_pairs():
    # One head of four rows: first halves 0, 1 and second halves 2, 3 become 0, 2, 1, 3.
    assert interleave(np.arange(4)[:, None], 1)[:, 0].tolist() == [0, 2, 1, 3]
    assert interleave(np.arange(8)[:, None], 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(
    ("precision", "largest"), [("f32", 1e-5), ("f16", 0.05), ("bf16", 0.4), ("q8_0", 0.8)]
)
def test_stories_read_back_answer_the_same(real: Path, tmp_path: Path, precision, largest):
    source, file = real / "models" / "stories260k", tmp_path / "x.gguf"

    check = compare(source, file, precision, write(source, file, precision=precision, name="x"))

    judge(check)
    assert check.max_error <= largest
    assert check.tokens_changed <= 2
    assert check.texts_tokenised_differently == ()


def test_the_starter_is_exported_whole_with_its_chat_template(home: Home):
    request = GgufRequest.parse({"precision": "f32"}).checked(home)

    finished = list(request.perform(home))[-1]

    out = Path(finished.adapter)
    assert read_check(out)["max_error"] < 1e-5
    assert (out / REPORT).is_file() and "FROM ./" in (out / "Modelfile").read_text()
    assert "base: `starter`" in (out / "README.md").read_text()
    from transformers import AutoTokenizer

    read = AutoTokenizer.from_pretrained(out, gguf_file=next(out.glob("*.gguf")).name)
    assert read.chat_template == (starter.MODEL_DIR / "chat_template.jinja").read_text()


def test_wrong_rotary_rows_are_caught(real: Path, tmp_path: Path, monkeypatch):
    source, file = real / "models" / "stories260k", tmp_path / "x.gguf"
    monkeypatch.setattr(gguf_write, "interleave", lambda tensor, heads: tensor)

    check = compare(source, file, "f32", write(source, file, precision="f32", name="x"))

    with pytest.raises(AdapterError, match="answers differently"):
        judge(check)


def test_what_has_no_place_in_the_format_is_refused(tmp_path: Path, home: Home):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(ModelError, match="GPT2LMHeadModel cannot be written"):
        write(tmp_path, tmp_path / "x.gguf", precision="f32", name="x")
    with pytest.raises(SpecError, match="precision"):
        GgufRequest.parse({"precision": "q4"})
    with pytest.raises(InputError, match="exists already"):
        GgufRequest.parse({"out": str(tmp_path)}).checked(home)
