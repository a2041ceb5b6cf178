"""A runner whose training is arithmetic: the queue's tests need no torch to be thorough.

`python fake_runner.py --home … --claim …`, as `jobs.runner`. A run takes `max_steps` steps of
`FAKE_PACE` seconds, its loss is `fake_loss(seed, step)`, it saves every `save_steps`, and resumes.
`FAKE_FAULT=<kind>@<step>` makes it misbehave once it gets there.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence

from jobs import job_kinds, runner
from jobs.job_kinds import Work
from jobs.processes import Identity, me
from jobs.run_folder import newest_step
from studio.errors import DiskFull, Diverged
from studio.home import publishing
from studio.training.training_events import (
    Asked,
    Evaluated,
    Event,
    Finished,
    Loading,
    Sampled,
    Saved,
    Saving,
    Started,
    Step,
)


def pace() -> float:
    return float(os.environ.get("FAKE_PACE", "0.02"))


def fake_loss(seed: int, step: int) -> float:
    """A curve that falls and depends on nothing but its place."""
    return 4.0 / (1 + step) + seed


def train(work: Work) -> Iterator[Event]:
    seed, args = work.spec["seed"], work.spec["train"]
    steps, every = args["max_steps"], max(args["save_steps"], 1)
    fault, _, at = os.environ.get("FAKE_FAULT", "@-1").partition("@")
    alone(work)
    yield Loading(text="Loading")
    done = newest_step(work.run_dir)
    yield Started(
        step=done, total_steps=steps, trainable_parameters=1, total_parameters=2, device="cpu",
        dtype="float32", learning_rate=0.1, rows_read=3, rows_kept=2, rows_dropped=1,
    )  # fmt: skip
    yield Asked(questions=[{"prompt": "say", "wanted": "word", "trained": False}])
    for step in range(done + 1, steps + 1):
        time.sleep(pace())
        if step == int(at):
            misbehave(fault)
        yield Step(
            step=step, loss=fake_loss(seed, step), learning_rate=0.1, grad_norm=1.0, tokens=10,
            tokens_per_second=500.0, epoch=step / steps, memory_bytes=1,
        )  # fmt: skip
        wish = work.control()
        stop = wish == "stop"
        if wish == "sample":
            yield Sampled(step=step, prompt="say", text=f"word {step}")
        if stop or wish == "save" or step % every == 0:
            yield Saving(step=step)
            folder = work.run_dir / "checkpoints" / f"step-{step:08d}"
            with publishing(folder) as temporary:
                (temporary / "state.json").write_text(json.dumps({"step": step}))
            yield Saved(step=step, path=str(folder))
        if stop:
            yield finished("stopped", None, seed, step)
            return
    yield Evaluated(step=steps, eval_loss=fake_loss(seed, steps))
    yield Saving(step=steps)
    with publishing(work.run_dir / "adapter") as temporary:
        (temporary / "passport.json").write_text("{}")
    yield finished("completed", str(work.run_dir / "adapter"), seed, steps)


def train_together(works: Sequence[Work]) -> Iterator[tuple[int, Event | Exception]]:
    """Each run as above, a step of each in turn; `FAKE_SIBLING` is the seed that misbehaves."""
    runs = {number: train(work) for number, work in enumerate(works)}
    while runs:
        for number, own in list(runs.items()):
            try:
                for event in own:
                    yield number, event
                    if isinstance(event, Step):
                        if works[number].spec["seed"] == int(os.environ.get("FAKE_SIBLING", "-1")):
                            raise Diverged("The loss became NaN at step 1.")
                        break
                else:
                    del runs[number]
            except Exception as error:
                del runs[number]
                yield number, error


def alone(work: Work) -> None:
    """Leave a mark if another living process works on the same run."""
    mark = work.run_dir / "working"
    if mark.exists() and Identity.parse(mark.read_text()).alive():
        (work.run_dir / "OVERLAP").write_text(f"{mark.read_text()} and {me()}")
    own = mark.with_name(f"working-{os.getpid()}")  # in one rename: a kill may come at any moment
    own.write_text(str(me()))
    os.replace(own, mark)


def finished(reason: str, adapter: str | None, seed: int, step: int) -> Finished:
    return Finished(
        step=step, reason=reason, adapter=adapter, first_loss=fake_loss(seed, 1),
        last_loss=fake_loss(seed, step), eval_loss=None, seconds=0.0,
    )  # fmt: skip


def misbehave(fault: str) -> None:
    if fault == "crash":
        raise ZeroDivisionError("secret detail\nsecond line")
    if fault == "diverge":
        raise Diverged("The loss became NaN at step 3. Lower the learning rate.")
    if fault == "full":
        raise DiskFull("The disk is full: no room for step-3.")
    if fault == "die":
        os.kill(os.getpid(), 9)
    if fault == "hang":
        time.sleep(1000)


def replace_training() -> None:
    """Train nothing in this process; a test that only imports a name keeps the real training."""
    job_kinds.KINDS["train"] = train
    job_kinds.train_together = train_together
    runner.WARM = ()


if __name__ == "__main__":
    replace_training()
    runner.main()
