"""The tables of README, docs and CONTRIBUTING; `python -m tests.test_docs` writes them."""

import ast
import json
import re
from pathlib import Path

import pytest
import typer

from studio.methods import methods
from studio.spec import DataSource, ModelSource, RunSpec
from studio.train_args import TrainArgs
from tests.method_capabilities import CAPABILITIES
from tests.studio.data.test_template_families import table as families_table
from ui.bench.rates_and_forgetting import RUNS, averaged
from ui.cli.main import app

ROOT = Path(__file__).parents[1]
FILES = (
    "README.md", "CONTRIBUTING.md", "docs/commands.md", "docs/settings.md", "docs/templates.md",
)  # fmt: skip


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


def forgetting_table() -> str:
    """Return what each method learned and forgot on every demo, the best of a column in bold."""
    rows = averaged(json.loads(RUNS.read_text(encoding="utf-8")))
    demos = list(dict.fromkeys(row["data"] for row in rows))
    words = [demo.partition(":")[2] for demo in demos]
    heads = [f"*{word}* {axis}" for word in words for axis in ("learned", "forgot")]
    keys = [(demo, key) for demo in demos for key in ("eval_loss", "forgetting")]
    found = {(row["method"], row["data"]): row for row in rows}
    best = {(d, key): min(r[key] for r in rows if r["data"] == d) for d, key in keys}
    lines = ["| method | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for name in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for demo, key in keys:
            value = found[name, demo][key]
            cells.append(f"**{value:.2f}**" if value == best[demo, key] else f"{value:.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
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


def map_table() -> str:
    """Return one line a module: its path and the first paragraph of its docstring."""
    lines, room = [], Path()
    files = (f for part in ("studio", "jobs", "ui") for f in (ROOT / part).rglob("*.py"))
    for file in sorted(files, key=lambda file: (file.parent, file.name)):
        path = file.relative_to(ROOT)
        first = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").strip()
        sentence = first.split("\n\n")[0].rstrip(".:")
        if path.parent != room:
            room = path.parent
            lines += ["", f"### {room.as_posix()}/", "", "| file | what it is for |", "|---|---|"]
        if file.name != "__init__.py" or (len(first) > 0 and file.stat().st_size > 600):
            lines.append(f"| `{path.name}` | {_cell(' '.join(sentence.split()))} |")
    return "\n".join(lines).strip()


TABLES = {
    "methods": methods_table,
    "settings": spec_table,
    "commands": commands_table,
    "map": map_table,
    "forgetting": forgetting_table,
    "families": families_table,
}


def with_tables(text: str) -> str:
    for name, table in TABLES.items():
        start, end = f"<!-- {name} table -->", f"<!-- end {name} table -->"
        if start in text:
            before, _, rest = text.partition(start)
            text = f"{before}{start}\n{table()}\n{end}{rest.partition(end)[2]}"
    return text


def test_tests_that_the_docs_name_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/gpu.md").read_text())
    assert len(named) >= 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(), (file, test)


@pytest.mark.parametrize("name", FILES)
def test_the_tables_are_what_the_code_says(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text == with_tables(text), "run `python -m tests.test_docs` to write them again"


@pytest.mark.parametrize("name", TABLES)
def test_each_table_is_published_once(name):
    texts = [(ROOT / file).read_text(encoding="utf-8") for file in FILES]
    assert sum(f"<!-- {name} table -->" in text for text in texts) == 1


@pytest.mark.parametrize("name", FILES)
def test_links_lead_somewhere(name):
    file = ROOT / name
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", file.read_text(encoding="utf-8")):
        assert (file.parent / target).exists(), f"{name} links to {target}, which does not exist"


if __name__ == "__main__":
    for each in FILES:
        file = ROOT / each
        file.write_text(with_tables(file.read_text(encoding="utf-8")), encoding="utf-8")
