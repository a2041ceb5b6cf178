"""Texts in the user's language: gettext catalogs, English as the key.

Library and queue make English sentences and keep them as they are, in the database and in logs; the
windows translate at the boundary, so that what was stored before a switch is shown in the language
of now. A key is the English text with its variable parts as `{0}`, `{1}`: "{0} rows". A sentence
that arrives whole is recognised by its key, which `tests/catalog.py` takes from the f-string that
made it. Parts in quotes are the user's own words and stay. Sentences of pages name fields by their
titles instead of their paths.

The catalogs are read as `.po` files: nothing is compiled, neither in a wheel nor in a checkout.
"""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
from collections.abc import Mapping
from contextvars import ContextVar
from functools import cache, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from jobs.sweeps import titled_fields
from studio.evaluation import html_and_csv_exports
from ui.security import App, HeldAnswer, Message, Receive, Scope, Send

LOCALE = Path(__file__).parent / "locale"
LANGUAGES = {"en": "EN", "zh_CN": "中文"}
COOKIE = "studio-language"
PAGES, TEXTS = "pages", "texts"  # the catalog of the JavaScript, and of everything else
PART = "part\x04"  # begins the key of a fixed text that only stands inside a sentence
current: ContextVar[str] = ContextVar("language", default="en")

# Where texts of ours stand in answers, by route: paths of keys, through lists; `*` is any key, `@`
# a field of a form, `:` what follows a name. All else is the user's: rows, tokens, mappings, notes.
JOB = "error.text note phase waits"
REPORT = "reason template_reason warnings problems.text suspicious.text"
OFFER = "title about lacks"


def _under(name: str, paths: str) -> str:
    return " ".join(f"{name}.{path}" for path in paths.split())


OURS: dict[str, str] = {
    "actions": "title help fields.@",
    "train/form": "fields.@ methods.title methods.use methods.manual methods.fields.@",
    "train/estimate": "unknown auto.* titles.*",
    "train/rows": "unknown rows.problem",
    "live": f"{_under('jobs.items', JOB)} {_under('jobs.queue', 'held short')} detail.error.text "
    "detail.content.events.why",
    "data": "datasets.reason settings.@",
    "data/look": "problem reason rows.problem",
    "data/[^/]+": f"reason {_under('findings', REPORT)}",
    "data/[^/]+/(rows|xray)": "rows.problem",
    "data/[^/]+/tokens": _under("report", REPORT),
    "system": "cluster.trouble devices.label blocked.label blocked.why processes.what",
    "chat/choices": "sampling.*.title sampling.*.description",
    r"outcome/\d+": f"{JOB} outcome.reason outcome.titles.* outcome.why "
    f"{_under('outcome.report', REPORT)}",
    "do/conversations": "",
    "do/(hold|release|cancel)": f"{JOB} refused",
    "do/bakeoff": f"{JOB} rows.title columns.title columns.hint",
    "do/cluster": "trouble",
    r"do/data\.check": REPORT,
    r"do/data\.map": f"{JOB} rows.problem",
    r"do/data\.xray": "problem",
    "do/guide": "note goals.title goals.about goal.needs data.text models.what settings.title "
    "settings.reason",
    "do/judge": f"{JOB} why",
    "do/methods": "title",
    "do/models": "models.what models.why_not folders.trouble device.label",
    r"do/models\.(search|show)": "why_not",
    r"do/models\.folders": "trouble",
    r"do/presets\.\w+": "about",
    "do/queue": _under("jobs", JOB),
    "do/refit": f"{OFFER} {_under('remedy', OFFER)} {_under('offers', OFFER)}",
    "do/results": "columns.title.: rows.lacks",
    "do/show": f"{JOB} history.why reading.title reading.text reading.remedy.title",
    "do/(storage|clean)": "items.what items.why spare.items.what spare.items.why",
    "do/suite": f"{JOB} left_out.text columns.title columns.hint",
    "do/sweep": f"{JOB} {_under('jobs', JOB)}",
    "do/welcome": "findings.text device.label glossary.term glossary.means",
    "do/.*": JOB,
}
LONGEST = 4000  # characters of a text that is looked up
TOGETHER = 6  # sentences that one key may hold
LARGE = 2**16  # bytes of an answer that is translated beside the server's loop
SHORT = 12
SEVERAL = re.compile(r"(?<=[.?!]) (?=\S)")  # between two sentences
DOUBLED = re.compile(r"([？！。：])\s*。")
FIELD = re.compile(r"\{(\d)\}")
_FIELD_PATH = re.compile(
    r"""(?<![\w./"'`-])(?P<part>model|data|train|method)\.(?P<name>\w+)(?![\w"'`/]|\.\w)(?:=(?=\w))?""",
    re.ASCII,  # Chinese stands beside a path without a space
)
QUOTES = {'"': '"', "“": "”", "`": "`", "'": "'"}


@cache
def catalog(language: str, domain: str = TEXTS) -> dict[str, str]:
    """Return the translations of a catalog by their English texts; none for English.

    Without the header and what is not translated.
    """
    file = LOCALE / language / "LC_MESSAGES" / f"{domain}.po"
    found = read_po(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {key: words for key, words in found.items() if key and words}


def read_po(text: str) -> dict[str, str]:
    """Return the entries of a `.po` file; the header has the empty key."""
    found, key, part = dict[str, str](), "", ""
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word in ("msgctxt", "msgid", "msgstr"):
            key = "" if part == "msgstr" else key
            part, line = word, rest
        if not line.startswith('"'):
            continue
        value = ast.literal_eval(line)
        if part == "msgstr":
            found[key] = found.get(key, "") + value
        else:
            key += f"{value}\x04" if part == "msgctxt" else value
    return found


def say(text: str) -> str:
    """Return a text of ours in the current language; what is not known stays English."""
    spoken = current.get() != "en" and len(text) <= LONGEST
    return _said(text, current.get()) if spoken else text


@cache
def _patterns(language: str) -> list[tuple[str, re.Pattern[str], str, str]]:
    """Return (longest literal, pattern, key, translation) of keys with fields, longest first."""
    found = []
    for key, translated in catalog(language).items():
        literals = FIELD.split(key.removeprefix(PART))[::2]
        if len(literals) == 1:
            continue
        short = len("".join(literals)) < SHORT  # its fields are single words, such as numbers
        pattern = ("([^ ]*?)" if short else "(.*?)").join(map(re.escape, literals))
        found.append((max(literals, key=len), re.compile(pattern, re.DOTALL), key, translated))
    return sorted(found, key=lambda one: -len(FIELD.sub("", one[2])))


@lru_cache(maxsize=4096)
def _known(text: str, language: str, *, whole: bool = False) -> str | None:
    """Return the translation of a sentence; `whole` lets its parts hold several sentences."""
    known = catalog(language)
    if exact := known.get(text) or known.get(PART + text):
        return exact
    for literal, pattern, key, translated in _patterns(language):
        if literal not in text or not (found := pattern.fullmatch(text)):
            continue
        if not whole and any(SEVERAL.search(value) for value in found.groups()):
            continue
        values = [_value(found, key, at, language) for at in range(len(found.groups()))]
        # In one pass: what stands in a value is not a field.
        pieces = FIELD.split(translated)
        return "".join(values[int(p)] if i % 2 else p for i, p in enumerate(pieces))
    return None


def _value(found: re.Match[str], key: str, at: int, language: str) -> str:
    """Return a variable part of a sentence, translated if it is a text of ours."""
    value, place = found[at + 1], key.index(f"{{{at}}}")
    before, after = key[place - 1 : place], key[place + 3 : place + 4]
    quoted = QUOTES.get(before) == after if before else False
    bare = value.strip()
    if quoted or key[:place].count("`") % 2 or not bare:
        return value
    fixed = catalog(language).get(PART + bare) or (_said(bare, language) if " " in bare else bare)
    return value if fixed == bare else fixed


def _said(text: str, language: str) -> str:
    if not text.strip():
        return text
    known = _known(text, language)
    if known is not None:
        return DOUBLED.sub(r"\1", known)
    for between, joined in (("\n", "\n"), (" · ", " · "), (" or ", " 或 ")):
        if between in text and (between != " or " or not SEVERAL.search(text)):
            parts = text.split(between)
            said = [_said(part, language) for part in parts]
            if said != parts or all(part.strip()[:1] in {'"', "'"} for part in parts):
                return joined.join(said)
    pieces = SEVERAL.split(text)
    whole, at = "", 0
    while len(pieces) > 1 and at < len(pieces):
        for end in range(min(len(pieces), at + TOGETHER), at, -1):
            known = _known(" ".join(pieces[at:end]), language)
            if known is not None or end == at + 1:
                whole += known if known is not None else f"{' ' if whole else ''}{pieces[at]} "
                at = end
                break
    if whole.split() == text.split():
        whole = _known(text, language, whole=True) or ""
    return DOUBLED.sub(r"\1", whole.strip()) or text


def with_titles(text: str, titles: Mapping[str, str] | None = None) -> str:
    """Return a sentence as pages say it: in the user's language, “Steps” for `train.max_steps`.

    Args:
        text: The sentence.
        titles: Fields of an action that it names, as in "rows is -5: …", with their titles.
    """

    def named(found: re.Match[str]) -> str:
        title = dict(titled_fields()).get(f"{found['part']}.{found['name']}")
        before = text[: found.start()]
        if title is None or before.count("`") % 2 or before.endswith("--set "):
            return found[0]  # no field, or part of a command
        return f"“{_short(title)}”{' = ' if found[0].endswith('=') else ''}"

    text = say(text)
    for name, title in (titles or {}).items():
        own = rf"""(?<![\w."'`-]){re.escape(name)}(?= (?:is|为) )"""
        text = re.sub(own, f"“{_short(title)}”", text)
    return _FIELD_PATH.sub(named, text)


def with_path(line: str) -> str:
    """Return a line such as `学习率 = 1e-4` or `“Rank” = 16` with the path for the title."""
    title, equals, values = line.partition("=")
    paths = {_short(one): path for path, one in titled_fields()}
    return f"{paths.get(title.strip(' “”'), title)}{equals}{values}"


def _short(title: str) -> str:
    """Return a title in the user's language, without what stands in brackets."""
    return re.split(r" \(|（", say(title))[0]


def of_terminal() -> str:
    """Return the language of commands: STUDIO_LANG, else that of the locale."""
    names = ("STUDIO_LANG", "LC_ALL", "LC_MESSAGES", "LANG")
    return _known_language(next(filter(None, map(os.environ.get, names)), ""))


def _known_language(name: str) -> str:
    """Return the language of a name such as `zh_CN.UTF-8` or `zh-Hans`."""
    words = re.split(r"[-_.@;]", name.lower())
    traditional = {"tw", "hk", "mo", "hant"} & set(words)
    return "zh_CN" if words[0] == "zh" and not traditional else "en"


def tag(language: str) -> str:
    """Return the language as HTML names it."""
    return language.replace("_", "-")


html_and_csv_exports.use_language(say, lambda: tag(current.get()))


# -- the web ---------------------------------------------------------------------------------------


@cache
def page_script(language: str) -> str:
    """Return the script that gives pages their texts in a language, read before any module."""
    return f"globalThis.studioWords={json.dumps(catalog(language, PAGES), ensure_ascii=False)}"


@cache
def script_address(language: str) -> str:
    """Return the address of the script of a language's texts, another after each change."""
    digest = blake2b(page_script(language).encode(), digest_size=6).hexdigest()
    return f"/language/{language}.js?{digest}"


class Language:
    """Answer each request in the language of its cookie, or of the browser at first."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Set the language of the request and translate the texts of JSON answers."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        language = wanted(scope)
        token = current.set(language)
        try:
            await self.app(scope, receive, send if language == "en" else _spoken(scope, send))
        finally:
            current.reset(token)


def wanted(scope: Scope) -> str:
    """Return the language that a request asks for."""
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    for part in headers.get(b"cookie", "").split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE and value in LANGUAGES:
            return value
    return _known_language(headers.get(b"accept-language", "").partition(",")[0].strip())


def _spoken(scope: Scope, send: Send) -> Send:
    """Return what sends the JSON answers of our routes in the current language."""

    def begin(message: Message) -> Message | None:
        kind = dict(message["headers"]).get(b"content-type", b"")
        ours = kind == b"application/json" and scope["path"].startswith("/api/")
        return message if ours else None

    def whole(body: bytes) -> bytes:
        shown = translated(json.loads(body), scope["path"]) if body else None
        return json.dumps(shown, ensure_ascii=False).encode() if body else b""

    async def rewrite(body: bytes) -> bytes:
        return await asyncio.to_thread(whole, body) if len(body) > LARGE else whole(body)

    return HeldAnswer(send, begin, rewrite).send


def translated(value: Any, path: str) -> Any:
    """Return the answer of a route with our texts in the current language, the user's untouched."""
    if isinstance(value, dict) and isinstance(value.get("error"), dict) and len(value) == 1:
        return _put(value, ["error", "text"])
    places = (places for route, places in OURS.items() if re.fullmatch(f"/api/{route}", path))
    for place in next(places, "").split():
        value = _put(value, place.split("."))
    return value


def _put(value: Any, place: list[str]) -> Any:
    """Return a value with the texts at a place translated; lists are looked through."""
    if isinstance(value, list):
        return [_put(one, place) for one in value]
    if not place:
        return say(value) if isinstance(value, str) else value
    name, *rest = place
    if name == ":" and isinstance(value, str):
        about, colon, text = value.rpartition(": ")
        return f"{about}{colon}{say(text)}"
    if not isinstance(value, dict):
        return value
    if name == "@":
        return _field(value)
    return {key: _put(one, rest) if name in (key, "*") else one for key, one in value.items()}


def _field(field: dict[str, Any]) -> dict[str, Any]:
    """Return a field of a form in the current language; its values stay."""
    texts = {key: say(field[key]) for key in ("title", "help", "unit", "heading") if field.get(key)}
    choices = [[value, say(label)] for value, label in field.get("choices") or ()]
    words = {
        word if word == "auto" else say(word): value
        for word, value in (field.get("words") or {}).items()
    }
    return {**field, **texts, "choices": choices, "words": words}
