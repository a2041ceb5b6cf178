"""The web process: our routes, gradio's pages behind them, the checks of `ui/security.py` in front.

It never trains, loads or generates: pages write to the queue and read from it, the chat host
answers. It imports no torch, and nothing is lost when it ends. Below a path of a reverse proxy,
which may pass the path on or not, redirects get it in front and the document carries it as
`data-root`, from which scripts make their addresses (`assets/core/dom.js`).
"""

import contextlib
import inspect
import os
import re
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

from jobs import supervisor
from jobs.actions.home import stop_if_idle
from jobs.http_server import Server
from jobs.job_queue import JobStore
from studio import offline
from studio.chat.lanes import sentence
from studio.errors import ServeError, StudioError
from studio.home import Home
from ui import security
from ui.compare_page import compare_routes
from ui.data_page import data_routes
from ui.file_transfer import download_routes, sweep
from ui.language import LANGUAGES, Language, page_script, with_titles
from ui.page_frame import FAVICON, PAGES, PageFrame
from ui.queue_routes import queue_routes
from ui.security import App, Message, Receive, Scope, Send
from ui.system_page import system_routes
from ui.train_page import train_routes

ASSETS = Path(__file__).parent / "assets"
SIZES = {"/gradio_api/upload": 0, "/api/data/upload": 64 * 1024**3}  # no page of ours uses gradio's
QUEUE_SECONDS = 1.0
QUEUE_INTERVALS = ("sleep_when_free", "progress_update_sleep_when_free")
_ROOT = re.compile(r"(/[A-Za-z0-9._~-]+)+")


def build_app(
    home: Home,
    *,
    hosts: Iterable[str] = security.LOOPBACK,
    token: str = "",
    port: int = 0,
    root: str = "",
) -> App:
    """Return the whole ASGI application for one home folder.

    Args:
        hosts: The `Host` names that are ours.
        token: Required of every request; none if empty.
        port: Where it listens, so that two studios have two cookies.
        root: The path below which a reverse proxy serves it.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(home.state / "uploads")  # it serves what is in there
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_MCP_SERVER"] = "False"
    import_gradio()
    store = JobStore(home)
    offline.apply(home)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, title="Adapter Studio")
    app.add_exception_handler(StudioError, sentence_of)
    app.add_exception_handler(RequestValidationError, wrong_request)
    for routes in (queue_routes, compare_routes, system_routes, data_routes, train_routes,
                   download_routes):  # fmt: skip
        app.include_router(routes(home, store))
    app.mount("/studio", Assets(directory=ASSETS))

    @app.get("/language/{name}.js", include_in_schema=False)
    def language(name: str) -> Response:
        known = {"cache-control": "max-age=31536000, immutable"} if name in LANGUAGES else None
        script = page_script(name) if known else ""
        return Response(script, 200 if known else 404, known, media_type="text/javascript")

    @app.get("/train", include_in_schema=False)
    def train() -> Response:  # the first page, under the name its link has
        return RedirectResponse("/")

    @app.get("/favicon.ico", include_in_schema=False)
    def icon() -> Response:
        return Response(FAVICON, media_type="image/svg+xml")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it does without node, which is meant so
        _mount(app, _pages(), root)
    inner: App = Language(security.SizeLimit(PageFrame(app, root), sizes=SIZES))
    inner = OfflineSwitch(inner, home)
    asked = security.TokenCheck(inner, token=token, port=port) if token else inner
    guarded = security.OriginCheck(asked, hosts=hosts)
    return Below(guarded, root) if root else guarded


class OfflineSwitch:
    """Let each request obey the offline switch, which another process may have moved."""

    def __init__(self, app: App, home: Home) -> None:
        self.app, self._home = app, home

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Apply the switch, then answer."""
        if scope["type"] == "http":
            offline.apply(self._home)
        await self.app(scope, receive, send)


class Below:
    """Take the root path off requests, and put it in front of redirects."""

    def __init__(self, app: App, root: str) -> None:
        self.app, self.root = app, root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on without the root path."""
        path = scope.get("path", "")
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if path == self.root or path.startswith(f"{self.root}/"):
            path = path[len(self.root) :] or "/"
            scope = {**scope, "path": path, "raw_path": path.encode()}

        async def prefixed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*map(self._header, message["headers"])]}
            await send(message)

        await self.app(scope, receive, prefixed)

    def _header(self, header: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
        name, value = header
        root = self.root.encode()
        is_ours = value.startswith(b"/") and not value.startswith((b"//", root + b"/"))
        return (name, root + value) if name.lower() == b"location" and is_ours else header


def sentence_of(_: Any, error: Exception) -> Any:
    """Return the web app's answer to a mistake of the user: its sentence as JSON."""
    assert isinstance(error, StudioError)
    text = with_titles(error.text, getattr(error, "titles", {}))
    shown = {"text": text, "field": getattr(error, "field", "")}
    return JSONResponse({"error": error.as_dict() | shown}, status_code=400)


def wrong_request(_: Any, error: Exception) -> Any:
    """Return the web app's answer to an invalid request: the wrong value, or an old page."""
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    text = "The page asked for something that does not exist; reload it."
    if fault["type"] not in ("missing", "extra_forbidden", "json_invalid"):
        text = sentence({**fault, "loc": fault["loc"][1:]})
    return JSONResponse({"error": {"kind": "request", "text": text}}, status_code=422)


class Assets(StaticFiles):
    """Our files: always revalidated, so that an upgrade is seen at once."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Return a file as the browser asks for it again at every page."""
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response


# -- gradio ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def without_stubs() -> Iterator[None]:
    """Hide source files from gradio inside the block; other callers find them as usual.

    Gradio parses the source of each of its components at every import to refresh `.pyi` files
    beside them, for editors; without, it is imported in half the time. It skips a component whose
    source file cannot be named.
    """
    usual = inspect.getfile

    def getfile(object: Any) -> str:  # the parameter's name in inspect
        if sys._getframe(1).f_globals.get("__name__") == "gradio.component_meta":
            raise OSError("no stubs are wanted")
        return usual(object)

    inspect.getfile = getfile
    try:
        yield
    finally:
        inspect.getfile = usual


def import_gradio() -> None:
    """Import gradio, quickly and without analytics."""
    with without_stubs():
        import gradio  # noqa: F401


def slow_down(pages: Any) -> None:
    """Let the queue of mounted `gr.Blocks` look for events once a second.

    Gradio polls it 1000 times a second (and progress 100 times), which is most of what an idle page
    costs. All our events bypass it (`queue=False`).
    """
    for name in QUEUE_INTERVALS:
        setattr(pages._queue, name, QUEUE_SECONDS)


def _pages() -> Any:
    import gradio as gr

    def draw(name: str) -> None:
        element = f"<studio-{name} class=s-page></studio-{name}>"
        gr.HTML(element, apply_default_css=False, padding=False)

    with gr.Blocks(
        analytics_enabled=False,
        title="Adapter Studio",
        fill_width=True,
    ) as pages:
        draw(PAGES[0].name)
    for page in PAGES[1:]:
        with pages.route(page.title, page.name, show_in_navbar=False):
            draw(page.name)
    return pages


def _mount(app: Any, pages: Any, root: str) -> None:
    import gradio as gr

    slow_down(pages)
    gr.mount_gradio_app(
        app,
        pages,
        path="",
        server_name="127.0.0.1",
        root_path=root or None,
        theme=gr.themes.Base(font=["Arial"], font_mono=["monospace"]),  # fetch no font
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        allowed_paths=[],
        show_error=False,
    )


# -- the server ------------------------------------------------------------------------------------


def serve(
    home: Home,
    *,
    host: str,
    port: int,
    allowed: list[str],
    root_path: str,
    on_ready: Callable[[str], None],
) -> None:
    """Serve the app's pages until interrupted; `port` 0 takes any free one.

    Args:
        host: Where to listen; anything but a loopback address asks for the home's token.
        allowed: Further names under which it may be reached.
        root_path: The path below which a reverse proxy serves it, such as `/studio`.
        on_ready: Called once with the page's address when it answers.

    Raises:
        ServeError: The address is not this machine's own, or the port is taken.
    """
    root = checked_root(root_path)
    listener = _listen(host, port)
    shown = security.shown_host(host)
    port = listener.getsockname()[1]
    address, token = f"http://{shown}:{port}", ""
    if not security.is_local(host):
        token = security.token_of(home)
        print(security.warning(host), file=sys.stderr, flush=True)
    threading.Thread(target=_wake_queue, args=(home, address), daemon=True).start()
    names = security.own_names(host, allowed)
    app = build_app(home, hosts=names, token=token, port=port, root=root)
    entrance = f"{address}/?token={token}" if token else address
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=2,
        lifespan="on",
        server_header=False,
    )
    with listener:
        on_end = partial(_end, home)
        Server(config, on_ready=partial(on_ready, entrance), on_end=on_end).run(sockets=[listener])


def _end(home: Home) -> None:
    with contextlib.suppress(StudioError, OSError):  # what goes on ends when it is idle
        stop_if_idle(home)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    if os.name != "nt":  # there it would let two studios share one port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ServeError(
            f"Port {port} on {host} cannot be used ({error.strerror}). "
            "Close the other program or choose another one, for example --port 0 for a free one."
        ) from None
    return listener


def _wake_queue(home: Home, address: str) -> None:
    with contextlib.closing(JobStore(home)) as store:
        store.announce("web", url=address)  # a supervisor stays while a page is there
        supervisor.ensure_running(home)
        sweep(store)


def checked_root(path: str) -> str:
    """Return the app's root path without a slash at its end; "" for none.

    Raises:
        ServeError: The path is invalid.
    """
    path = path.rstrip("/")
    if path and not _ROOT.fullmatch(path):
        raise ServeError(
            f'Invalid root path "{path[:80]}": give a path such as /studio, with letters, digits, '
            "dots and dashes."
        )
    return path
