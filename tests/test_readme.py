"""The README's tables come from the code; `python -m tests.test_readme` writes them."""

import json
from pathlib import Path

import typer

from studio.backbone.probe import CAPABILITIES
from studio.methods import methods
from studio.spec import DataSource, ModelSource, RunSpec, TrainArgs
from ui.cli.main import app

README = Path(__file__).parents[1] / "README.md"


def methods_table() -> str:
    able = json.loads(CAPABILITIES.read_text())
    names = list(next(iter(able.values())))
    lines = [
        "| method | name | paper | " + " | ".join(n.replace("_", " ") for n in names) + " |",
        "|---|---|---|" + "---|" * len(names),
    ]
    for name, cls in methods().items():
        marks = " | ".join("yes" if able[name][n] else "–" for n in names)
        lines.append(f"| {cls.title} | `{name}` | {cls.paper} | {marks} |")
    return "\n".join(lines)


def spec_table() -> str:
    parts = {"model": ModelSource, "data": DataSource, "train": TrainArgs}
    lines = ["| field | default | meaning |", "|---|---|---|"]
    for part, cls in parts.items():
        for name, info in cls.model_fields.items():
            default = json.dumps(info.default)
            lines.append(f"| `{part}.{name}` | `{default}` | {_cell(info.description)} |")
    seed = RunSpec.model_fields["seed"]
    lines.append(f"| `seed` | `{seed.default}` | {seed.description} |")
    return "\n".join(lines)


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")


def commands_table() -> str:
    lines = ["| command | what it does |", "|---|---|"]
    group = typer.main.get_command(app)
    for words, command in [((), group), *_commands(group, ())]:
        usage = " ".join(["studio", *words, *_arguments(command)])
        lines.append(f"| `{usage}` | {_first_sentence(command)} |")
    return "\n".join(lines)


def _commands(group, before: tuple[str, ...]):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*before, name))
        else:
            yield (*before, name), command


def _arguments(command) -> list[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    return [p.metavar or (p.name or "").upper() for p in arguments]


def _first_sentence(command) -> str:
    return " ".join((command.help or "").split("\n\n")[0].split()).replace("|", "\\|")


def with_tables(text: str) -> str:
    tables = {"methods": methods_table(), "spec": spec_table(), "commands": commands_table()}
    for name, table in tables.items():
        start, end = f"<!-- {name} table -->", f"<!-- end {name} table -->"
        before, _, rest = text.partition(start)
        after = rest.partition(end)[2]
        text = f"{before}{start}\n{table}\n{end}{after}"
    return text


def test_the_tables_are_what_the_code_says():
    text = README.read_text(encoding="utf-8")
    assert text == with_tables(text), "run `python -m tests.test_readme` to write them again"


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
