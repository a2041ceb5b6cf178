"""What commands about models print: the list with what fits, search results, one model."""

from collections.abc import Mapping, Sequence
from typing import Any

from studio.names import compact, readable
from ui.cli.terminal_tables import printable

WAYS = ("full", "lora", "qlora")


def reach(fits: Sequence[Mapping[str, Any]]) -> str:
    """Return the longest length that fits (`8k`, `2k*` if tight), or what the shortest needs."""
    good = [one for one in fits if one["state"] in ("fits", "tight")]
    if not good:
        return readable(fits[0]["bytes"])
    last, tokens = good[-1], good[-1]["tokens"]
    return (
        f"{tokens // 1024}k" * (tokens >= 1024)
        + f"{tokens}" * (tokens < 1024)
        + "*" * (last["state"] == "tight")
    )


def _ways(row: Mapping[str, Any]) -> list[str]:
    if not row["fits"]:
        return ["–"] * len(WAYS)
    about = "" if row["fits"]["exact"] else "~"
    return [about + reach(row["fits"]["ways"][way]) for way in WAYS]


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns with the model last, so that its name is never cut."""
    widths = [max(len(row[at]) for row in [heads, *rows]) for at in range(len(heads) - 1)]
    for row in [heads, *rows]:
        cells = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=False)]
        print(printable("  ".join([*cells, row[-1]])))


def _footnote(device: str) -> None:
    print(
        f"The longest row of 512, 2k and 8k tokens that fits{device} (* tight), or the memory\n"
        "that 512 tokens need; ~ guessed from the number of parameters."
    )


def models(answer: Mapping[str, Any]) -> None:
    """Print the models that can be trained, and below them those that cannot, with the reason."""
    rows = [row for row in answer["models"] if not row["why_not"]]
    with_fits = any(row["fits"] for row in rows)
    heads = ["Size", "Context", *(("Full", "LoRA", "QLoRA") * with_fits), "Model"]
    for title, group in (
        ("On this machine:", [row for row in rows if row["kind"] != "curated"]),
        ("On the hub, to begin with:", [row for row in rows if row["kind"] == "curated"]),
    ):
        print(title)
        _lines(heads, [
            [compact(row["parameters"]), f"{row['context'] // 1024}k" if row["context"] > 1023
             else str(row["context"] or "–"), *(_ways(row) if with_fits else ()), row["path"]]
            for row in group
        ])  # fmt: skip
    if with_fits:
        device = answer["device"]
        _footnote(f" on {device['name']} ({readable(device['bytes'])})")
    _refused(answer["models"])
    for folder in answer["folders"]:
        if folder["trouble"]:
            print(folder["trouble"])
    if answer["offline"]:
        print("This studio is offline: `studio offline --off` lets it use the hub again.")


def _refused(rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        if row["why_not"]:
            print(printable(f"Not for training: {row['why_not']}"))


def found(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print search results."""
    if not rows:
        print("No model of the hub matches that can be trained here; --all shows the others, too.")
        return
    heads = ["Size", "Downloads", "Full", "LoRA", "QLoRA", "Licence", "Model"]
    _lines(heads, [
        [compact(row["parameters"]), f"{row['downloads']:,}", *_ways(row), row["license"] or "–",
         row["id"] + (" (gated)" if row["gated"] else "")]
        for row in rows
    ])  # fmt: skip
    _footnote("")
    _refused(rows)


def one(row: Mapping[str, Any]) -> None:
    """Print all of a hub model before its download."""
    left = row["bytes"] - row["arrived_bytes"]
    for name, value in {
        "model": row["id"], "commit": row["revision"], "parameters": compact(row["parameters"]),
        "context": f"{row['context']:,}" if row["context"] else "",
        "licence": row["license"] + (f" (gated: accept it on {row['page']})" * row["gated"]),
        "download": f"{len(row['files'])} files, {readable(left)} of {readable(row['bytes'])}",
        "free disk": readable(row["free_bytes"]), "goes to": row["folder"],
        **dict(zip(WAYS, _ways(row), strict=True)),
    }.items():  # fmt: skip
        if value:
            print(printable(f"{name:11} {value}"))
    print(printable(row["why_not"]) or f"Download it with `studio models get {row['id']}`.")


def removed(answer: Mapping[str, Any]) -> None:
    """Print what deleting a model frees, and which adapters lose their base."""
    size, model = readable(answer["bytes"]), answer["model"]
    print(f"{model} is deleted: {size} are free." if answer["removed"]
          else f"`studio models remove {model} --yes` frees {size}.")  # fmt: skip
    if answer["adapters"]:
        print("Adapters that need it as their base: " + ", ".join(answer["adapters"]) + ".")


def token(answer: Mapping[str, Any]) -> None:
    """Print whose token is stored."""
    if answer["account"]:
        print(f"The stored token is of {answer['account']}.")
    else:
        print(f"No token is stored. Make one with read access on {answer['page']}.")
