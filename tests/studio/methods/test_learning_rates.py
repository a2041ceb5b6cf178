"""Default learning rates: near the best of the committed measurements; one is repeated."""

import json
import math
from statistics import geometric_mean

import pytest

import ui.bench.rates_and_forgetting as bench
from studio.methods import methods, named
from studio.training.steps_and_learning_rate import lr_for

ROWS = json.loads(bench.RATES.read_text(encoding="utf-8"))
MEASURED = [row for row in ROWS if "error" not in row]
BY_TITLE = {method.title: name for name, method in methods().items()}
NEAR = 1.1


def excess(row: dict, rate: float) -> float:
    """Return the held-out loss at a rate over the best one, on the line between those tried."""
    points = sorted((math.log(float(tried)), loss) for tried, loss in row["tried"].items())
    place = min(max(math.log(rate), points[0][0]), points[-1][0])
    below = max(point for point in points if point[0] <= place)
    above = min(point for point in points if point[0] >= place)
    share = 0.0 if below == above else (place - below[0]) / (above[0] - below[0])
    return (below[1] + share * (above[1] - below[1])) / row["best_loss"]


@pytest.mark.parametrize("title", sorted({row["method"] for row in MEASURED}))
def test_auto_is_near_the_best_rate_on_every_model(title):
    method = named(BY_TITLE[title])()
    found = {
        (row["model"], row["data"]): excess(row, lr_for(method, row["hidden_size"]))
        for row in MEASURED if row["method"] == title
    }  # fmt: skip
    assert geometric_mean(found.values()) < NEAR, found
    models = [model for model, data in found if data == "starter:pirate"]
    near = [one for one in models if found[one, "starter:pirate"] <= NEAR]
    assert len(near) >= min(3, len(models)), found


def test_every_method_was_measured_on_five_models_and_three_datasets():
    for title in {method.title for method in methods().values()}:
        own = [row for row in MEASURED if row["method"] == title]
        few = title == "BitFit"  # of models with biases: a GPT-2, and two that were made for it
        assert len({row["model"] for row in own}) >= (3 if few else 5), title
        assert len({row["data"] for row in own}) >= 3, title


def test_the_walk_ends_where_the_loss_rises():
    assert bench.walk(lambda place: (place - 3) ** 2) == {
        0: 9, -1: 16, 1: 4, 2: 1, 3: 0, 4: 1,
    }  # fmt: skip
    assert min(bench.walk(lambda place: abs(place + 2) + 1).items(), key=lambda x: x[1]) == (-2, 1)


@pytest.mark.parametrize(
    "name", ["lora", *(pytest.param(one, marks=pytest.mark.long) for one in
                       ("bottleneck", "prefix_tuning"))]
)  # fmt: skip
def test_the_default_reaches_what_was_measured_on_the_starter(name, tmp_path):
    from studio.home import open_home
    from studio.spec import RunSpec
    from studio.training.train_run import train

    (row,) = (
        row for row in MEASURED
        if (row["model"], row["data"]) == ("starter", "starter:pirate")
        and row["method"] == named(name).title
    )  # fmt: skip
    spec = RunSpec().with_values(
        {
            "method.name": name, "train.max_steps": row["steps"], "train.num_samples": 0,
            "train.save_steps": -1, "train.eval_steps": row["steps"], "data.max_length": 256,
            "train.self_test": False, "train.measure_forgetting": False,
        }
    )  # fmt: skip
    *_, end = train(spec, run_dir=tmp_path / "run", home=open_home(tmp_path / "home"))
    assert end.eval_loss < 1.2 * row["best_loss"]
