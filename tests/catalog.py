"""Find every text that users see, and keep the catalogs of translations in step with them.

`python -m tests.catalog` brings new texts into `ui/locale/*/LC_MESSAGES/*.po`, empty, and drops
those that no longer exist. Variable parts are numbered in the order of the English text.
"""

import ast
import inspect
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from studio.fields import PLAIN
from tests.ratchet import nodes, sources, tree_of
from ui.language import LOCALE, PAGES, PART, TEXTS, read_po

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "ui/assets"
LEFT_OUT = re.compile(
    r"ui/bench/|ui/language|starter/make/|"
    r"adapters/(card_and_modelfile|verify)|data/suspicious|methods/__main__|"
    r"evaluation/lm_eval"
)
ERRORS = re.compile(
    r"\w+Error$|OutOfMemory|DiskFull|Unreached|JudgeFailed|Diverged|\w+Lost$|GateFailed|WeightsToo"
)
SILENT = {"debug", "info", "warning", "exception", "execute", "compile", "sub", "match", "search"}
NO_SENTENCES = re.compile(
    r"^(ID\||Iterator\[|\{0\}=\{1\}; Path|Tell me a|What (is|sound) |You can call|"
    r"no stubs|[A-Z]:\\|Address  |part.(aria-|ia3_l|studio\.db)|\{%-|A chat between|"
    r"Below is an instr|Answer in one|In the chest|Where is the map)"  # of chat templates
)
SHORT = (  # what a value should be, and parts that are too short to be recognised as sentences
    "greater than {0}", "greater than or equal to {0}", "less than {0}",
    "less than or equal to {0}", "text of at most {0} characters", "a finite number",
    "a list such as [q_proj, v_proj]", "gradient became {0}", "loss became {0}", "Lower",
    "role and content", "from and value", "at a quarter of the rate",
    "the model's own chat template", "longer", "shorter", "epochs", "steps",
    "step {0} of a run that {1}",
    "fields of its own, such as {0}", "{0} is {1}", "{0} is empty", "number {0}",
)  # fmt: skip
WORDED = {
    "TITLES",
    "FIXED",
    "ROLES",
    "CURVES",
    "FIGURES",
    "GLOSSARY",
    "LACKS",
}  # dictionaries whose values pages show
MODELS_READ = {"SAMPLE_PROMPTS", "RUBRIC", "QUESTION", "TEXTS"}
Texts = dict[str, str]  # by key: the expressions of its variable parts


# -- JavaScript ------------------------------------------------------------------------------------


def page_texts() -> Texts:
    """Return the texts of the pages: the tagged templates t`…`, and the words of closed sets."""
    found = dict.fromkeys((*closed_sets(), "chosen", "rejected", "chat", "asked to leave"), "")
    for file in sorted(ASSETS.rglob("*.js")):
        for key, parts in templates(file.read_text()):
            found[key] = found.get(key) or parts
    return found


def templates(source: str) -> Iterator[tuple[str, str]]:
    """Yield (key, expressions) of every t`…` in JavaScript, those inside of others too."""
    for start in re.finditer(r"(?<![\w$.])t`", source):
        key, parts, at = "", list[str](), start.end()
        while source[at] != "`":
            if source.startswith("${", at):
                end = _closing(source, at + 2)
                parts.append(" ".join(source[at + 2 : end].split()))
                key, at = f"{key}{{{len(parts) - 1}}}", end + 1
            elif source[at] == "\\":
                size = 6 if source[at + 1] == "u" else 2
                piece = source[at : at + size]
                plain = piece[1] in "`$"
                key += piece[1] if plain else json.loads(f'"{piece}"')
                at += size
            else:
                key, at = key + source[at], at + 1
        notes = ", ".join(f"{{{i}}} = {part}" for i, part in enumerate(parts))
        yield re.sub(r"\n\s+", " ", key), notes


def _closing(source: str, at: int) -> int:
    """Return the index of the brace that closes an expression of a template."""
    depth = 0
    while True:
        sign = source[at]
        if sign == "}" and not depth:
            return at
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if sign in "'\"":
            at = source.index(sign, at + 1)
        elif sign == "`":
            at += 1
            while source[at] != "`":
                at = _closing(source, at + 2) if source.startswith("${", at) else at
                at += 2 if source[at] == "\\" else 1
        at += 1


def closed_sets() -> list[str]:
    """Return the words that pages show as they come: states, how runs ended, kinds of jobs."""
    from jobs import disk_usage
    from jobs.job_record import STATES

    parts = re.findall(r'"([A-Z][a-z ]+)":', inspect.getsource(disk_usage.usage))
    return [*STATES, *parts, "imported", "mixed", "train", "validation", "good", "bad",
            "person", "supervisor", "runner", "submitted"]  # fmt: skip


# -- Python ----------------------------------------------------------------------------------------


@cache
def texts() -> tuple[Texts, Texts]:
    """Return the texts of Python: those that must be translated, and sentences of the library."""
    strict, sentences = field_texts(), Texts()
    for file in sources():
        if not LEFT_OUT.search(file.as_posix()):
            _Reader(strict, sentences).visit(tree_of(file))
    strict |= dict.fromkeys((PART + word for word in (*closed_sets(), *PLAIN.values(), *SHORT)), "")
    return strict, {
        key: parts
        for key, parts in sentences.items()
        if key not in strict
        and not NO_SENTENCES.match(key)
        and not (key.startswith(PART) and key.removeprefix(PART) in sentences)
    }


def field_texts() -> Texts:
    """Return titles, helps, units and words of fields, actions and methods, and pages' titles."""
    from jobs.actions import ACTIONS
    from jobs.actions.registry import schema
    from studio.chat.lanes import Sampling
    from studio.methods import methods
    from studio.models import model_list
    from ui.page_frame import PAGES as OPENED
    from ui.train_page import PARTS, explained, form_fields, shown

    found: list[Any] = [page.title for page in OPENED]
    fields = [shown(one) for part, record in PARTS.items() for one in form_fields(record, part)]
    for method in methods().values():
        fields += [shown(one) for one in form_fields(method, "method")]
        found += [method.title, *explained(method)["manual"].split("\n"), explained(method)["use"]]

    for action in ACTIONS.values():
        if not action.terminal:
            asked = schema(action)
            found += [asked["title"], asked["help"]]
            fields += asked["fields"]
    found += [model.what for model in model_list.curated()]
    for one in Sampling.model_json_schema()["properties"].values():
        found += [one.get("title"), one.get("description")]
    for one in fields:
        found += [one["title"], one["help"], one["unit"], one["heading"], *one["words"]]
        found += [label for value, label in one["choices"] if label != value]
    readable = r"[A-Za-z]{3,}(?![^`]*`(?:[^`]*`[^`]*`)*[^`]*$)"  # not in code alone
    return {one: "" for one in found if one and re.search(readable, one) and "arXiv" not in one}


class _Reader(ast.NodeVisitor):
    """Collect the sentences of one module, and the fixed texts that fill their variable parts."""

    def __init__(self, strict: Texts, sentences: Texts) -> None:
        self.strict, self.sentences = strict, sentences

    def visit_Module(self, node: Any) -> None:
        first = node.body[0] if node.body else None
        docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        for child in node.body[docstring:]:
            if not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
                self.visit(child)

    visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = visit_Module

    def visit_Call(self, node: ast.Call) -> None:
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name in SILENT or name in ("knob", "field", "Field", "_rows"):
            return
        if name == "say":
            parts: list[str] = []
            if re.search(
                "[A-Za-z]{2}", re.sub(r"\{\d\}", "", key := template(node.args[0], parts))
            ):
                self.strict[key] = ", ".join(f"{{{i}}} = {part}" for i, part in enumerate(parts))
        elif name in ("_again", "_item"):  # "Train again …"; what may be removed, and why
            for one in node.args[1:]:
                self._fixed(ast.IfExp(one, one, one))
        elif ERRORS.match(name):
            for one in node.args:
                self._add(one, sure=True)
        self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg in ("title", "label", "note"):
            self._word(node.value)
        if node.arg == "why":
            self._fixed(ast.IfExp(node.value, node.value, node.value))
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        name = getattr(node.targets[0], "id", "")
        if name == "why":
            self._fixed(ast.IfExp(node.value, node.value, node.value))
        if name in WORDED and isinstance(node.value, ast.Dict):
            for value in node.value.values:
                for one in ast.walk(value):
                    self._word(one)
        elif name not in MODELS_READ:
            self.generic_visit(node)

    def _word(self, node: ast.AST) -> None:
        if isinstance(node, ast.Constant | ast.JoinedStr):
            parts: list[str] = []
            key = template(node, parts)
            if re.match(r"[A-Z0-9].*[a-z]|\w+ \w", key):
                self.strict[key] = ", ".join(f"{{{i}}} = {part}" for i, part in enumerate(parts))

    def visit_Constant(self, node: ast.Constant) -> None:
        self._add(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        self._add(node)
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                self._fixed(part.value)
                self.visit(part.value)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if isinstance(node.op, ast.Add):
            self._add(node)
        self.generic_visit(node)

    def _add(self, node: ast.AST, *, sure: bool = False) -> None:
        parts: list[str] = []
        key = template(node, parts)
        plain = re.sub(r"\{\d\}", "", key)
        words = re.findall(r"[A-Za-z]{2,}", plain)
        sentence = re.match(r"\s*[A-Z“\"{`]", key) and len(words) > 2 and " " in plain.strip()
        bare = re.sub(r"`[^`]*`", "", key)
        code = re.search(r"^\s*[A-Z]{3,} |\\[swn]|\(\?|[<>]{1}/|;$|_\w+\(|^\W*import |--\w+ ", bare)
        if len(parts) < 10 and ((sentence and not code) or (sure and len(words) > 1)):
            notes = ", ".join(f"{{{i}}} = {part}" for i, part in enumerate(parts))
            self.sentences.setdefault(key.strip(), notes)

    def _fixed(self, node: ast.AST) -> None:
        """Note the fixed texts that an expression inside a sentence chooses from."""
        choices = [node.body, node.orelse] if isinstance(node, ast.IfExp) else []
        choices += node.values if isinstance(node, ast.BoolOp) else []
        for one in choices:
            parts: list[str] = []
            key = template(one, parts).strip()
            if isinstance(one, ast.IfExp | ast.BoolOp):
                self._fixed(one)
            elif re.search("[A-Za-z]{2}", re.sub(r"\{\d\}", "", key)):
                self.sentences.setdefault(PART + key, ", ".join(parts))


def template(node: ast.AST, parts: list[str]) -> str:
    """Return the text of an expression with its variable parts as `{0}`, `{1}`; note them."""

    def numbered(one: re.Match[str]) -> str:
        parts.append(one[1])
        return f"{{{len(parts) - 1}}}"

    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"\{(\w*)(?:[:\[][^} ]*)?\}", numbered, node.value)  # for str.format
    if isinstance(node, ast.JoinedStr):
        return "".join(
            one.value if isinstance(one, ast.Constant) else template(one, parts)  # type: ignore[misc]
            for one in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left, parts) + template(node.right, parts)
    if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "format":
        return template(node.func.value, parts)  # type: ignore[attr-defined]
    value = node.value if isinstance(node, ast.FormattedValue) else node
    parts.append(ast.unparse(value))
    return f"{{{len(parts) - 1}}}"


def passed_on() -> list[str]:
    """Return the errors whose text is made elsewhere, so that no catalog is sure to hold it."""
    found = []
    for file in sources():
        for node in nodes(file):
            name = getattr(getattr(node, "func", None), "id", "")
            if ERRORS.match(name) and node.args and not LEFT_OUT.search(file.as_posix()):  # type: ignore[attr-defined]
                text = template(node.args[0], [])  # type: ignore[attr-defined]
                if len(re.findall("[A-Za-z]{2,}", re.sub(r"\{\d\}", "", text))) < 2:
                    found.append(f"{file}:{node.lineno}")  # type: ignore[attr-defined]
    return found


# -- catalogs --------------------------------------------------------------------------------------


def write(file: Path, found: Texts) -> None:
    """Write a catalog: its head and translations stay, new texts are empty, old ones go."""
    old = file.read_text(encoding="utf-8") if file.exists() else ""
    known, head = read_po(old), old.partition("\n\n")[0]
    entries = []
    for key in sorted(found, key=lambda one: one.removeprefix(PART).casefold()):
        notes = f"#. {found[key]}\n" if found[key] else ""
        context = f"msgctxt {_quoted(PART[:-1])}\n" if key.startswith(PART) else ""
        bare = key.removeprefix(PART)
        entries.append(
            f"{notes}{context}msgid {_quoted(bare)}\nmsgstr {_quoted(known.get(key, ''))}\n"
        )
    file.write_text("\n".join([head + "\n", *entries]), encoding="utf-8")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


if __name__ == "__main__":
    strict, sentences = texts()
    for folder in sorted(LOCALE.glob("*/LC_MESSAGES")):
        write(folder / f"{PAGES}.po", page_texts())
        write(folder / f"{TEXTS}.po", strict | sentences)
