"""The table of pages, and the frame of each before gradio starts: colours, theme, bar on top.

A page is one element of `assets/<page>/<page>.js`, which registers it; `SHEETS` lists the
stylesheets. Gradio writes the HTML document and fills it only once its scripts run;
a stored theme applied there would flash. This pure ASGI layer edits the document as it leaves: the
colour tokens and a four-line script that decides light or dark come first in the head, our
stylesheet and module follow, and the bar with the navigation is there from the first paint on. It
edits HTML documents only.
"""

import re
from dataclasses import dataclass
from html import escape

from studio import hardware
from ui.language import LANGUAGES, current, say, script_address, tag
from ui.security import App, HeldAnswer, Message, Receive, Scope, Send
from ui.theme import tokens_css


@dataclass(frozen=True, slots=True)
class Page:
    """One page; `name` is its folder in `assets` and its address below `/`."""

    title: str

    @property
    def name(self) -> str:
        """Folder and script."""
        return self.title.lower()

    @property
    def address(self) -> str:
        """Path in the browser; the first page is `/`."""
        return "/" if self is PAGES[0] else f"/{self.name}"


PAGES = (
    Page("Train"),
    Page("Runs"),
    Page("Compare"),
    Page("Adapters"),
    Page("Results"),
    Page("Models"),
    Page("Data"),
    Page("System"),
)


def page_at(path: str) -> Page | None:
    """Return the page at a path of the address, or None."""
    return next((page for page in PAGES if page.address == "/" + path.strip("/")), None)


BOOT = """(function(){
var root=document.documentElement,key='studio.theme';
var dark=matchMedia('(prefers-color-scheme: dark)');
function read(){try{return localStorage.getItem(key)}catch(e){return null}}
function apply(){var d=(read()||(dark.matches?'dark':'light'))==='dark';
[root,document.body].forEach(function(n){if(n&&n.classList.contains('dark')!==d)
n.classList.toggle('dark',d)})}
window.studioTheme=function(next){try{localStorage.setItem(key,next)}catch(e){}apply();
dispatchEvent(new Event('studio:theme'))};
apply();dark.addEventListener('change',function(){apply();
dispatchEvent(new Event('studio:theme'))});
new MutationObserver(apply).observe(root,{attributes:true,attributeFilter:['class'],subtree:false});
document.addEventListener('DOMContentLoaded',function(){apply();
new MutationObserver(apply).observe(document.body,{attributes:true,attributeFilter:['class']})});
})()"""

MARK = (
    '<svg viewBox="0 0 20 20" width="20" height="20" aria-hidden="true">'
    '<rect x="1" y="1" width="18" height="18" rx="5" fill="var(--s-accent-fill)"/>'
    '<path d="M5 14.5V5.5M15 14.5V5.5" stroke="#fff" stroke-width="1.6" stroke-linecap="round"/>'
    '<path d="M5 7.5l10 5M5 12.5l10-5" stroke="#fff" stroke-opacity=".65" stroke-width="1.6"/>'
    "</svg>"
)
FAVICON = MARK.replace("var(--s-accent-fill)", "#3350cf").replace(
    "<svg ", '<svg xmlns="http://www.w3.org/2000/svg" '
)
SUN = (
    '<svg viewBox="0 0 16 16" width="16" height="16" aria-hidden="true" fill="none" '
    'stroke="currentColor" stroke-width="1.4" stroke-linecap="round">'
    '<circle cx="8" cy="8" r="5.6"/><path d="M8 2.4a5.6 5.6 0 0 1 0 11.2z" fill="currentColor"/>'
    "</svg>"
)


def lost_page() -> str:
    """Return the page at an address that does not exist."""
    return (
        '<!doctype html><html lang="en"><head></head><body><main class="s-welcome"><h1>'
        f"{say('There is no such page')}</h1>"
        f"<p>{say('The address has a typing error, or comes from another version.')}</p>"
        f'<a class="s-button s-primary" href="/">{say("Go to the first page")}</a>'
        "</main></body></html>"
    )


SHEETS = (
    "core/base", "train/train", "runs/runs", "compare/compare", "adapters/adapters", "data/data",
    "models/models",
)  # fmt: skip
HEAD = (
    f"<style>{tokens_css()}</style><script>{BOOT}</script>"
    '<link rel="icon" href="/favicon.ico" type="image/svg+xml">'
    '<link rel="manifest" href="/studio/manifest.json" crossorigin="use-credentials">'
    '<meta name="theme-color" content="#ffffff" media="(prefers-color-scheme: light)">'
    '<meta name="theme-color" content="#1a1b19" media="(prefers-color-scheme: dark)">'
    + "".join(f'<link rel="stylesheet" href="/studio/{name}.css">' for name in SHEETS)
    + '<script type="module" src="/studio/main.js"></script>'
)


class PageFrame:
    """Edit HTML documents on their way out; everything else passes untouched."""

    def __init__(self, app: App, root: str = "") -> None:
        self.app, self.root = app, root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hold an HTML response back until it is whole, then send the framed one."""
        if scope["type"] != "http" or scope["method"] not in {"GET", "HEAD"}:
            await self.app(scope, receive, send)
            return
        # The user opened an address, not a script.
        navigates, lost = (b"sec-fetch-dest", b"document") in scope["headers"], ""

        def begin(message: Message) -> Message | None:
            nonlocal lost
            headers = [one for one in message["headers"] if one[0] != b"cache-control"]
            if message["status"] == 404 and navigates:
                lost, headers = lost_page(), [(b"content-type", b"text/html; charset=utf-8")]
            elif not dict(headers).get(b"content-type", b"").startswith(b"text/html"):
                return None
            return {**message, "headers": [*headers, (b"cache-control", b"no-store")]}

        async def rewrite(body: bytes) -> bytes:
            html = lost or body.decode("utf-8")
            return document(html, scope["path"], self.root).encode() if html else b""

        await self.app(scope, receive, HeldAnswer(send, begin, rewrite).send)


def document(html: str, path: str, root: str = "") -> str:
    """Return gradio's HTML in our page's frame (head and bar), without social cards.

    `path` is its address without `root`, the path below which a reverse proxy serves it.
    """
    html = re.sub(r'\s*<meta\s+(?:property="og:|name="twitter:)[^>]*>', "", html)
    html = re.sub(r'\s*<link rel="manifest"[^>]*>', "", html)  # gradio's; ours is in HEAD
    html = html.replace('control_page_title="true"', 'control_page_title="false"', 1)
    page = page_at(path)
    head = f"<title>{f'{say(page.title)} · ' if page else ''}Adapter Studio</title>{HEAD}"
    if (language := current.get()) != "en":  # before the modules, which look up texts at once
        head = head.replace(
            "<script", f'<script src="{script_address(language)}"></script><script', 1
        )
        # Gradio sets the language of the whole document to the browser's own.
        html = html.replace("<body", f'<body lang="{tag(language)}"', 1)
    if page:
        head += f'<link rel="modulepreload" href="/studio/{page.name}/{page.name}.js">'
    top = bar(path)
    if root:
        head, top = (re.sub(r'((?:href|src)=")/', rf"\1{root}/", ours) for ours in (head, top))
        html = html.replace("<html", f'<html data-root="{root}"', 1)
        html = html.replace('href="/"', f'href="{root}/"')
    html = html.replace("<head>", f"<head>{head}", 1)
    return re.sub(r"(<body[^>]*>)", lambda match: match[1] + top, html, count=1)


def bar(path: str) -> str:
    """Return the bar on top: mark, pages, what the queue does, the theme switch."""
    here = page_at(path)
    links = "".join(
        f'<a href="{page.address}"{" aria-current=page" if page is here else ""}>'
        f"{escape(say(page.title))}</a>"
        for page in PAGES
    )
    other = next(name for name in LANGUAGES if name != current.get())
    return (
        f'<header class="s-bar"><a class="s-skip" href="#">{say("Skip to the page")}</a>'
        f'<a class="s-brand" href="/">{MARK}<span>Adapter Studio</span></a>'
        f'<nav aria-label="{say("Pages")}">{links}</nav>'
        '<a class="s-pulse" href="/runs" data-testid="pulse" aria-live="polite"></a>'
        f'<button class="s-icon" id="s-language" type="button" lang="{tag(other)}" '
        f'data-language="{other}" aria-label="{LANGUAGES[other]}" title="{LANGUAGES[other]}">'
        f"{LANGUAGES[other]}</button>"
        f'<button class="s-icon" id="s-help" type="button" title="{say("Help")}" '
        f'aria-label="{say("Help")}">?</button>'
        f'<button class="s-icon" id="s-theme" type="button" title="{say("Light or dark")}" '
        f'aria-label="{say("Switch between light and dark")}">{SUN}</button></header>'
        f"{_gpu_notice()}"
    )


def _gpu_notice() -> str:
    """Return a line under the bar while runs use the CPU because torch cannot use the GPU."""
    blocked = hardware.blocked()
    if not blocked or len(hardware.devices()) > 1:
        return ""
    card = blocked[0]
    command = f" <code>{escape(card.command)}</code>" if card.command else ""
    return (
        '<p class="s-notice" role="status" data-testid="gpu-notice">'
        f"{say(f'Runs use the CPU: {escape(card.label)} cannot be used.')} "
        f"{escape(say(card.why))}{command}</p>"
    )
