"""Words of pages: sentences name fields by their titles instead of their paths."""

import re
from functools import cache
from typing import Any

from studio.fields import parameter
from studio.methods import methods
from studio.spec import DataSource, ModelSource
from studio.train_args import TrainArgs
from ui.language import say

_PATH = re.compile(
    r"""(?<![\w./"'`-])(?P<part>model|data|train|method)\.(?P<name>\w+)(?![\w"'`/]|\.\w)(?:=(?=\w))?""",
    re.ASCII,  # Chinese stands beside a path without a space
)


def with_titles(text: str) -> str:
    """Return a sentence as pages say it: in the user's language, “Steps” for `train.max_steps`."""

    def named(found: re.Match[str]) -> str:
        title, before = _titles().get(f"{found['part']}.{found['name']}"), text[: found.start()]
        if title is None or before.count("`") % 2 or before.endswith("--set "):
            return found[0]  # no field, or part of a command
        return f"“{_short(title)}”{' = ' if found[0].endswith('=') else ''}"

    text = say(text)
    return _PATH.sub(named, text)


def with_path(line: str) -> str:
    """Return a line such as `学习率 = 1e-4, 3e-4` with the field's path for its title."""
    title, equals, values = line.partition("=")
    paths = {_short(one): path for path, one in reversed(_titles().items())} | {say("Seed"): "seed"}
    return f"{paths.get(title.strip(), title)}{equals}{values}"


def _short(title: str) -> str:
    """Return a title in the user's language, without what stands in brackets."""
    return re.split(r" \(|（", say(title))[0]


@cache
def _titles() -> dict[str, str]:
    records: list[tuple[str, Any]] = [("method", one) for one in reversed(methods().values())]
    records += [("model", ModelSource), ("data", DataSource), ("train", TrainArgs)]
    found = {
        f"{part}.{name}": parameter(f"{part}.{name}", info).title
        for part, record in records
        for name, info in record.model_fields.items()
    }
    return found | {"method.name": "Method"}
