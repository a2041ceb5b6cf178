import numpy as np
import torch

from studio.training import sample_answers, training_loop
from studio.training.sample_answers import greedy, prompt_of
from studio.training.training_events import Asked, Evaluated, Sampled, Step
from tests.studio.tiny import tiny_tokenizer
from tests.studio.training.conftest import Example, make_session


def told(tmp_path, **train):
    own = make_session(train={"max_steps": 4, "eval_steps": 2, **train})
    own.loaded.tokenizer = tiny_tokenizer()
    return own, list(training_loop.run(own, run_dir=tmp_path, control=lambda: None))


def test_the_same_prompts_are_answered_before_the_first_step_and_at_each_evaluation(tmp_path):
    _, events = told(tmp_path, sample_prompts="hello | what is it?", num_samples=2)
    shots = [(e.step, e.prompt) for e in events if isinstance(e, Sampled)]
    prompts = ["hello", "what is it?"]
    assert shots == [(step, prompt) for step in (0, 2, 4) for prompt in prompts]


def test_sampling_changes_nothing_of_the_training(tmp_path):
    runs = [told(tmp_path / str(n), num_samples=n, gradient_checkpointing=n > 0) for n in (0, 2)]
    losses = [[e.loss for e in events if isinstance(e, Step)] for _, events in runs]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    assert not any(isinstance(e, Sampled) for e in runs[0][1])
    assert any(isinstance(e, Sampled) for e in runs[1][1])


def test_greedy_answers_are_those_of_one_by_one_decoding_and_end_at_a_stop_token():
    own = make_session()
    own.step()
    prompts = [[5, 8, 11], [7], [20, 23, 26, 29, 32]]
    usual = {"device": torch.device("cpu"), "limits": [6] * len(prompts)}
    answers = greedy(own.backbone, prompts, stop_ids=(), **usual)
    for prompt, (ids, ended) in zip(prompts, answers, strict=True):
        row = list(prompt)
        with own.backbone.evaluating():
            for _ in range(6):
                row.append(int(own.loaded.model(torch.tensor([row])).logits[0, -1].argmax()))
        assert ids == row[len(prompt) :]
        assert not ended
    ids = answers[0][0]
    usual["limits"] = [6]
    ((short, ended),) = greedy(own.backbone, prompts[:1], stop_ids=(ids[2],), **usual)
    assert (short, ended) == (ids[: ids.index(ids[2])], True)


def test_a_prompt_is_what_stands_before_the_first_trained_token():
    ids = np.arange(3, 12, dtype=np.int32)
    labels = np.where(np.arange(9) < 4, -100, ids).astype(np.int32)
    assert prompt_of(Example(ids, labels, 0), tiny_tokenizer()).ids == (3, 4, 5, 6)
    assert prompt_of(Example(ids, ids, 0), tiny_tokenizer()).ids == (3, 4, 5)  # plain text


def test_accuracy_is_the_share_of_tokens_guessed_right(tmp_path):
    own, events = told(tmp_path)
    last = [e for e in events if isinstance(e, Evaluated)][-1]
    right = total = 0
    with own.backbone.evaluating():
        for row in own.prepared.validation:
            ids = torch.tensor(row.input_ids[None].astype(np.int64))
            guessed = own.loaded.model(ids).logits[0].argmax(-1)
            for place, label in enumerate(row.labels[1:]):
                if label != -100:
                    right, total = right + int(guessed[place] == label), total + 1
    assert last.token_accuracy == right / total


def test_the_last_answers_are_not_cut_for_time(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_answers, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(sample_answers, "TIME_FRACTION", 0.0)
    _, events = told(tmp_path, sample_prompts="hello", num_samples=1)
    first, _, last = [len(e.text) for e in events if isinstance(e, Sampled)]
    assert last > 2 * first


def test_questions_with_their_wanted_answers_are_those_held_out_then_trained_ones(tmp_path):
    own, events = told(tmp_path, sample_prompts="hello", num_samples=1)
    (asked,) = [e.questions for e in events if isinstance(e, Asked)]
    rows = {False: own.prepared.validation[:3], True: own.prepared.train[:3]}
    for trained, some in rows.items():
        wanted = [prompt_of(row, own.loaded.tokenizer) for row in some]
        assert [(one["prompt"], one["wanted"]) for one in asked if one["trained"] is trained] == [
            (one.text, own.loaded.tokenizer.decode(one.own, skip_special_tokens=True).strip())
            for one in wanted if one.own
        ]  # fmt: skip
    assert {one["trained"] for one in asked} == {False, True}
