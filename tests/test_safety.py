"""What no file of ours may do, and how new what we stand on must be: read from the sources."""

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests import ratchet
from tests.ratchet import ROOT, nodes, sources, text_of

FILES = sources()

# Each floor carries the fixes of known holes: remote code and `weights_only` bypasses, file reads.
FLOORS = {"transformers": "5.5", "gradio": "6.16", "torch": "2.10"}


@pytest.mark.parametrize("package", FLOORS)
def test_a_dependency_is_new_enough_to_carry_its_fixes(package):
    wanted = [
        Requirement(text)
        for text in re.findall(r'^  "([^"]+)",', (ROOT / "pyproject.toml").read_text(), re.M)
        if text.startswith(package)
    ]
    floors = [Version(s.version) for r in wanted for s in r.specifier if s.operator == ">="]
    assert floors and min(floors) >= Version(FLOORS[package])
    assert Version(version(package)) >= Version(FLOORS[package])


@cache
def calls() -> list[tuple[Path, ast.Call, str]]:
    """Every call of our sources, with the name that is called."""
    return [
        (file, node, ast.unparse(node.func))
        for file in FILES for node in nodes(file) if isinstance(node, ast.Call)
    ]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def forgotten():
    """Free the trees of all files after the last test."""
    yield
    calls.cache_clear()
    ratchet.forget()


FORBIDDEN = {
    "eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "torch.load",
    "marshal.loads", "yaml.load", "yaml.unsafe_load", "shutil.unpack_archive", "joblib.load",
    "numpy.load", "np.load", "tempfile.mktemp", "gr.load", "gradio.load",
}  # fmt: skip


def test_nothing_is_unpickled_evaluated_or_given_to_a_shell():
    for file, call, name in calls():
        named = {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert name not in FORBIDDEN, f"{file}:{call.lineno} calls {name}"
        assert named.get("shell", "False") == "False", f"{file}:{call.lineno} opens a shell"
        assert named.get("trust_remote_code", "False") == "False", f"{file}:{call.lineno}"
        assert named.get("weights_only", "True") == "True", f"{file}:{call.lineno}"
        assert named.get("allow_pickle", "False") == "False", f"{file}:{call.lineno}"
        assert not (name.endswith("extractall") or (name.endswith("launch") and "share" in named))


def test_every_text_file_names_its_encoding():
    """Without one Windows writes and reads the system's code page, which lacks most names."""
    for file, call, name in calls():
        named, action = {k.arg for k in call.keywords}, name.rpartition(".")[2]
        given = [a.value for a in call.args if isinstance(a, ast.Constant)]
        text = (
            action in ("read_text", "write_text")
            or (name in ("open", "os.fdopen") and not any("b" in str(mode) for mode in given))
            or (action == "open" and any(re.fullmatch(r"[rwax]t?\+?", str(m)) for m in given[:1]))
        )
        if name != "work.write_text":  # rows of a text file as tokens
            assert not text or "encoding" in named or "utf-8" in given, f"{file}:{call.lineno}"


def test_every_model_of_a_person_is_loaded_without_its_code():
    """The default asks on standard input; ours never asks and never runs."""
    ours = {
        "studio/starter/make/pretrain.py",
        "ui/bench/peers.py",
        "ui/bench/inference_speed.py",
    }  # own folders
    for file, call, name in calls():
        if str(file) in ours or "bench" in file.parts:
            continue
        if re.match(r"Auto\w+\.from_(pretrained|config)$", name):
            named = {keyword.arg for keyword in call.keywords}
            assert "trust_remote_code" in named or None in named, f"{file}:{call.lineno}"


def test_a_token_is_compared_in_constant_time():
    checks = (ROOT / "ui" / "security.py").read_text()
    assert "hmac.compare_digest(given.encode(), self.token)" in checks
    assert not re.search(r"(==|!=)\s*self\.(token|pass_)", checks)


def test_ci_audits_the_dependencies():
    assert "pip-audit" in (ROOT / ".ci" / "run").read_text()


def interpolated(node: ast.AST) -> bool:
    """Return True if the expression builds a string from parts at run time."""
    if isinstance(node, ast.JoinedStr):
        return any(
            not (isinstance(part.value, ast.Name) and part.value.id.isupper())
            for part in node.values
            if isinstance(part, ast.FormattedValue)
        )
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Add | ast.Mod)
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".format", ".join"))


@cache
def declared() -> set[str]:
    """The distributions that pyproject.toml names, for the product and its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [
        wanted for name, wanted in project["optional-dependencies"].items()
        if name not in ("test", "dev")
    ]  # fmt: skip
    wanted = [Requirement(text) for text in sum(extras, project["dependencies"])]
    assert all(requirement.specifier for requirement in wanted), "each has a lowest version"
    return {canonicalize_name(requirement.name) for requirement in wanted}


# Where the name to import is not the name to install.
INSTALLED_AS = {"yaml": "pyyaml", "mlflow": "mlflow-skinny", "lm_eval": "lm-eval",
                "webview": "pywebview"}  # fmt: skip


def test_everything_that_is_imported_is_declared():
    missing = {}
    for file in FILES:
        for node in nodes(file):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            for name in (name.split(".")[0] for name in names):
                if name == "triton":  # comes with torch for GPUs
                    continue
                ours = name in ("studio", "jobs", "ui") or name in sys.stdlib_module_names
                if not ours and canonicalize_name(INSTALLED_AS.get(name, name)) not in declared():
                    missing[name] = str(file)
    assert missing == {}


FOREIGN = {"modeling_auto.py"}  # files of other projects that our comments cite


def test_a_file_that_is_mentioned_exists():
    ends = "\n".join(f"/{other}\n" for other in FILES)
    for file in FILES:
        for name in re.findall(r"(?<![\w*{}])[\w/]+\.py\b", text_of(file)):
            known = f"/{name.lstrip('/')}\n" in ends or (ROOT / name).is_file() or name in FOREIGN
            assert known, f"{file} mentions {name}"


SQL = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|CREATE|DROP|ALTER|PRAGMA|WITH)\s", re.I)


def test_no_sql_is_put_together_from_values():
    """Statements are constants, of constants in capitals at most; values are parameters."""
    for file, call, name in calls():
        if name.endswith((".execute", ".executemany", ".query")) and call.args:
            assert not interpolated(call.args[0]), f"{file}:{call.lineno}"
    for file in (file for file in FILES if "jobs" in file.parts):
        for node in nodes(file):
            if isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
                sql = SQL.match(str(node.values[0].value))
                assert not (sql and interpolated(node)), f"{file}:{node.lineno}"
