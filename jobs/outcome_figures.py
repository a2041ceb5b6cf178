"""The figures of what a job made: pages, commands and reports show the same pairs of words.

They are in the language of the window that asks. The first pair is the one that stands alone where
there is room for one.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from studio.adapters.library import name_of
from studio.evaluation.html_and_csv_exports import say, text_of

Outcome = Mapping[str, Any]
Pair = tuple[str, str]
FIGURES = {
    "mae": "Mean absolute error", "rmse": "Root mean squared error", "pearson": "Correlation",
}  # fmt: skip


def figures(kind: str, found: Outcome) -> list[Pair]:
    """Return the figures of an outcome; none for a kind of job that has no layout here.

    The files lie in folders of the user: where a figure is missing, those before it are returned.
    """
    pairs: list[Pair] = []
    with suppress(KeyError, TypeError, ValueError, AttributeError):
        pairs.extend(KINDS[kind](found) if kind in KINDS else ())
    return pairs


def _evaluated(found: Outcome) -> Iterator[Pair]:
    if found.get("accuracy") is not None:
        low, high = found["accuracy_interval"]
        rate, count = found["accuracy"], len(found["labels"])
        yield say("Accuracy"), say(f"{rate:.1%} (95 %: {low:.1%} to {high:.1%}), {count} labels")
    yield say("Loss"), text_of(found["eval_loss"])
    yield say("Rows"), text_of(found["rows"])
    if found.get("answered", found["rows"]) < found["rows"]:
        yield say("Answered"), say(f"{found['answered']} rows; no prompt in others")
    yield say("Perplexity"), text_of(found["perplexity"])
    share = _percent(found["token_accuracy"])
    yield say("Token accuracy"), say(f"{share} of {text_of(found['tokens'])} tokens")
    if found.get("accuracy") is not None:
        yield say("Macro F1"), text_of(found["macro_f1"])
        yield say("Calibration error"), text_of(found["ece"])
    if found.get("mae") is not None:
        for key, title in FIGURES.items():
            yield say(title), text_of(found[key])
    if found.get("forgetting") is not None:
        changed, prompts = found["changed"], found["general"]["prompts"]
        lost = text_of(found["forgetting"])
        yield say("Forgetting"), say(f"{lost} KL, {changed} of {prompts} answers changed")
    for name, share in found.get("scores", {}).items():
        yield name.replace("_", " "), _percent(share)
    yield from _notes(found)


def _merged(found: Outcome) -> Iterator[Pair]:
    certificate = found["certificate"]
    if not certificate:
        return
    yield from _compared(certificate)
    yield say("Mean logit error"), text_of(certificate["mean_error"])
    base, result = certificate["base_precision"], certificate["merged_precision"]
    yield say("Precision"), say(f"{base} base, {result} result")
    yield say("Merged"), ", ".join(certificate["merged"])
    if certificate["left"]:
        yield say("Stays an adapter"), ", ".join(name_of(Path(one)) for one in certificate["left"])
    yield say("Files"), certificate["files"][:16]
    yield from _notes(certificate)


def _exported(found: Outcome) -> Iterator[Pair]:
    check = found["check"] or {}
    yield from _compared(check)
    yield from _notes({"notes": [check.get("note"), *(check.get("notes") or ())]})


def _compared(found: Outcome) -> Iterator[Pair]:
    """Yield how files that were read back compare with what they were made from, if logits were."""
    if found.get("tolerance") is not None:
        error, allowed = found["max_error"], found["tolerance"]
        yield say("Largest logit error"), say(f"{error:.2g} (allowed {allowed:.2g})")
        changed, compared = found["tokens_changed"], found["tokens_compared"]
        yield say("Tokens changed"), say(f"{changed} of {compared}")


def _mixed(found: Outcome) -> Iterator[Pair]:
    if found.get("how"):
        exact = say("exactly the weighted sum, by concatenation")
        yield say("How"), exact if found["how"] == "concatenate" else found["how"].upper()
        yield say("Difference from the weighted sum"), _digits(100 * found["error"], 2) + "%"


def _judged(found: Outcome) -> Iterator[Pair]:
    yield say("Agreement with your votes"), _share(found["agreement"])
    yield say("Agreement of both orders"), _share(found["self_agreement"])
    yield say("For the answer shown first"), say(f"{_share(found['first'])}; half is unbiased")
    if found["unreadable"]["count"]:
        yield say("Answers without a verdict"), _share(found["unreadable"])
    yield say("Pairs"), say(f"{found['pairs']}, {found['ties']} of them ties")
    yield say("Judge"), found["address"] or found["judge"]


def _share(found: Outcome) -> str:
    """Return a share with its interval; half counts are of votes or pairs that went both ways."""
    if not found["of"]:
        return "–"
    low, high = found["low"], found["high"]
    return say(f"{found['count']:g} of {found['of']} (95 %: {low:.0%} to {high:.0%})")


def _digits(number: float, count: int, sign: str = "") -> str:
    """Return a number with this many digits; a larger one whole, not with an exponent."""
    is_long = abs(number) >= 10**count - 0.5
    return f"{number:{sign}.0f}" if is_long else f"{number:{sign}.{count}g}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _notes(found: Outcome) -> Iterator[Pair]:
    for note in found.get("notes") or ():
        if note:
            yield say("Note"), say(note)


def _tasks(report: Outcome) -> Iterator[Pair]:
    first = report["tasks"][0]
    yield f"{first['task']}: {first['metric']}", ", ".join(map(text_of, first["values"]))


def task_table(report: Outcome) -> tuple[list[str], list[list[str]], str]:
    """Return the head, the rows and a note of what lm-eval measured, a column per lane."""

    def cell(row: Outcome, place: int) -> str:
        error, gap = row["errors"][place], row["differences"][place]
        words = text_of(row["values"][place])
        words += "" if error is None else f" ± {_digits(error, 2)}"
        if gap is None:
            return words
        mean, low, high = (_digits(one, 3, "+") for one in gap)
        return say(f"{words} ({mean}, {low} to {high})")

    names = report["names"]
    head = [say("Task"), say("Figure"), say("Documents"), *names]
    rows = [
        [row["task"], row["metric"], text_of(row["documents"]),
         *(cell(row, place) for place in range(len(names)))]
        for row in report["tasks"]
    ]  # fmt: skip
    note = say("After ±: the standard error.")
    if len(names) > 1:
        note += " " + say(f"In brackets: the difference from {names[0]}, with its 95 % interval.")
    return head, rows, note


KINDS: dict[str, Callable[[Outcome], Iterator[Pair]]] = {
    "evaluate": _evaluated, "merge": _merged, "export_adapter": _exported, "gguf": _exported,
    "mix": _mixed, "judge": _judged, "tasks": _tasks,
}  # fmt: skip
