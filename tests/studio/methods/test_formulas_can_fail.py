"""Each formula test was made to fail: break a method's maths on purpose and watch it notice."""

import pytest
import torch

from studio.backbone import adapter_files
from studio.methods import Phase
from tests.studio.methods import by_hand
from tests.studio.methods.cases import ADAPTERS
from tests.studio.methods.test_matrix import IDS, attached, logits

MATHS = {
    Phase.DELTA: ["delta"],
    Phase.GAIN: ["gain_in", "gain_out"],
    Phase.TRANSFORM: ["transform"],
    Phase.KEYS_VALUES: ["virtual_tokens"],
    Phase.PROMPT: ["virtual_tokens"],
}


@pytest.mark.parametrize("label", ADAPTERS)
def test_a_broken_formula_is_noticed(label, monkeypatch):
    backbone, adapter = attached(label, "qwen2", trained=True)
    cls = type(adapter.method)
    for name in MATHS[adapter.method.phase]:
        right = getattr(cls, name)

        def wrong(*args, _right=right, **kwargs):
            result = _right(*args, **kwargs)
            return None if result is None else result * 1.1

        monkeypatch.setattr(cls, name, wrong)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            logits(backbone), by_hand.logits("qwen2", adapter, IDS), atol=1e-4, rtol=1e-4
        )


def test_a_file_name_that_peft_does_not_know_is_noticed(tmp_path):
    backbone, _ = attached("lora-r=4", "llama", trained=True)
    backbone.save("a", tmp_path)
    text = (tmp_path / adapter_files.CONFIG).read_text()
    (tmp_path / adapter_files.CONFIG).write_text(text.replace('"LORA"', '"LORAX"'))
    with pytest.raises(adapter_files.AdapterError, match="LORAX"):
        adapter_files.read_method(adapter_files.read_config(tmp_path))
