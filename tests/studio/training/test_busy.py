"""A run beside busy processes does about the steps of a single thread: nothing spins for a core.

Both runs are measured beside the same fixed loop in the same minute, and only their ratio counts.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from studio.openmp import usable_cores

RUN = """
import sys
from pathlib import Path
from studio.home import open_home
from studio.spec import RunSpec
from studio.training.events import Step
from studio.training.run import train
usual = {"max_steps": 100000, "num_samples": 0, "eval_steps": -1, "save_steps": -1, "device": "cpu"}
spec = RunSpec().with_values({f"train.{name}": value for name, value in usual.items()})
folder = Path(sys.argv[1])
for event in train(spec, run_dir=folder / "run", home=open_home(folder / "home")):
    if isinstance(event, Step):
        print(event.step, flush=True)
"""
LOOP = "for _ in range(25_000_000): pass"


def steps_beside_a_loop(folder: Path, threads: str) -> int:
    """Return the steps that a run takes while every core has a loop to finish."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    environment |= {"OMP_NUM_THREADS": threads} if threads else {}
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert run.stdout is not None
        lines = iter(run.stdout)
        while int(next(lines)) < 3:
            pass
        loops = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(usable_cores())]
        for loop in loops:
            assert loop.wait() == 0
        run.kill()
        return int(list(lines)[-1]) - 3
    finally:
        run.kill()
        run.wait()


@pytest.mark.skipif(usable_cores() < 2, reason="needs two cores")
def test_a_run_beside_busy_processes_keeps_up_with_a_single_thread(tmp_path):
    single = steps_beside_a_loop(tmp_path / "single", "1")
    default = steps_beside_a_loop(tmp_path / "default", "")
    assert default >= 0.4 * single
