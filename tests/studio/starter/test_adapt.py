"""The promise of the demos: a short default LoRA run changes the style and keeps the content.

It goes through the studio's own engine and its published adapter is read by PEFT, so this is also
the smallest whole proof that the pieces fit. The quickest demo is trained; the others if asked.
"""

import json

import pytest

from studio.spec import RunSpec
from studio.starter import MODEL_DIR, datasets
from studio.starter.make.pretrain import greedy_answers
from studio.training.train_run import train
from studio.training.training_events import Finished
from tests.studio.starter.styles import heldout, is_in_style, keeps_content


@pytest.mark.parametrize(
    "demo", [name if name == "terse" else pytest.param(name, marks=pytest.mark.long)
             for name in datasets()]
)  # fmt: skip
def test_default_lora_brings_the_demo_style_and_keeps_the_content(demo, home, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = RunSpec.model_validate({"data": {"path": f"starter:{demo}"}, "method": "lora"})
    rows = [json.loads(line) for line in heldout(demo).read_text(encoding="utf-8").splitlines()]

    *_, last = train(spec, run_dir=tmp_path / "run", home=home)

    assert isinstance(last, Finished)
    base = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    answers = greedy_answers(tuned, tokenizer, [row["messages"][:1] for row in rows])
    in_style = [is_in_style(demo, answer) for answer in answers]
    right = [keeps_content(row, answer) for row, answer in zip(rows, answers, strict=True)]
    assert sum(in_style) >= 0.9 * len(rows), answers
    assert sum(right) >= 0.8 * len(rows), answers
