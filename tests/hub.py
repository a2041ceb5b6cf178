"""A model hub on 127.0.0.1: what huggingface_hub asks of the real one, with every fault on order.

A `Repo` is a folder in memory. Files in LFS are redirected to a storage path, as the real hub
does, with ranges and etags. `Hub.fail` makes the next answers to a path fail.
"""

import contextlib
import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests import serving

LFS = (".safetensors", ".bin", ".gguf", ".parquet")
TOKEN = "hf_right"  # the only token that this hub knows
DENIED = {
    "gated": (403, "GatedRepo", "Access to this model is restricted: accept its licence."),
    "anonymous": (401, "GatedRepo", "Access to this model is restricted: log in."),
    "missing": (404, "RepoNotFound", "Repository not found"),
    "revision": (404, "RevisionNotFound", "Invalid rev id"),
    "entry": (404, "EntryNotFound", "Entry not found"),
    "token": (401, "", "Invalid credentials in Authorization header"),
}


@dataclass
class Repo:
    """One repository; `gated` needs the token, `moved_to` is its new name."""

    files: dict[str, bytes]
    gated: str | bool = False
    accepted: bool = True
    moved_to: str = ""
    license: str = "apache-2.0"
    downloads: int = 10
    tags: tuple[str, ...] = ()
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def sha(self) -> str:
        """The commit: a hash of all files."""
        digest = hashlib.sha1()
        for name, content in sorted(self.files.items()):
            digest.update(name.encode() + content)
        return digest.hexdigest()

    def etag(self, name: str) -> str:
        """The SHA-256 of a file in LFS, else its git hash."""
        content = self.files[name]
        if name.endswith(LFS):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def entry(self, name: str) -> dict[str, Any]:
        """A file as listings of the hub name it."""
        content, etag = self.files[name], self.etag(name)
        lfs = {"sha256": etag, "oid": etag, "size": len(content), "pointerSize": 134}
        return {"size": len(content), "blobId": etag[:40]} | (
            {"lfs": lfs} if name.endswith(LFS) else {}
        )

    def listing(self, folder: str, wanted: Collection[str], query: Any) -> list[dict[str, Any]]:
        """What `tree/…` answers of a folder and `paths-info/…` of the wanted paths."""
        folders = {one.rpartition("/")[0] for one in self.files} - {""}
        entries = [{"type": "file", "path": one, "oid": self.entry(one)["blobId"],
                    **self.entry(one)} for one in sorted(self.files)]  # fmt: skip
        entries += [{"type": "directory", "path": one, "oid": "0" * 40} for one in folders]
        deep = "recursive" in query and query["recursive"] != ["False"]
        return [
            one for one in entries
            if (one["path"] in wanted if wanted else one["path"].rpartition("/")[0] == folder
                or (deep and f"{one['path']}".startswith(f"{folder}/" if folder else "")))
        ]  # fmt: skip

    def info(self, name: str, *, blobs: bool = False) -> dict[str, Any]:
        """What `/api/models/…` answers."""
        config = json.loads(self.files.get("config.json", b"{}") or b"{}")
        known = {key: config[key] for key in ("architectures", "model_type") if key in config}
        known |= {"auto_map": config["auto_map"]} if "auto_map" in config else {}
        weights = [len(content) for file, content in self.files.items()
                   if file.endswith(".safetensors")]  # fmt: skip
        siblings = [
            {"rfilename": file} | (self.entry(file) if blobs else {}) for file in sorted(self.files)
        ]
        return {
            "_id": name, "id": name, "modelId": name, "author": name.partition("/")[0],
            "sha": self.sha, "lastModified": "2026-09-01T00:00:00.000Z", "private": False,
            "gated": self.gated, "disabled": False, "downloads": self.downloads, "likes": 1,
            "tags": [*self.tags, f"license:{self.license}"], "pipeline_tag": "text-generation",
            "library_name": "transformers", "createdAt": "2026-08-01T00:00:00.000Z",
            "config": known, "cardData": {"license": self.license} | self.card,
            "siblings": siblings,
            "safetensors": {"parameters": {"F32": sum(weights) // 4}, "total": sum(weights) // 4}
            if weights else None,
        }  # fmt: skip


NAME = "org/small"


def repo_of(folder: Path, **more: Any) -> Repo:
    """Return a repository with the files of a model folder."""
    return Repo({one.name: one.read_bytes() for one in folder.iterdir() if one.is_file()}, **more)


def dataset(num_rows: int) -> Repo:
    """Return a dataset of question and answer: a configuration of two splits, in Parquet."""
    import pyarrow
    from pyarrow import parquet

    files = {}
    for split, count in (("train", num_rows), ("test", 7)):
        rows = [{"question": f"What is {n} and {n}?", "answer": str(2 * n)} for n in range(count)]
        parquet.write_table(pyarrow.Table.from_pylist(rows), buffer := pyarrow.BufferOutputStream())
        files[f"main/{split}-0.parquet"] = buffer.getvalue().to_pybytes()
    parts = [{"split": split, "path": f"main/{split}-*"} for split in ("train", "test")]
    known = [{"name": "train", "num_examples": num_rows, "num_bytes": 40 * num_rows},
             {"name": "test", "num_examples": 7, "num_bytes": 280}]  # fmt: skip
    card = {"license": "mit", "configs": [{"config_name": "main", "data_files": parts}],
            "dataset_info": [{"config_name": "main", "splits": known}]}  # fmt: skip
    files["README.md"] = f"---\n{json.dumps(card)}\n---\n".encode()
    return Repo(files, card=card)


@dataclass
class Fault:
    """The answer to requests whose method and path match: a status, a cut, a stall, other bytes."""

    match: str
    status: int = 0
    cut_after: int = -1
    stall_after: int = -1
    spoil: bool = False
    times: int = 1_000_000
    headers: dict[str, str] = field(default_factory=dict)


class Hub:
    """The server; `asked` holds every request as (method, path, first byte of the range)."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.server = server
        self.repos: dict[str, Repo] = {}
        self.datasets: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.asked: list[tuple[str, str, int]] = []
        self.trusted: list[str] = []  # the paths that the token was sent to
        self.sent = 0
        self.takes_ranges = True
        self.lock = threading.Lock()
        self.closed = threading.Event()

    @property
    def url(self) -> str:
        """Its address, for `HF_ENDPOINT`."""
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def storage_url(self) -> str:
        """The address of the storage, which is another host as on the real hub."""
        return f"http://localhost:{self.server.server_port}"

    def fail(self, match: str, **how: Any) -> None:
        """Let requests fail whose "METHOD path" matches."""
        self.faults.append(Fault(match, **how))

    def fault_of(self, request: str) -> Fault | None:
        """Return the fault of a request, once less to go."""
        with self.lock:
            for one in self.faults:
                if one.times > 0 and re.search(one.match, request):
                    one.times -= 1
                    return one
        return None


class Handler(serving.Handler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        """Answer without content."""
        self.answer()

    def do_POST(self) -> None:
        """List some paths of a repository."""
        length = int(self.headers.get("Content-Length") or 0)
        asked = self.rfile.read(length).decode()
        paths = json.loads(asked)["paths"] if asked.startswith("{") else parse_qs(asked)["paths"]
        self.answer({*paths})

    def do_GET(self) -> None:
        """Answer."""
        self.answer()

    def answer(self, wanted: Collection[str] = ()) -> None:
        """Find what is asked for (all paths by default), and what should go wrong."""
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        path, query = unquote(urlsplit(self.path).path), parse_qs(urlsplit(self.path).query)
        first = int((re.findall(r"bytes=(\d+)", self.headers.get("Range", "")) or [0])[0])
        hub.asked.append((self.command, path, first))
        self.fault = hub.fault_of(f"{self.command} {path}")
        if self.fault and self.fault.status:
            return self.send(self.fault.status, b"{}", self.fault.headers)
        if bearer := self.headers.get("Authorization", ""):
            hub.trusted.append(path)
            if bearer != f"Bearer {TOKEN}":
                return self.deny("token")
        if path == "/api/whoami-v2":
            found = {"type": "user", "name": "me", "auth": {"type": "access_token"}}
            return self.json(found) if bearer else self.deny("token")
        self.kind = "datasets/" if re.match("/((api|storage)/)?datasets(/|$)", path) else ""
        known = hub.datasets if self.kind else hub.repos
        if path in ("/api/models", "/api/datasets"):
            return self.search(known, query)
        path = path.replace("/datasets/" if self.kind else "/api/models/",
                            "/" if self.kind else "/api/", 1)  # fmt: skip
        if match := re.fullmatch(r"/storage/(.+)/(\w+)", path):
            repo = known[match[1]]
            content = next(c for n, c in repo.files.items() if repo.etag(n) == match[2])
            return self.content(content, match[2], {})
        for pattern, reply in (
            (r"/api/(?P<id>.+?)(?:/revision/(?P<rev>[^/]+))?", self.info),
            (r"/(?P<id>.+?)/resolve/(?P<rev>[^/]+)/(?P<file>.+)", self.resolve),
        ):
            tree = re.fullmatch(
                r"/api/(?P<id>.+?)/(tree|paths-info)/(?P<rev>[^/]+)(?P<file>/.*)?", path
            )
            match = tree or re.fullmatch(pattern, path)
            if match is None:
                continue
            name, repo = match["id"], known.get(match["id"])
            if repo is None:
                return self.deny("missing")
            if repo.moved_to:
                moved = self.path.replace(name, repo.moved_to, 1)
                return self.send(307, b"", {"Location": moved})
            if match["rev"] not in (None, "main", repo.sha):
                return self.deny("revision")
            if tree:
                return self.json(repo.listing((match["file"] or "").strip("/"), wanted, query))
            return reply(name, repo, query, match.groupdict().get("file") or "")
        self.deny("entry")

    def search(self, known: dict[str, Repo], query: dict[str, list[str]]) -> None:
        """List repositories by text, most downloaded first."""
        words = (query.get("search") or [""])[0].lower()
        found = [(one.downloads, name, one) for name, one in known.items()
                 if words in name.lower() and not one.moved_to]  # fmt: skip
        order = sorted(found, key=lambda one: (-one[0], one[1]))
        self.json(
            [one.info(name) for _, name, one in order][: int((query.get("limit") or [99])[0])]
        )

    def info(self, name: str, repo: Repo, query: dict[str, list[str]], _: str) -> None:
        """Describe one repository; this is public where it is gated, too."""
        self.json(repo.info(name, blobs="blobs" in query))

    def resolve(self, name: str, repo: Repo, _: Any, file: str) -> None:
        """Answer with a file, or where it is stored."""
        if repo.gated and not self.headers.get("Authorization"):
            return self.deny("anonymous")
        if repo.gated and not repo.accepted:
            return self.deny("gated")
        if file not in repo.files:
            return self.deny("entry", {"X-Repo-Commit": repo.sha})
        etag, content = repo.etag(file), repo.files[file]
        known = {"X-Repo-Commit": repo.sha}
        if not file.endswith(LFS):
            return self.content(content, etag, known)
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        known |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content)),
                  "Location": f"{hub.storage_url}/storage/{self.kind}{name}/{etag}"}  # fmt: skip
        self.send(302, b"", known)

    def content(self, content: bytes, etag: str, more: dict[str, str]) -> None:
        """Send the bytes of a file from the first that was asked for."""
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "") * hub.takes_ranges)
        first = int(asked[1]) if asked else 0
        headers = more | {"ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        fault = self.fault or Fault("")
        sent = content[first : int(asked[2]) + 1 if asked and asked[2] else len(content)]
        if asked:
            headers["Content-Range"] = f"bytes {first}-{first + len(sent) - 1}/{len(content)}"
        if fault.spoil:
            sent = sent[:-1] + bytes([sent[-1] ^ 1])
        cut = max(fault.cut_after, fault.stall_after)
        self.send(206 if asked else 200, sent, headers, cut_after=cut)
        if fault.stall_after >= 0:
            hub.closed.wait()
        if self.command == "GET":
            hub.sent += len(sent) if fault.cut_after < 0 else fault.cut_after

    def json(self, value: Any) -> None:
        """Send a JSON value."""
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def deny(self, why: str, more: dict[str, str] | None = None) -> None:
        """Refuse as the hub does: a status, and its reason in headers."""
        status, code, text = DENIED[why]
        headers = {"X-Error-Code": code, "X-Error-Message": text} | (more or {})
        self.send(status, json.dumps({"error": text}).encode(), headers)

    def send(
        self, status: int, content: bytes, headers: dict[str, str], cut_after: int = -1
    ) -> None:
        """Send an answer, or only its first bytes before the connection breaks."""
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(content if cut_after < 0 else content[:cut_after])
        if cut_after >= 0:
            self.wfile.flush()
            self.close_connection = True


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """Run a hub while the block lasts."""
    with serving.serving(Handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client went away
        hub = server.hub = Hub(server)  # type: ignore[attr-defined]
        try:
            yield hub
        finally:
            hub.closed.set()


def environment(hub: Hub, cache: Path) -> dict[str, str]:
    """Return the variables with which another process uses this hub."""
    return {
        "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0",
        "HF_TOKEN_PATH": str(cache / "token"), "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_STORED_TOKENS_PATH": str(cache / "stored_tokens"),
        "HF_DATASETS_CACHE": str(cache / "datasets"),
    }  # fmt: skip


def use(monkeypatch: Any, hub: Hub, cache: Path) -> None:
    """Let the library in this process use the hub; it read its variables when it was imported."""
    from huggingface_hub import constants, file_download, hf_api
    from huggingface_hub.utils import _http

    for name, value in environment(hub, cache).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("studio.offline._GIVEN", "0")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        hub.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(cache / "stored_tokens"))
    if "datasets" in sys.modules:
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.url)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache / "datasets")
    impatient = SimpleNamespace(**vars(time) | {"sleep": lambda _: None})
    for module in (file_download, _http):
        monkeypatch.setattr(module, "time", impatient)
