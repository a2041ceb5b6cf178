"""Figures of outcomes, laid out once for pages, commands and reports."""

from jobs.outcome_figures import figures, task_table
from ui import language

EVALUATED = {
    "rows": 8, "eval_loss": 0.5, "perplexity": 1.6487, "token_accuracy": 0.75, "tokens": 64,
}  # fmt: skip
LABELLED = {
    "accuracy": 0.5, "accuracy_interval": [0.2, 0.8], "labels": ["good", "bad"], "macro_f1": 0.4,
    "ece": 0.1,
}  # fmt: skip
SHARE = {"count": 10.5, "of": 11, "rate": 10.5 / 11, "low": 0.6, "high": 0.99}


def test_the_first_figure_of_an_evaluation_is_its_accuracy_or_its_loss():
    assert figures("evaluate", EVALUATED)[0] == ("Loss", "0.5")
    found = figures("evaluate", EVALUATED | LABELLED)
    assert found[0] == ("Accuracy", "50.0% (95 %: 20.0% to 80.0%), 2 labels")
    assert ("Token accuracy", "75.0% of 64 tokens") in found


def test_what_was_not_measured_is_a_dash_or_left_out_and_notes_come_last():
    nothing = EVALUATED | {"eval_loss": None, "perplexity": None, "token_accuracy": None}
    more = {"answered": 6, "scores": {"exact_match": None}, "notes": ["Of another base."]}
    found = dict(figures("evaluate", nothing | more))
    assert found["Loss"] == found["exact match"] == "–"
    assert found["Answered"] == "6 rows; no prompt in others"
    assert list(found)[-1] == "Note" and "Accuracy" not in found


def test_logits_are_named_only_where_they_were_compared():
    check = {"max_error": 0.0, "note": "Read back: its changes of the weights equal the adapter's."}
    assert figures("export_adapter", {"check": check}) == [("Note", check["note"])]
    assert figures("gguf", {"check": None}) == figures("import_adapter", {}) == []
    compared = {"max_error": 2e-5, "tolerance": 1e-4, "tokens_changed": 1, "tokens_compared": 9}
    words = [("Largest logit error", "2e-05 (allowed 0.0001)"), ("Tokens changed", "1 of 9")]
    assert figures("gguf", {"check": compared}) == words


def test_a_mix_says_if_it_is_the_weighted_sum_or_how_it_was_cut():
    assert figures("mix", {"how": "concatenate", "error": 5e-8})[0][1].startswith("exactly")
    assert figures("mix", {"how": "ties", "error": 0.031}) == [
        ("How", "TIES"), ("Difference from the weighted sum", "3.1%"),
    ]  # fmt: skip
    assert figures("mix", {"adapter": None}) == []  # it was deleted
    for error, words in ((1.21, "121%"), (0.996, "100%"), (0.99, "99%")):
        assert figures("mix", {"how": "dare", "error": error})[1][1] == words


def test_a_file_that_lacks_figures_shows_those_that_it_has():
    compared = {"max_error": 2e-5, "tolerance": 1e-4, "tokens_changed": 1, "tokens_compared": 9}
    assert len(figures("merge", {"certificate": compared})) == 2
    assert figures("merge", {"certificate": {"max_error": 2e-5}}) == []
    assert figures("mix", {"how": "ties", "error": None}) == [("How", "TIES")]
    assert figures("evaluate", {}) == []


def test_a_judge_is_measured_by_shares_in_the_language_of_the_reader():
    none = {**SHARE, "count": 0, "of": 0}
    found = {"agreement": SHARE, "self_agreement": none, "first": SHARE, "unreadable": none,
             "pairs": 3, "ties": 1, "address": "", "judge": "starter"}  # fmt: skip
    shown = dict(figures("judge", found))
    assert shown["Agreement with your votes"] == "10.5 of 11 (95 %: 60% to 99%)"
    assert shown["Agreement of both orders"] == "–" and "Answers without a verdict" not in shown
    token = language.current.set("zh_CN")
    try:
        title, words = figures("judge", found)[0]
    finally:
        language.current.reset(token)
    assert title == "与你投票的一致率" and "10.5" in words and " of " not in words


def test_standard_tasks_have_a_column_per_lane_with_the_difference_from_the_first():
    row = {"task": "sums", "metric": "acc", "documents": 4, "values": [0.5, 0.75],
           "errors": [0.1, None], "differences": [None, [0.25, -0.1, 0.6]]}  # fmt: skip
    head, rows, note = task_table({"names": ["base", "mine"], "tasks": [row]})
    assert head == ["Task", "Figure", "Documents", "base", "mine"]
    assert rows == [["sums", "acc", "4", "0.5 ± 0.1", "0.75 (+0.25, -0.1 to +0.6)"]]
    long = row | {"differences": [None, [1234.5, -1000.0, 4000.0]]}
    assert "(+1234, -1000 to +4000)" in task_table({"names": ["a", "b"], "tasks": [long]})[1][0][4]
    assert note.endswith("In brackets: the difference from base, with its 95 % interval.")
    assert figures("tasks", {"tasks": [row]}) == [("sums: acc", "0.5, 0.75")]
