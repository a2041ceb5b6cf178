"""Names and files of standard tasks, checked without loading lm-eval.

A task of one's own is a YAML file in lm-eval's format beside its rows. Only its data counts: a file
that names Python code (`!function`) is refused, paths of rows are relative to the file. Tasks by
name are those that lm-eval brings; their rows are downloaded from the hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from studio.errors import DataError, InputError, nearest

LOCAL = ("json", "csv", "parquet", "text", "arrow")
NAME = re.compile(r"^(?:task|group): *[\"']?([^\s\"'#]+)", re.MULTILINE)


def library() -> Path:
    """Return the folder of the tasks that lm-eval brings.

    Raises:
        InputError: lm-eval is not installed.
    """
    found = find_spec("lm_eval")
    if found is None or found.origin is None:
        raise InputError("Standard tasks need lm-eval: pip install 'adapter-studio[eval]'.")
    return Path(found.origin).parent / "tasks"


def resolve(tasks: Sequence[str]) -> tuple[str, ...]:
    """Return task names and absolute paths of task files; a folder stands for its tasks.

    Raises:
        InputError: lm-eval is not installed.
        DataError: A task does not exist, or its file cannot be used.
    """
    library()
    found: list[str] = []
    for text in (part.strip() for one in tasks for part in one.split(",") if part.strip()):
        place = Path(text).expanduser()
        if not (place.exists() or place.suffix in (".yaml", ".yml") or "/" in text):
            _check_name(text)
            found.append(text)
            continue
        files = sorted(place.glob("*.y*ml")) if place.is_dir() else [place]
        own = [file for file in files if not place.is_dir() or "task" in read_yaml(file)]
        if not own:
            raise DataError(f"{place} holds no task: write one as a YAML file with a task name.")
        for file in own:
            read(file)
            found.append(str(file.absolute()))
    if not found:
        raise DataError("Name at least one task, as in --tasks arc_easy,gsm8k.")
    return tuple(dict.fromkeys(found))


def read(file: Path) -> dict[str, Any]:
    """Return the configuration of a task file, with the files it includes and absolute paths.

    Raises:
        DataError: It cannot be read, names code, or its rows are missing.
    """
    values = read_yaml(file)
    if not isinstance(values.get("task"), str):
        raise DataError(f"{file} names no task: add a line such as `task: my_task`.")
    if any(metric.get("hf_evaluate") for metric in values.get("metric_list") or ()):
        raise DataError(f"{file} loads a metric from the hub (hf_evaluate), which runs code.")
    if values.get("unsafe_code") or "class" in values:
        raise DataError(f"{file} runs code (unsafe_code, class), which is refused.")
    if values.get("dataset_path") not in LOCAL:
        return values
    given = dict(values.get("dataset_kwargs") or {})
    if not given.get("data_files"):
        raise DataError(
            f"{file} names no rows: add dataset_kwargs, data_files, as in `test: rows.jsonl`."
        )
    given["data_files"] = _placed(file, given["data_files"])
    return values | {"dataset_kwargs": given}


def _placed(file: Path, rows: Any) -> Any:
    """Return paths of rows as absolute ones."""
    if isinstance(rows, Mapping):
        return {split: _placed(file, part) for split, part in rows.items()}
    if isinstance(rows, list):
        return [_placed(file, part) for part in rows]
    place = file.absolute().parent / str(rows)
    if not place.is_file():
        raise DataError(f"{file} names the rows {rows}, but there is no file {place}.")
    return str(place)


def read_yaml(file: Path, *, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the plain values of a YAML file, those of included files first.

    Raises:
        DataError: It cannot be read, is not a mapping, or names code.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"There is no task or file {file} ({error.strerror}).") from None
    except yaml.constructor.ConstructorError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise DataError(
            f"{file} names code at line {line}, which is not run: use templates and built-in "
            "metrics."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise DataError(f"{file} is not valid YAML.") from None
    if not isinstance(values, dict):
        raise DataError(f"{file} must hold a mapping such as `task: my_task`.")
    includes = values.pop("include", [])
    merged: dict[str, Any] = {}
    for one in includes if isinstance(includes, list) else [includes]:
        place = (file.absolute().parent / str(one)).resolve()
        if place in seen:
            raise DataError(f"{file} includes itself through {one}.")
        merged |= read_yaml(place, seen=(*seen, place))
    return merged | values


# -- tasks by name ---------------------------------------------------------------------------------


def file_of(name: str) -> Path | None:
    """Return the file that defines a single task; None for a group or a tag."""
    own = re.compile(rf"^task: *[\"']?{re.escape(name)}[\"']?\s*(#.*)?$", re.MULTILINE)
    files = [file for file, text in _texts() if own.search(text) and "\ngroup:" not in f"\n{text}"]
    return files[0] if len(files) == 1 else None


def _check_name(name: str) -> None:
    """Refuse a name that no file of lm-eval mentions.

    Raises:
        DataError: With the nearest name.
    """
    word = re.compile(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])")
    if not any(word.search(text) for _, text in _texts()):
        known = {match[1] for _, text in _texts() for match in NAME.finditer(text)}
        raise DataError(
            f'There is no task "{name}" in lm-eval, and no such file.{nearest(name, sorted(known))}'
        )


def _texts() -> Iterator[tuple[Path, str]]:
    for file in _files(library()):
        yield file, file.read_text(encoding="utf-8", errors="replace")


@cache
def _files(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(folder.rglob("*.yaml")))
