"""The queue's figures: there, with their bars, and quick enough even on a busy machine."""

import json

import pytest

from jobs import bench
from studio.bench import queue
from studio.errors import InputError
from studio.home import Home

SLACK = 6  # this machine may be busy with other tests


def test_every_bar_is_met_with_fewer_jobs(home: Home) -> None:
    figures = bench.measure(home, many=1000, points=5000, claimed=200, writes=20)
    figures += queue.page_figures(home, many=1000)

    named = {str(one["name"]): one for one in figures}
    assert named["jobs given out twice"]["value"] == 0
    bars = {name: one for name, one in named.items() if one["bar"]}
    assert len(bars) >= 11 and {one["bar"] for one in bars.values()} == {50, 300}
    for name, one in bars.items():
        assert float(str(one["value"])) < SLACK * float(str(one["bar"])), (name, one)


def test_an_option_nobody_knows_is_refused() -> None:
    with pytest.raises(InputError, match="knows --json only, not --fast"):
        queue.bench_queue(["--fast"])


def test_json_is_one_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = bench.figure("x", 1.236, "ms", 50)
    monkeypatch.setattr(bench, "measure", lambda home, many: [one])
    monkeypatch.setattr(queue, "page_figures", lambda home, many: [one])

    assert queue.bench_queue(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [one, one]
    queue.bench_queue([])
    assert "1.24 ms      (bar 50)" in capsys.readouterr().out
