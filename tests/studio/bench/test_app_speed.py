"""The queue's figures: all there, each with its bar; nothing given out twice."""

import json

import pytest

from studio.errors import InputError
from ui.bench import app_speed
from ui.bench.bench_command import bench as run
from ui.bench.bench_figures import figure


def test_every_figure_is_measured_and_no_job_is_given_out_twice(home):
    figures = app_speed.measure(home, many=1000, points=5000, claimed=200, writes=20)

    named = {str(one["name"]): float(str(one["value"])) for one in figures}
    assert named.pop("jobs given out twice") == 0
    assert len(named) >= 11 and min(named.values()) > 0
    assert {one["bar"] for one in figures} == {0, 50, 300}


def test_an_option_nobody_knows_is_refused():
    with pytest.raises(InputError, match="unrecognized arguments: --fast"):
        run(["queue", "--fast"])


def test_json_is_one_document(monkeypatch, capsys):
    one = figure("x", 1.236, "ms", 50)
    monkeypatch.setattr(app_speed, "measure", lambda home: [one, one])

    assert run(["queue", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [one, one]
    run(["queue"])
    assert "1.24 ms     (bar 50)" in capsys.readouterr().out
