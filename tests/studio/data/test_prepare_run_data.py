"""From files to examples: labels, truncation, the split, the cache, the report."""

import os
import shutil
from datetime import date, timedelta

import numpy as np
import pytest

from studio.data import prepare_run_data
from studio.data.dataset_report import RowCounts
from studio.data.model_tokenizer import backend_from_folder
from studio.data.prepare_run_data import is_prepared, prepare
from studio.data.template.choose_template import choose
from studio.data.template.template import Encoded
from studio.data.token_arrays import fit, load_tokens, windows
from studio.errors import DataError
from studio.home import is_whole
from studio.spec import DataSource
from tests.studio.data.conftest import labelled, write_rows

KEPT = {
    "gsm8k_train.jsonl": (7473, "question_answer"),
    "gsm8k_test.parquet": (1319, "question_answer"),
    "alpaca_en_demo.json": (999, "alpaca"),
    "identity.json": (91, "alpaca"),
    "glaive_toolcall_en_demo.json": (300, "sharegpt"),
    "openai_messages_math.jsonl": (449, "messages"),
    "banking77_train.csv": (10003, "labelled"),
}


def pairs(count):
    return [{"question": f"q{i}", "answer": f"a{i}"} for i in range(count)]


@pytest.mark.parametrize("name", ["identity.json", "openai_messages_math.jsonl",
                                  "gsm8k_test.parquet", "alpaca_en_demo.json"])  # fmt: skip
@pytest.mark.parametrize("model", ["stories260k", "tarot-gpt2"])
def test_real_files_keep_every_row_on_real_base_models(real, model, name):
    backend = backend_from_folder(real / "models" / model)
    context = 64 if model == "tarot-gpt2" else 512
    rows, kind = KEPT[name]

    made = prepare(DataSource(path=str(real / "data" / name)), backend,
                   context_length=context, seed=0)  # fmt: skip

    assert made.report.rows == RowCounts(read=rows, kept=rows)
    assert (made.report.format, made.template) == (kind, "plain")
    assert all(len(e.input_ids) <= context and (e.labels >= 0).sum() >= 1 for e in made.train)
    assert len(made.train) + len(made.validation) == rows


def test_labels_are_the_ids_or_masked_and_end_with_the_end_of_text(real):
    backend = backend_from_folder(real / "models" / "stories260k")

    made = prepare(DataSource(path=str(real / "data" / "identity.json")), backend,
                   context_length=512, seed=0)  # fmt: skip

    for example in made.train:
        assert example.input_ids.dtype == example.labels.dtype == np.int32
        assert example.input_ids[0] == 1 and example.labels[-1] == 2
        trained = example.labels != -100
        assert (example.labels[trained] == example.input_ids[trained]).all()
        assert not trained[: trained.argmax()].any() and trained[trained.argmax() :].all()


@pytest.mark.parametrize(
    ("prompt", "answer", "limit", "lead", "lost", "kept"),
    [
        (3, 7, 6, 1, "end", [0, 1, 2, 3, 4, 5]),  # 3, 4, 5 are answer: half of the limit
        # Half of six is three answer tokens: 8, 9, 10, with 6 and 7 of the prompt and 0 in front.
        (8, 4, 6, 1, "start", [0, 6, 7, 8, 9, 10]),
        (98, 2, 10, 0, "start", list(range(90, 100))),  # a short answer stays whole
    ],
)
def test_a_long_row_loses_its_end_or_the_beginning_of_its_prompt(
    prompt, answer, limit, lead, lost, kept
):
    trained = np.array([False] * prompt + [True] * answer)
    row = Encoded(np.arange(prompt + answer, dtype=np.int32), trained)

    cut = fit(row, limit=limit, num_lead_tokens=lead)

    assert (cut.lost, cut.row.ids.tolist()) == (lost, kept)
    assert cut.row.trained.tolist() == trained[kept].tolist()


def test_windows_of_a_text_lose_nothing():
    lead = np.array([7], dtype=np.int32)

    made = list(windows(np.arange(5, dtype=np.int32), limit=3, lead=lead))

    assert [w.ids.tolist() for w in made] == [[7, 0, 1], [7, 2, 3], [7, 4]]


def test_plain_text_is_one_stream_that_decodes_to_the_file(real, tmp_path, byte_backend):
    text = "One two.\n\nThree   four.\nfünf 🙂\n"
    (tmp_path / "a.txt").write_text(text)
    backend = byte_backend(["<s>", "</s>"], eos="</s>", bos="<s>")

    made = prepare(DataSource(path=str(tmp_path / "a.txt"), validation_fraction=0), backend,
                   context_length=8, seed=0)  # fmt: skip

    ids = [int(i) for e in made.train for i in e.input_ids]
    assert backend.core.decode(ids, skip_special_tokens=False) == text.rstrip("\n") + "</s>"
    assert made.report.rows.read == made.report.rows.kept == 4
    assert made.report.trained_token_share == 1.0


def test_the_split_is_seeded_and_keeps_equal_rows_on_one_side(tmp_path, byte_backend):
    backend = byte_backend(["</s>"], eos="</s>")
    path = write_rows(tmp_path / "a.jsonl", pairs(50) * 2)
    source = DataSource(path=path, validation_fraction=0.1)

    first = prepare(source, backend, context_length=64, seed=1)
    again = prepare(source, backend, context_length=64, seed=1)
    other = prepare(source, backend, context_length=64, seed=2)

    held = {e.row for e in first.validation}
    assert held == {e.row for e in again.validation} != {e.row for e in other.validation}
    assert len(held) == 10
    texts = {bytes(e.input_ids) for e in first.validation}
    assert not texts & {bytes(e.input_ids) for e in first.train}


def test_the_second_launch_comes_from_the_cache_and_is_equal(home, tmp_path, byte_backend):
    backend = byte_backend(["</s>"], eos="</s>")
    source = DataSource(path=write_rows(tmp_path / "a.jsonl", pairs(30)))

    first = prepare(source, backend, context_length=64, seed=0, home=home)
    folders = list((home.datasets / ".tokens").iterdir())
    stamp = folders[0].stat().st_mtime_ns
    second = prepare(source, backend, context_length=64, seed=0, home=home)

    assert first.report == second.report and len(folders) == 1
    assert folders[0].stat().st_mtime_ns == stamp
    assert [e.input_ids.tolist() for e in first.train] == [
        e.input_ids.tolist() for e in second.train
    ]
    (tmp_path / "a.jsonl").write_text('{"question": "x", "answer": "y"}\n')
    changed = prepare(source, backend, context_length=64, seed=0, home=home)
    assert changed.report.rows.read == 1 and changed.data_hash != first.data_hash


def test_the_datasets_that_were_used_last_stay_in_the_cache(
    home, tmp_path, byte_backend, monkeypatch
):
    monkeypatch.setattr(prepare_run_data, "CACHED_DATASETS", 2)
    backend = byte_backend(["</s>"], eos="</s>")
    files = [write_rows(tmp_path / f"{n}.jsonl", pairs(10 + n)) for n in range(3)]
    for at in (0, 1, 0, 2):
        prepare(DataSource(path=files[at]), backend, context_length=64, seed=0, home=home)
        for report in home.datasets.glob(".tokens/*/report.json"):  # as if it had been earlier
            os.utime(report, (0, report.stat().st_mtime - 10))

    kept = [load_tokens(folder) for folder in home.datasets.glob(".tokens/*")]
    assert sorted(len(tokens) for tokens in kept) == [10, 12]


def test_tokens_that_another_process_deletes_meanwhile_are_made_again(
    home, tmp_path, byte_backend, monkeypatch
):
    backend = byte_backend(["</s>"], eos="</s>")
    source = DataSource(path=write_rows(tmp_path / "a.jsonl", pairs(30)))
    first = prepare(source, backend, context_length=64, seed=0, home=home)
    deleted = []

    def whole(folder):
        answer = is_whole(folder)
        if not deleted:
            deleted.append(folder)
            shutil.rmtree(folder)
        return answer

    monkeypatch.setattr(prepare_run_data, "is_whole", whole)
    again = prepare(source, backend, context_length=64, seed=0, home=home)
    assert deleted and again.report == first.report


def test_what_changes_the_rows_is_part_of_the_cache_key(home, tmp_path, byte_backend, monkeypatch):
    dated = ("{{ strftime_now('%d %B') }}{% for m in messages %}<|{{ m.content }}|>{% endfor %}"
             "{% if add_generation_prompt %}<|{% endif %}")  # fmt: skip
    backend = byte_backend(["|>"], dated, eos="|>")
    rows = [{"prompt": f"q{i}", "completion": f"a{i}", "label": i % 2 == 0} for i in range(20)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    good = DataSource(path=path, judged="good")
    assert len(prepare(good, backend, context_length=64, seed=0, home=home).train.tokens) == 10
    with pytest.raises(DataError, match="data.judged=good"):
        prepare(DataSource(path=path), backend, context_length=64, seed=0, home=home)

    class Tomorrow(date):
        @classmethod
        def today(cls):
            return date.today() + timedelta(days=1)

    monkeypatch.setattr(prepare_run_data, "date", Tomorrow)
    assert not is_prepared(good, backend, context_length=64, home=home)
    plain = byte_backend(["|>"], eos="|>")
    prepare(good, plain, context_length=64, seed=0, home=home)
    monkeypatch.undo()
    assert is_prepared(good, plain, context_length=64, home=home), "it does not read the date"
    assert is_prepared(good, backend, context_length=64, home=home)


def test_the_same_bytes_under_a_name_that_reads_otherwise_are_read_again(
    home, tmp_path, byte_backend
):
    backend = byte_backend(["</s>"], eos="</s>")
    rows = tmp_path / "a.jsonl"
    write_rows(rows, pairs(30))
    (tmp_path / "a.txt").write_bytes(rows.read_bytes())
    formats = [
        prepare(DataSource(path=str(tmp_path / name)), backend, context_length=64, seed=0,
                home=home).report.format
        for name in ("a.txt", "a.jsonl")
    ]  # fmt: skip
    assert formats == ["text", "question_answer"]


def test_the_report_names_dropped_rows_by_line(tmp_path, byte_backend):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n{"question": "q", "answer": " "}\n{"que\n')

    report = prepare(DataSource(path=str(path)), byte_backend(["</s>"], eos="</s>"),
                     context_length=64, seed=0).report  # fmt: skip

    assert report.rows == RowCounts(read=3, kept=1, dropped=2)
    assert [(p.line, p.kind) for p in report.problems] == [(2, "empty_answer"), (3, "json")]
    assert report.empty_answers == 1


def test_no_usable_row_is_a_sentence_with_the_most_common_reason(tmp_path, byte_backend):
    path = write_rows(tmp_path / "a.jsonl", [{"question": "q", "answer": ""}] * 3)

    with pytest.raises(DataError, match=r'None of the 3 rows .* every one .*"answer" is empty'):
        prepare(DataSource(path=path), byte_backend(["</s>"], eos="</s>"),
                context_length=64, seed=0)  # fmt: skip


def test_a_template_that_no_row_fits_is_refused(tmp_path, byte_backend):
    backend = byte_backend(["</s>"], "{{ raise_exception('no') if messages|length > 1 }}</s>",
                           eos="</s>")  # fmt: skip
    path = write_rows(tmp_path / "a.jsonl", pairs(3))

    with pytest.raises((DataError, Exception), match="no"):
        prepare(DataSource(path=path), backend, context_length=64, seed=0)


def test_a_few_trained_tokens_warn(tmp_path, byte_backend):
    path = write_rows(tmp_path / "a.jsonl", [{"question": "q" * 200, "answer": "a"}] * 3)

    report = prepare(DataSource(path=path), byte_backend(["</s>"], eos="</s>"),
                     context_length=512, seed=0).report  # fmt: skip

    assert report.trained_token_share < 0.05
    assert any("of the tokens are trained" in warning for warning in report.warnings)


@pytest.mark.parametrize("name", ["chatml", "alpaca", "vicuna", "plain"])
def test_named_fallbacks_train_the_answer_and_stop_at_a_real_token(name, byte_backend, bracketed):
    backend = byte_backend(["</s>"], eos="</s>")
    template = choose(backend, name)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]

    ids, labels = labelled(template, turns)

    lead = " " if name == "vicuna" else ""
    assert bracketed(backend, ids, labels).endswith(f"[[{lead}Yo</s>]]")
    prompt = template.encode_prompt(turns[:1])
    assert ids[: len(prompt)] == prompt and labels[len(prompt)] != -100
    assert template.stop_ids == (backend.token_id("</s>"),)


def test_auto_takes_chatml_only_where_its_markers_are_tokens(byte_backend):
    assert choose(byte_backend(["<|im_start|>", "<|im_end|>"])).name == "chatml"
    assert choose(byte_backend(["</s>"], eos="</s>")).name == "plain"
    with pytest.raises(DataError, match='no chat template "chatlm".*chatml'):
        choose(byte_backend(["</s>"]), "chatlm")


def test_a_report_from_the_cache_has_the_name_and_the_notes_of_its_own_path(
    home, tmp_path, byte_backend
):
    backend = byte_backend(["</s>"], eos="</s>")
    (tmp_path / "d").mkdir()
    for name in ("train", "test"):
        write_rows(tmp_path / "d" / f"{name}.jsonl", pairs(20))
    paths = [tmp_path / "d" / "train.jsonl", tmp_path / "d"]

    one, all_ = (prepare(DataSource(path=str(path)), backend, context_length=64, seed=0,
                         home=home).report for path in paths)  # fmt: skip

    assert (one.name, all_.name) == ("train.jsonl", "d")
    assert len(all_.warnings) == len(one.warnings) + 1 and "split" in all_.warnings[0]


def test_evaluation_rows_that_are_trained_on_are_counted_and_told(tmp_path, byte_backend):
    backend = byte_backend(["</s>"], eos="</s>")
    train = write_rows(tmp_path / "train.jsonl", pairs(20))
    held = write_rows(tmp_path / "held.jsonl", [*pairs(3), {"question": "new", "answer": "one"}])

    made = prepare(DataSource(path=train, validation_path=held), backend,
                   context_length=64, seed=0)  # fmt: skip

    assert (len(made.train), len(made.validation)) == (20, 4)
    assert made.report.overlap == 3
    assert any("3 of the 4 evaluation rows" in words for words in made.report.warnings)
    sides = [{"prompt": f"p{i}", "chosen": "good", "rejected": "bad"} for i in range(12)]
    paths = [write_rows(tmp_path / f"{n}.jsonl", sides[:n]) for n in (12, 5)]
    made = prepare(DataSource(path=paths[0], validation_path=paths[1]), backend,
                   context_length=64, seed=0, rows="pairs")  # fmt: skip
    assert (made.report.validation_examples, made.report.overlap) == (5, 5)


def test_what_a_dataset_is_on_a_model_says_how_long_it_takes(tmp_path, home):
    from studio.data.dataset_requests import MeasureRequest
    from studio.data.xray import is_measured, measured
    from studio.spec import ModelSource

    rows = [measured(ModelSource(path="starter"),
                     DataSource(path=write_rows(tmp_path / f"{n}.jsonl", pairs(n))), home)
            for n in (40, 400)]  # fmt: skip

    assert 0 < rows[0].seconds < rows[1].seconds
    assert rows[1].steps > rows[0].steps
    request = MeasureRequest(data=DataSource(path="starter:pirate"))
    assert not is_measured(request.model, request.data, home)
    *_, last = request.run(home, None, lambda: None)
    assert last.facts["rows"] == {"read": 320, "kept": 320, "dropped": 0}
    assert is_measured(request.model, request.data, home)


def test_threads_that_ask_at_once_get_the_same_tokens(home, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    from studio import starter
    from studio.data.model_tokenizer import backend_for

    file, backend = tmp_path / "a.jsonl", backend_for(starter.MODEL_DIR, home)
    file.write_text('{"prompt": "a", "completion": "b"}\n' * 400)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(prepare, DataSource(path=str(file)), backend, context_length=64,
                             seed=0, home=home) for _ in range(8)]  # fmt: skip
        assert {one.result().data_hash for one in asked} == {asked[0].result().data_hash}
