"""A run beside busy processes takes at least half the steps of a single thread in the same time."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from studio.hardware import usable_cores

TRAIN = """
import sys
from pathlib import Path
from studio.home import open_home
from studio.spec import RunSpec
from studio.training.training_events import Step
from studio.training.train_run import train

folder = Path(sys.argv[1])
spec = RunSpec.parse({
    "data": {"path": "starter:pirate"},
    "train": {"max_steps": 5000, "eval_steps": -1, "save_steps": -1},
})
with (folder / "steps").open("a") as steps:
    for event in train(spec, run_dir=folder / "run", home=open_home(folder / "home")):
        if isinstance(event, Step):
            print(event.step, file=steps, flush=True)
"""
BUSY = "for _ in range(70_000): sum(range(1000))"
WARM = 6
OPENMP = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def steps_of(folder: Path) -> int:
    file = folder / "steps"
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.mark.skipif(usable_cores() < 2, reason="one core: there is nobody to wait for")
def test_a_run_beside_busy_processes_is_not_slower_than_half_a_single_thread(tmp_path):
    plain = {name: value for name, value in os.environ.items() if name not in OPENMP}
    runs: dict[str, psutil.Popen] = {}
    try:
        for name, chosen in (("default", {}), ("one thread", {"OMP_NUM_THREADS": "1"})):
            folder = tmp_path / name
            folder.mkdir()
            runs[name] = psutil.Popen([sys.executable, "-c", TRAIN, folder], env=plain | chosen)
        for _ in range(1200):
            assert all(run.poll() is None for run in runs.values())
            if all(steps_of(tmp_path / name) >= WARM for name in runs):
                break
            time.sleep(0.1)
        for run in runs.values():
            run.suspend()
        taken = {}
        for name, run in runs.items():
            before = steps_of(tmp_path / name)
            others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(usable_cores())]
            run.resume()
            for other in others:
                other.wait(120)
            run.suspend()
            taken[name] = steps_of(tmp_path / name) - before
    finally:
        for run in runs.values():
            run.kill()
            run.wait()
    assert taken["one thread"] > 3
    assert taken["default"] >= taken["one thread"] / 2, taken
