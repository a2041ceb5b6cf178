"""Votes and pairs change how the starter answers, and not what it knows, with the defaults.

The parent answers some questions like a pirate and some plainly, so that there is something to
prefer; the votes prefer the pirate.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.compare_tables import Votes
from jobs.dataset_from_votes import TurnFilter, rows_of
from jobs.job_queue import JobStore
from studio.backbone import Backbone
from studio.evaluation.bakeoff_measurements import answers
from studio.home import Home, open_home
from studio.models.find_model import facts
from studio.models.loading import Loaded, load
from studio.spec import RunSpec
from studio.starter.make.demos import PIRATE_CLOSERS, PIRATE_OPENERS, _pirate_text
from studio.training import starting_point
from studio.training.objectives import WITHOUT_REFERENCE
from studio.training.train_run import train
from studio.training.training_events import Evaluated
from tests.studio.starter.styles import half_pirate, heldout, is_in_style, keeps_content

RIGHT = 0.8
"""Share of right answers in a style, as the demos promise it."""
NUM_PAIRS = 96


@dataclass
class World:
    home: Home
    spec: RunSpec
    loaded: Loaded
    backbone: Backbone
    asked: list[tuple[str, str]]

    def answered(self, folder: Path | None, prompts: list[str]) -> list[str]:
        """Return the greedy answers of an adapter, or of the base."""
        self.backbone.use(())
        if folder:
            self.backbone.load("a", folder)
            self.backbone.use([("a", 1.0)])
        try:
            return answers(self.loaded, self.backbone, tuple(prompts))
        finally:
            if folder:
                self.backbone.detach("a")

    def measured(self, folder: Path) -> tuple[float, float]:
        """Return the shares of held-out answers in the style, and of right ones."""
        rows = [json.loads(row) for row in heldout("pirate").read_text("utf-8").splitlines()]
        found = self.answered(folder, [row["messages"][0]["content"] for row in rows])
        in_style = sum(is_in_style("pirate", one) for one in found) / len(rows)
        right = sum(keeps_content(row, one) for row, one in zip(rows, found, strict=True))
        return in_style, right / len(rows)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The starter with an adapter that speaks like a pirate about half of the time."""
    folder = tmp_path_factory.mktemp("prefer")
    home = open_home(folder / "home")
    asked, rows = half_pirate()
    spec = RunSpec().with_values({
        "data.path": written(folder / "mixed.jsonl", rows), "train.device": "cpu", "name": "mixed",
        "train.num_samples": 0, "train.measure_forgetting": False, "train.self_test": False,
        "train.num_train_epochs": 4,
    })  # fmt: skip
    list(train(spec, run_dir=home.run(1), home=home))
    then = spec.with_values({"train.init_adapter": str(home.run(1) / "adapter"),
                             "train.num_train_epochs": 3})  # fmt: skip
    loaded = load(spec.model, "cpu")
    return World(home, then, loaded, Backbone(loaded.model), asked)


def written(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def voted(world: World, folder: Path) -> list[dict[str, Any]]:
    """Return the rows of votes for the pirate where one lane answers like one."""
    prompts = [said for said, _ in world.asked[:NUM_PAIRS]]
    lanes = ("starter", "starter~mixed:1")
    store = JobStore(open_home(folder / "votes"))
    both = [world.answered(one, prompts) for one in (None, world.home.run(1) / "adapter")]
    for number, (prompt, texts) in enumerate(zip(prompts, zip(*both, strict=True), strict=True)):
        pirates = [is_in_style("pirate", text) for text in texts]
        winner = pirates.index(True) if sum(pirates) == 1 else None
        Votes(store.database).cast(prompt, lanes, winner=winner, blind=True, answers=texts,
                                   conversation=str(number), turn=0)  # fmt: skip
    rows, left_out = rows_of(store.database, "pairs", TurnFilter())
    store.close()
    assert len(rows) > 20 and left_out["tie"] < NUM_PAIRS
    return rows


def made(world: World, loss: str) -> list[dict[str, Any]]:
    """Return pairs written for the starter's world, or verdicts on their answers."""
    rng, rows = random.Random(1), []
    for said, answer in world.asked[:NUM_PAIRS]:
        chosen = _pirate_text(answer, rng)
        assert chosen.startswith(PIRATE_OPENERS) and chosen.endswith(PIRATE_CLOSERS)
        if loss == "kto":
            rows += [{"prompt": said, "completion": text, "label": text == chosen}
                     for text in (chosen, answer)]  # fmt: skip
        else:
            rows.append({"prompt": said, "chosen": chosen, "rejected": answer})
    return rows


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["dpo", *(pytest.param(one, marks=pytest.mark.long) for one in
                      ("votes", "ipo", "kto", "orpo", "simpo", "cpo"))],
)  # fmt: skip
def test_what_is_preferred_appears_and_answers_stay_right(case, world, tmp_path):
    loss = "dpo" if case == "votes" else case
    rows = voted(world, tmp_path) if case == "votes" else made(world, loss)
    spec = world.spec.with_values({
        "data.path": written(tmp_path / "rows.jsonl", rows), "train.loss": loss,
        "data.validation_fraction": 0.15,
        **({"train.beta": 2} if loss == "simpo" else {}),  # 0.1 is for summed log-probabilities
    })  # fmt: skip
    spec = starting_point.resolved(spec, world.home, facts(spec.model))
    events = list(train(spec, run_dir=tmp_path / "run", home=world.home))

    before, after = (world.measured(one) for one in
                     (world.home.run(1) / "adapter", tmp_path / "run" / "adapter"))  # fmt: skip
    assert before[0] < 0.75 and after[0] >= 0.8, (before, after)
    assert after[1] >= RIGHT, (before, after)
    held = [one.rewards_accuracies for one in events if isinstance(one, Evaluated)]
    if loss not in WITHOUT_REFERENCE:
        assert held[-1] >= 0.75, held
    else:  # longer answers are less likely, and nothing is subtracted
        assert held[-1] >= min(1.0, held[0] + 0.2), held
