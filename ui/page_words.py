"""Words of pages: sentences name fields by their titles instead of their paths."""

import re

from jobs.sweeps import titled_fields
from ui.language import say

_PATH = re.compile(
    r"""(?<![\w./"'`-])(?P<part>model|data|train|method)\.(?P<name>\w+)(?![\w"'`/]|\.\w)(?:=(?=\w))?""",
    re.ASCII,  # Chinese stands beside a path without a space
)


def with_titles(text: str) -> str:
    """Return a sentence as pages say it: in the user's language, “Steps” for `train.max_steps`."""

    def named(found: re.Match[str]) -> str:
        title = dict(titled_fields()).get(f"{found['part']}.{found['name']}")
        before = text[: found.start()]
        if title is None or before.count("`") % 2 or before.endswith("--set "):
            return found[0]  # no field, or part of a command
        return f"“{_short(title)}”{' = ' if found[0].endswith('=') else ''}"

    text = say(text)
    return _PATH.sub(named, text)


def with_path(line: str) -> str:
    """Return a line such as `学习率 = 1e-4` or `“Rank” = 16` with the path for the title."""
    title, equals, values = line.partition("=")
    paths = {_short(one): path for path, one in titled_fields()}
    return f"{paths.get(title.strip(' “”'), title)}{equals}{values}"


def _short(title: str) -> str:
    """Return a title in the user's language, without what stands in brackets."""
    return re.split(r" \(|（", say(title))[0]
