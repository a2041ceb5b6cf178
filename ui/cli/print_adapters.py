"""What commands about adapters print: merges, exports, evaluations, the library, results."""

from collections.abc import Mapping, Sequence
from typing import Any

from ui.cli.terminal_tables import number, table

Answer = Any


def merged(answer: Answer) -> None:
    """Print where a merged model is and its certificate."""
    found = answer["certificate"]
    print(f"Merged into {answer['out']}")
    print(
        f"Certificate: max logit error {found['max_error']:.2g} (allowed "
        f"{found['tolerance']:.2g}), {found['tokens_changed']} of "
        f"{found['tokens_compared']} tokens changed, base {found['base_precision']}."
    )
    if found["left"]:
        print("Not merged, still adapters: " + ", ".join(found["left"]))
    for note in found.get("notes") or ():
        print(note)


def exported(answer: Answer) -> None:
    """Print where an export is and how exact it is."""
    print(f"Exported to {answer['out']}")
    check = answer["check"] or {}
    if check.get("max_error") is None:
        return
    changed = ""
    if "tokens_changed" in check:
        changed = f", {check['tokens_changed']} of {check['tokens_compared']} tokens changed"
    print(f"Read back: max logit error {check['max_error']:.2g}{changed}.")
    for note in check.get("notes") or ():
        print(note)


def evaluated(report: Mapping[str, Any]) -> None:
    """Print an evaluation."""
    if "tasks" in report:
        tasks(report)
        return
    print(f"rows            {report['rows']}")
    print(f"loss            {number(report['eval_loss'])}")
    print(f"perplexity      {number(report['perplexity'], '{:.4g}')}")
    print(
        f"token accuracy  {number(report['token_accuracy'], '{:.1%}')} of {report['tokens']} tokens"
    )
    if "accuracy" in report:
        low, high = report["accuracy_interval"]
        print(f"accuracy        {report['accuracy']:.1%} ({low:.1%} to {high:.1%})")
        print(f"macro F1        {report['macro_f1']:.4f}")
        print(f"calibration     {report['ece']:.4f} expected error")
    if "mae" in report:
        print(f"as numbers      {report['mae']:.4f} mean absolute error, {report['rmse']:.4f} root "
              f"mean squared, correlation {number(report['pearson'])}")  # fmt: skip
    if report.get("forgetting") is not None:
        changed, prompts = report["changed"], report["general"]["prompts"]
        print(f"forgetting      {report['forgetting']:.4f} KL, {changed} of {prompts} changed")
    if report.get("answered", report["rows"]) < report["rows"]:
        print(f"answered        {report['answered']} of {report['rows']} rows; no prompt in others")
    for name, value in report.get("scores", {}).items():
        print(f"{name:15} {number(value, '{:.1%}')}")
    for note in report.get("notes") or ():
        print(note)


def tasks(report: Mapping[str, Any]) -> None:
    """Print what lm-eval measured, a column per lane."""

    def cell(row: Mapping[str, Any], place: int) -> str:
        error, gap = row["errors"][place], row["differences"][place]
        words = number(row["values"][place]) + ("" if error is None else f" ± {number(error)}")
        return words if gap is None else f"{words} ({gap[0]:+.3g}, {gap[1]:+.3g} to {gap[2]:+.3g})"

    places = range(len(report["names"]))
    table(
        ["Task", "Figure", "Documents", *report["names"]],
        [[row["task"], row["metric"], str(row["documents"]), *(cell(row, n) for n in places)]
         for row in report["tasks"]],
    )  # fmt: skip
    if len(places) > 1:
        print(f"In brackets: the difference from {report['names'][0]}, with its 95 % interval.")


def picture(answer: Answer) -> None:
    """Print what an adapter changed, one line a module."""
    for change in answer["changes"]:
        size = f"{change['norm']:.2%}" if change["relative"] else f"{change['norm']:.3g}"
        rank = change["effective_rank"]
        words = "" if rank is None else f"  rank {rank:.1f}"
        layer = "outside" if change["layer"] < 0 else f"layer {change['layer']}"
        print(f"{layer:>8}  {change['module']:<28} {size:>9}{words}")


def adapters(found: Sequence[Mapping[str, Any]]) -> None:
    """Print the library."""
    if not found:
        print("No adapters yet. `studio train --data starter:pirate` makes the first.")
    for one in found:
        loss = "" if one["last_loss"] is None else f", loss {one['last_loss']:.4f}"
        ended = f", {one['ended']} after {one['steps']} steps" if one["ended"] else ""
        print(f"{one['name']}: {one['method']} on {one['base']}{ended}{loss}")


def results(answer: Answer) -> None:
    """Print the results table, or its text in another format."""
    if "text" in answer:
        print(answer["text"], end="")
        return
    columns = answer["columns"]
    rows = [
        [row["name"], row["method"], *(number(row.get(one["key"])) for one in columns)]
        for row in answer["rows"]
    ]
    table(["Adapter", "Method", *(one["title"] for one in columns)], rows)
