"""Settings that change what is learned, each held to its formula."""

import json

import numpy as np
import pytest
import torch

from studio.job_request import Command
from studio.training import checkpoint, training_loop
from studio.training.batching import pack, pad
from studio.training.checkpoint import RunProgress
from studio.training.loss import evaluate_loss, head_loss, loss_sum
from studio.training.training_events import Evaluated, Finished, Step
from studio.training.training_session import Session
from tests.studio.training.conftest import make_rows, run_all

CPU = torch.device("cpu")


def test_label_smoothing_mixes_the_target_with_all_tokens():
    torch.manual_seed(0)
    hidden = torch.randn(5, 8, requires_grad=True)
    weight, targets = torch.randn(11, 8), torch.tensor([0, 3, 10, 2, 2])
    loss = head_loss(hidden, weight, targets, 0.1).sum()
    loss.backward()
    ours, hidden.grad = hidden.grad, None
    logs = (hidden @ weight.T).log_softmax(-1)
    wanted = 0.9 * logs.gather(1, targets[:, None]).sum() + 0.1 * logs.mean(1).sum()
    (-wanted).backward()
    torch.testing.assert_close(loss, -wanted)
    torch.testing.assert_close(ours, hidden.grad)


def test_smoothing_trains_but_is_not_in_the_held_out_loss(session):
    own = session(train={"label_smoothing_factor": 0.2})
    plain = session()
    batch = pack(own.prepared.train[:3], CPU)
    padded = pad(own.prepared.train[:3], CPU)
    smooth = float(loss_sum(own.backbone, batch, 0.2).detach())
    assert smooth == pytest.approx(float(loss_sum(own.backbone, padded, 0.2).detach()), rel=1e-5)
    assert smooth != pytest.approx(evaluate_loss(own.backbone, [batch]).loss_sum, rel=1e-3)
    assert own.evaluate().eval_loss == pytest.approx(plain.evaluate().eval_loss, rel=1e-6)


def test_neftune_noise_has_its_size_per_row_and_only_while_training(session):
    own = session(train={"neftune_noise_alpha": 5.0})
    seen: list[torch.Tensor] = []
    embeddings = own.loaded.model.get_input_embeddings()
    embeddings.register_forward_hook(lambda m, a, out: seen.append(out.detach()))
    batch = pack(own.prepared.train[:3], CPU)
    clean = embeddings.weight[batch.ids_T]
    own.neftune.prepare(batch)
    loss_sum(own.backbone, batch)
    noise = (seen[-1][0] - clean).detach()
    for part, length in zip(noise.split(batch.lengths), batch.lengths, strict=True):
        bound = 5.0 / (length * 32) ** 0.5  # α / √(L D)
        assert 0.8 * bound < float(part.abs().max()) <= bound * (1 + 1e-5)
    evaluate_loss(own.backbone, [batch])
    assert torch.equal(seen[-1][0], clean)


def test_noise_is_the_same_after_a_resume(session, tmp_path):
    spec = {"train": {"max_steps": 6, "neftune_noise_alpha": 5.0, "save_steps": -1}}
    whole = run_all(session(**spec), tmp_path / "whole")
    halves = run_all(session(**spec), tmp_path / "halves", stop_at=3)
    halves += run_all(session(**spec), tmp_path / "halves")
    told = [[e.loss for e in events if isinstance(e, Step)] for events in (whole, halves)]
    assert told[0] == told[1]


def worsening(own: Session, losses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the evaluations find these losses."""
    waiting = iter(losses)

    def evaluate() -> Evaluated:
        own.progress.record_evaluation(loss := next(waiting))
        return Evaluated(step=own.progress.step, eval_loss=loss)

    monkeypatch.setattr(type(own), "evaluate", lambda self: evaluate())


def test_early_stopping_ends_the_run_and_keeps_the_best(session, tmp_path, monkeypatch):
    own = session(
        train={
            "max_steps": 20, "eval_steps": 2, "save_steps": 1, "save_total_limit": 1,
            "early_stopping_patience": 3,
        }
    )  # fmt: skip
    worsening(own, [3.0, 2.0, 2.5, 2.1, 2.0], monkeypatch)
    states: dict[int, torch.Tensor] = {}

    def control() -> Command:
        states[own.progress.step] = next(iter(own.adapter.state().values())).clone()
        return None

    done = list(training_loop.run(own, run_dir=tmp_path, control=control))[-1]
    assert isinstance(done, Finished)
    assert (done.step, done.eval_loss, done.reason) == (10, 2.0, "completed")
    assert "step 4" in done.note
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000010"]
    assert torch.equal(next(iter(own.adapter.state().values())), states[4])
    again = session(train=own.spec.train.model_dump())
    assert [type(e).__name__ for e in run_all(again, tmp_path)][-1] == "Finished"
    assert again.progress.step == 10  # it does not train on after a kill before the end


def test_a_run_that_stopped_early_trains_on_when_it_is_extended(session, tmp_path, monkeypatch):
    settings = {"max_steps": 20, "eval_steps": 2, "save_steps": 2, "early_stopping_patience": 2}
    own = session(train=settings)
    worsening(own, [2.0, 2.5, 2.1], monkeypatch)
    run_all(own, tmp_path)
    assert own.progress.step == 6

    longer = session(train=settings | {"max_steps": 30})
    worsening(longer, [2.5, 2.4], monkeypatch)
    run_all(longer, tmp_path)

    assert longer.progress.step == 10  # as many evaluations as its patience


def test_the_best_checkpoint_is_saved_when_it_is_found(session, tmp_path, monkeypatch):
    own = session(
        train={"max_steps": 8, "eval_steps": 2, "save_steps": -1, "load_best_model_at_end": True}
    )
    worsening(own, [3.0, 2.0, 2.5, 2.6], monkeypatch)
    done = run_all(own, tmp_path)[-1]
    assert done.step == 8
    assert done.eval_loss == 2.0
    assert checkpoint.newest(tmp_path / "checkpoints").name == "step-00000004"


def test_without_the_best_checkpoint_the_last_adapter_stays_and_the_note_says_so(
    session, tmp_path, monkeypatch
):
    own = session(train={"max_steps": 6, "eval_steps": 2, "load_best_model_at_end": True})
    worsening(own, [2.0, 2.5, 2.6], monkeypatch)

    def lose_the_best() -> Command:
        if own.progress.step == 5:
            (tmp_path / "checkpoints" / "step-00000002" / "adapter.safetensors").unlink()
        return None

    done = list(training_loop.run(own, run_dir=tmp_path, control=lose_the_best))[-1]
    assert isinstance(done, Finished)
    assert done.note.endswith("is missing or damaged: the adapter is that of step 6.")


def test_a_checkpoint_goes_not_for_a_damaged_one_of_a_later_step(session, tmp_path):
    args = {"max_steps": 30, "save_steps": 10, "save_total_limit": 2, "eval_steps": -1}
    own = session(train=args)
    run_all(own, tmp_path, stop_at=20)
    folder = tmp_path / "checkpoints"
    (folder / "step-00000020" / "adapter.safetensors").write_bytes(b"torn")
    own = session(train=args | {"save_total_limit": 1})
    run_all(own, tmp_path, stop_at=15)
    assert checkpoint.newest(folder) == folder / "step-00000015"
    assert [path.name for path in folder.iterdir()] == ["step-00000015"]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_every_attention_gives_the_same_losses_and_gradients(session, implementation):
    rows = make_rows(24, longest=40)
    steps = [
        [own.step() for _ in range(3)]
        for own in (
            session(rows, train={"attn_implementation": name, "max_steps": 3})
            for name in ("auto", implementation)
        )
    ]
    for one, other in zip(*steps, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)
    assert np.isfinite(steps[0][-1].loss)


def test_patience_watches_the_held_out_loss_and_the_reward_accuracy():
    progress = RunProgress()
    for step, (loss, accuracy) in enumerate(
        [(0.68, 0.8), (0.6, 0.75), (0.55, 0.75), (0.55, 0.75), (0.6, 0.85), (0.6, 0.85)], 1
    ):
        progress.step = step
        progress.record_evaluation(loss, accuracy)
        assert progress.waited == (1 if step in (4, 6) else 0)
    assert progress.best_step == 5


@pytest.mark.parametrize("wish", [{"early_stopping_patience": 3}, {"load_best_model_at_end": True}])
def test_a_best_checkpoint_without_any_evaluation_is_noted(session, tmp_path, wish):
    own = session(train={"max_steps": 2, "eval_steps": -1, "num_samples": 0, **wish})
    assert run_all(own, tmp_path)[-1].note.startswith("Nothing was evaluated")


def test_a_passport_tells_which_rows_its_held_out_loss_is_of(session, tmp_path):
    def evaluated(name, rows=None, **train):
        own = session(rows, train={"max_steps": 2, **train}, seed=len(name))
        run_all(own, tmp_path / name)
        passport = json.loads((tmp_path / name / "adapter" / "passport.json").read_text())
        return passport["data"]["evaluated"]

    first = evaluated("one")
    assert first["rows"] == 4 and evaluated("another") == first
    assert evaluated("of others", make_rows(seed=1))["hash"] != first["hash"]
    weighed = make_rows()
    for row in weighed.validation:
        row.weights = np.full(len(row.labels), 0.5, np.float32)
    assert evaluated("weighed", weighed)["hash"] != first["hash"]
    assert evaluated("never", eval_steps=-1) == {}
