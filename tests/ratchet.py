"""Measure the house: lines and files per room, circles, commands, routes, banned phrases.

`python -m tests.ratchet` prints one table, `python -m tests.ratchet circles` the places behind one
figure (or phrase); `--lower` writes today's lower figures into `ratchet.json`, the budgets that
`test_architecture.py` holds. A figure that must rise is changed there by hand, with the reason in
the commit.
"""

import ast
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUDGETS = Path(__file__).with_name("ratchet.json")
FLOORS = {"studio": 0, "jobs": 1, "ui": 2}
SUFFIXES = {".py", ".js", ".css"}
OWN_ROOMS = {
    *(f"studio/{name}" for name in (
        "adapters", "backbone", "chat", "cluster", "data", "evaluation", "methods", "models",
        "starter", "training",
    )),
    "jobs/actions", "ui/assets", "ui/bench", "ui/cli",
}  # fmt: skip

# Regular expressions over docstrings, comments, texts, and whole JavaScript and Markdown files.
BANNED = (
    r"\b(a|the|this|each|another) person('s)?\b", r"\bpeople\b",
    r"(?<!there )\b(is|are|was) no\b(?! longer)", r"\b(no|any|every|some)body\b",
    r"\bwho(m|so)?ever\b", r"\bso (often|many|long|much)\b", r"\bthe door\b",
    r"\b(comes?|brings?|brought|takes?) home\b", r"\b(is|are|was|were) told\b", r"\btells?\b",
    r"\bhears?\b|\bheard\b", r"\bbod(y|ies) of\b", r"\bgives? way\b", r"\bfor ever\b",
    r"\bforesaw\b", r"\bwish(es)?\b", r"\bwant of\b", r"\bmoments?\b", r"\bspeaks?\b",
    r"\bknows? nothing\b", r"\bstays? behind\b", r"\bnever mind\b", r"\blets? go\b",
    r"\berrands?\b", r"\bseats?\b", r"\bkinship\b", r"\bhomecoming\b", r"\bit is its turn\b",
    r"\bpull of\b", r"\bthe body\b",
)  # fmt: skip
QUESTION = re.compile(r"(What|How|Which|Where|Who|Whom|Whose|Whether|When|Why)\b")
SQL = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER|DROP|PRAGMA|ATTACH|WITH)\b")


# -- files -----------------------------------------------------------------------------------------


def files(*places: str, suffixes: set[str] = SUFFIXES) -> list[Path]:
    """Return the files of some folders, relative to the repository."""
    return sorted(
        file.relative_to(ROOT)
        for place in places
        for file in (ROOT / place).rglob("*")
        if file.suffix in suffixes and "__pycache__" not in file.parts
    )


@cache
def text_of(file: Path) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(text_of(file))


@cache
def nodes(file: Path) -> list[ast.AST]:
    return list(ast.walk(tree_of(file)))


def sources() -> list[Path]:
    """Return every Python source of the three floors."""
    return files(*FLOORS, suffixes={".py"})


def module_of(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def rooms() -> dict[str, list[Path]]:
    """Return the files of each room: the deepest folder with a budget of its own."""
    found: dict[str, list[Path]] = {}
    for file in files(*FLOORS, "tests"):
        room = next((r for r in OWN_ROOMS if file.is_relative_to(r)), file.parts[0])
        found.setdefault(room, []).append(file)
    return dict(sorted(found.items()))


def num_lines(found: list[Path]) -> int:
    return sum(len(text_of(file).splitlines()) for file in found)


# -- imports ---------------------------------------------------------------------------------------


@cache
def known_modules() -> frozenset[str]:
    return frozenset(module_of(file) for file in sources())


@cache
def imports(file: Path) -> set[str]:
    """Return our modules that a file imports, inside functions too, but not for types only."""
    known = known_modules()
    found: set[str] = set()
    typing_only = {
        inner
        for node in nodes(file)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in nodes(file):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} imports relatively"
            base = node.module or ""
            found |= {
                name if (name := f"{base}.{alias.name}") in known else base for alias in node.names
            }
    return {name for name in found if name.partition(".")[0] in FLOORS}


def circles() -> list[str]:
    """Return every group of modules that need each other, imports inside functions counted."""
    graph = {module_of(f): imports(f) - {module_of(f)} for f in sources()}
    reach = {name: _reached(graph, name) for name in graph}
    groups = {
        frozenset(other for other in reach[name] if name in reach.get(other, ()))
        for name in graph
        if name in reach[name]
    }
    return sorted(" <-> ".join(sorted(group)) for group in groups)


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += graph.get(name, ())
    return found


def upward_imports() -> list[str]:
    """Return every import of a higher floor."""
    return sorted(
        f"{file} -> {name}"
        for file in sources()
        for name in imports(file)
        if FLOORS[name.partition(".")[0]] > FLOORS[file.parts[0]]
    )


def forget() -> None:
    """Read every file again."""
    for function in (text_of, tree_of, nodes, known_modules, imports):
        function.cache_clear()


# -- names -----------------------------------------------------------------------------------------


def shared_stems() -> list[str]:
    """Return the module names that two modules of one floor share."""
    named = Counter(
        (f.parts[0], f.stem) for f in sources() if f.stem not in ("__init__", "__main__")
    )
    return sorted(f"{floor}: {stem}" for (floor, stem), count in named.items() if count > 1)


def shared_class_names() -> list[str]:
    """Return the public class names that are defined twice."""
    named = Counter(
        node.name
        for file in sources()
        for node in tree_of(file).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    return sorted(name for name, count in named.items() if count > 1)


def sql_fstrings() -> list[str]:
    """Return the SQL statements that are built from values instead of parameters."""
    return [
        f"{file}:{node.lineno}"
        for file in sources()
        for node in nodes(file)
        if isinstance(node, ast.JoinedStr)
        and any(isinstance(part, ast.FormattedValue) for part in node.values)
        and isinstance(first := node.values[0], ast.Constant)
        and SQL.match(str(first.value))
    ]


# -- words -----------------------------------------------------------------------------------------


def texts() -> Iterator[tuple[str, str]]:
    """Yield every text that somebody may read, with its place."""
    for file in sources():
        for node in nodes(file):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{file}:{node.lineno}", node.value
        for number, line in enumerate(text_of(file).splitlines(), 1):
            if comment := re.search(r"(?:^|\s)# (.*)", line):
                yield f"{file}:{number}", comment.group(1)
    for file in files("ui", suffixes={".js"}) + files("docs", suffixes={".md"}):
        yield str(file), text_of(file)
    for name in ("README.md", "CONTRIBUTING.md", "pyproject.toml"):
        yield name, text_of(Path(name))


def phrase_hits() -> dict[str, list[str]]:
    """Return the places of each banned phrase."""
    found: dict[str, list[str]] = {phrase: [] for phrase in BANNED}
    some = re.compile("|".join(BANNED), re.IGNORECASE)
    for place, text in texts():
        flat = " ".join(text.split())
        if not some.search(flat):
            continue
        for phrase in BANNED:
            found[phrase] += [place] * len(re.findall(phrase, flat, re.IGNORECASE))
    return found


def question_docstrings() -> list[str]:
    """Return the functions and classes whose docstring begins with a question word."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return [
        f"{file}:{node.lineno} {node.name}"
        for file in sources()
        for node in nodes(file)
        if isinstance(node, kinds) and QUESTION.match(ast.get_docstring(node) or "")
    ]


# -- commands and routes ---------------------------------------------------------------------------


def commands() -> list[str]:
    """Return the words of every command."""
    import typer

    from ui.cli.main import app

    def below(command: object, words: str) -> Iterator[str]:
        inner = getattr(command, "commands", {})
        for name, child in inner.items():
            yield from below(child, f"{words} {name}")
        if not inner:
            yield words

    return sorted(below(typer.main.get_command(app), "studio"))


def routes() -> list[str]:
    """Return the HTTP routes that are written by hand: decorators with a path."""
    methods = {"get", "post", "put", "patch", "delete", "websocket", "api_route"}
    return [
        f"{node.func.attr} {node.args[0].value}"
        for file in sources()
        for node in nodes(file)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in methods
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in ("router", "app")
        and node.args
        and isinstance(node.args[0], ast.Constant)
    ]


# -- the table -------------------------------------------------------------------------------------

NAMED: dict[str, Callable[[], list[str]]] = {
    "circles": circles,
    "upward imports": upward_imports,
    "module names shared in a floor": shared_stems,
    "public class names shared": shared_class_names,
}
COUNTED: dict[str, Callable[[], list[str]]] = {
    "SQL statements made of f-strings": sql_fstrings,
    "docstrings that begin with a question word": question_docstrings,
    "commands": commands,
    "routes written by hand": routes,
}
Figure = int | list[str]


def figures() -> dict[str, Figure]:
    """Return every figure that has a budget: a number, or the names that are still allowed."""
    found: dict[str, Figure] = {}
    for room, inside in rooms().items():
        found[f"lines of {room}"] = num_lines(inside)
        found[f"files of {room}"] = len(inside)
    found["lines of source"] = num_lines(files(*FLOORS))
    found |= {name: measure() for name, measure in NAMED.items()}
    found |= {name: len(measure()) for name, measure in COUNTED.items()}
    found |= {f"phrase {phrase}": len(hits) for phrase, hits in phrase_hits().items()}
    return found


@cache
def budgets() -> dict[str, Figure]:
    return json.loads(BUDGETS.read_text(encoding="utf-8"))


def exceeded() -> dict[str, str]:
    """Return the figures above their budgets, with both."""
    found = {}
    for name, value in figures().items():
        budget = budgets().get(name, [] if isinstance(value, list) else 0)
        if isinstance(value, list):
            value, budget = sorted(set(value) - set(budget)), []
        if value > budget:
            found[name] = f"{value}, not {budget}"
    return found


def lowered(value: Figure, budget: Figure) -> Figure:
    """Return a budget brought down to today's value, never up."""
    if isinstance(value, list) and isinstance(budget, list):
        return sorted(set(value) & set(budget))
    return min(value, budget)  # type: ignore[type-var]


def main() -> None:
    """Print the figures beside their budgets, or the places behind one of them."""
    if "--lower" in sys.argv:
        new = {n: lowered(value, budgets().get(n, value)) for n, value in figures().items()}
        BUDGETS.write_text(json.dumps(new, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    elif len(sys.argv) > 1:
        places = NAMED | COUNTED | {p: lambda p=p: phrase_hits()[p] for p in BANNED}
        print("\n".join(places[sys.argv[1]]()))
    else:
        over = exceeded()
        for name, value in figures().items():
            now, budget = (
                len(v) if isinstance(v, list) else v for v in (value, budgets().get(name))
            )
            print(f"{now:8,} of {budget or 0:6,}  {name}{'  <<<' if name in over else ''}")


if __name__ == "__main__":
    main()
