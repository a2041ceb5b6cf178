"""The scoring bench: every variant gives the same log-likelihoods, and the ratios are of pairs."""

import pytest

from ui.bench import bench_command
from ui.bench import inference_speed as bench


def test_every_variant_gives_the_same_numbers(tmp_path):
    result = bench.bench_scoring(tmp_path, shape="llama-tiny", rows=3, labels=4, rounds=1)
    assert len(result["largest_difference"]) >= 2
    for name, apart in result["largest_difference"].items():
        assert apart < 1e-3, name
    assert result["tokens"][bench.SHARED] < result["tokens"][bench.APART]
    text = bench.scoring_text(result)
    assert all(name in text for name in (*result["seconds"], *result["ratios"]))


def test_ratios_are_medians_of_rounds():
    taken = {
        bench.APART: [8.0, 8.0, 80.0], bench.SHARED: [2.0, 1.0, 20.0],
        bench.ALL: [1.0, 1.0, 1.0], bench.PLAIN: [2.0, 2.0, 2.0],
    }  # fmt: skip
    ratios = bench._scoring_ratios(taken, tokens=5.0)
    assert ratios["labels: time apart / together"] == pytest.approx(4.0)
    assert ratios[bench.SAVED] == pytest.approx(0.8)
    assert ratios["base and three LoRA / transformers, as many rows"] == pytest.approx(0.5)


def test_the_command_names_it(capsys):
    with pytest.raises(SystemExit):
        bench_command.bench(["scoring", "--help"])
    assert "labels that each prompt is scored with" in capsys.readouterr().out
