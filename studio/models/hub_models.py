"""Models on the hub and in its cache: search, look at one, name failures; sizes, deletion.

`huggingface_hub` sends every request, so its mirrors (`HF_ENDPOINT`), proxies, token and offline
mode act here as in other tools. A failure of it becomes one sentence with what to do next.

Layout of the cache (that library's): `models--OWNER--NAME/{blobs/ETAG, refs/BRANCH,
snapshots/COMMIT/FILE}`, where the files of a snapshot are links to blobs.
"""

import contextlib
import json
import logging
import re
import shutil
import threading
import time
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
from huggingface_hub import constants, utils

from studio.errors import DiskFull, ModelError, StudioError, Unreached, is_disk_full, is_transient
from studio.models.model_files import checked_architecture, weight_files

logger = logging.getLogger(__name__)
ANSWER_SECONDS = 10.0
PROBE_SECONDS, PROBE_FRESH_SECONDS = 0.5, 60.0
_probes: dict[str, tuple[float, bool]] = {}  # by hub: when it was asked, whether it answered
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
    "sentencepiece.bpe.model",
)  # fmt: skip
WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
WEIGHTS, PICKLES = ".safetensors", (".bin", ".pt", ".pth", ".ckpt")
MOST_CONFIG_BYTES = 10_000_000
PARTIAL = ".studio.incomplete"  # ending of a blob that has arrived in part
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ADDRESS = re.compile(
    r"https?://[^/]+/(?:models/)?(?P<id>[\w.-]+/[\w.-]+)(?:/tree/(?P<rev>[^/?#]+))?"
)
_OLLAMA = re.compile(r"[\w.-]+:[\w.-]+")  # llama3.2:1b


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository; `etag` is its SHA-256 if `in_lfs`, else its git hash."""

    name: str
    size: int
    etag: str
    in_lfs: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """A model on the hub at one commit; `config` is partial where the hub keeps it gated.

    The files of a dataset are fetched as one, too (`kind`). `why_not` is the reason why it cannot
    be trained here, empty where it can.
    """

    id: str
    revision: str
    branch: str = "main"
    kind: Literal["model", "dataset"] = "model"
    config: dict[str, Any] = field(default_factory=dict)
    files: tuple[RemoteFile, ...] = ()
    parameters: int = 0
    license: str = ""
    gated: bool = False
    downloads: int = 0
    likes: int = 0
    updated: str = ""
    why_not: str = ""

    @property
    def size_bytes(self) -> int:
        """Bytes of all files that are fetched."""
        return sum(file.size for file in self.files)


def read_name(text: str) -> tuple[str, str]:
    """Return the hub id and revision of what a user pasted: an id, or the address of its page.

    Raises:
        ModelError: It is a name of Ollama, a GGUF file, or not a name of the hub.
    """
    text = text.strip()
    if match := _ADDRESS.match(text):
        return match["id"], match["rev"] or ""
    name = text.rpartition("/")[2].lower()
    if text.startswith(("ollama:", "ollama/", "ollama run ")) or _OLLAMA.fullmatch(text):
        raise ModelError(
            f'"{text}" is a name of Ollama, whose models are quantised for answering and cannot be '
            "trained: search for the original model on the hub and take its safetensors."
        )
    if name.endswith((".gguf", "-gguf")):
        original = re.sub(r"(?i)-gguf$", "", text) if "/" in text else ""
        raise ModelError(
            f'"{text}" is in GGUF, which is quantised for answering and cannot be trained: take '
            f"the original model in safetensors{f', perhaps {original}' if original else ''}."
        )
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text, re.ASCII):
        raise ModelError(f'"{text[:80]}" is not a model of the hub: write OWNER/NAME.')
    return text, ""


def endpoint() -> str:
    """Return the address of the hub or its mirror, for sentences: without a password in it."""
    return re.sub(r"(?<=//)[^/@]*@", "", str(constants.ENDPOINT))


def is_reachable() -> bool:
    """Return True if the hub answers within half a second; it is asked at most once a minute.

    A later answer counts from the next call on.
    """
    hub = str(constants.ENDPOINT)
    when, found = _probes.get(hub, (0.0, False))
    if when and time.monotonic() - when < PROBE_FRESH_SECONDS:
        return found
    _probes[hub] = (time.monotonic(), False)
    ended = threading.Event()

    def ask() -> None:
        with contextlib.suppress(Exception):  # the library raises dozens of kinds
            huggingface_hub.get_session().head(hub, timeout=ANSWER_SECONDS)
            _probes[hub] = (time.monotonic(), True)
        ended.set()

    threading.Thread(target=ask, daemon=True).start()  # a resolver of names has no time limit
    ended.wait(PROBE_SECONDS)
    return _probes[hub][1]


def headers() -> dict[str, str]:
    """Return the headers of a request, the stored token among them."""
    return dict(utils.build_hf_headers())  # type: ignore[attr-defined]


def look_up(name: str, revision: str = "") -> Repository:
    """Return a model's facts, its files and the commit that a branch stands for.

    Raises:
        ModelError: The hub does not have it, or refuses it.
        Unreached: The hub does not answer.
    """
    try:
        info = huggingface_hub.HfApi().model_info(
            name, revision=revision or None, files_metadata=True, timeout=ANSWER_SECONDS
        )
        config = _whole_config(info)
    except Exception as error:  # the library raises dozens of kinds
        raise refused(name, error, revision) from None
    return _repository(info, config, branch=revision or "main")


def search(
    words: str, *, sort: Literal["downloads", "likes", "last_modified", "trending_score"],
    limit: int = 30,
) -> list[Repository]:  # fmt: skip
    """Return models that match some words, without their files.

    Raises:
        Unreached: The hub does not answer.
    """
    wanted: Any = ["config", "safetensors", "downloads", "likes", "gated", "lastModified", "tags",
                   "cardData", "sha"]  # fmt: skip
    try:
        found = huggingface_hub.HfApi().list_models(
            search=words.strip() or None, pipeline_tag="text-generation", sort=sort, limit=limit,
            expand=wanted,
        )  # fmt: skip
        return [_repository(info, info.config or {}, listed=True) for info in found]
    except Exception as error:  # as above
        raise refused("", error) from None


def _whole_config(info: Any) -> dict[str, Any]:
    """Return `config.json` of the commit, or what the hub lists of it where it is gated."""
    names = {one.rfilename: one.size or 0 for one in info.siblings or ()}
    if not 0 < names.get("config.json", 0) < MOST_CONFIG_BYTES:
        return {}
    url = huggingface_hub.hf_hub_url(info.id, "config.json", revision=info.sha)
    answer = huggingface_hub.get_session().get(
        url, headers=headers(), timeout=ANSWER_SECONDS, follow_redirects=True
    )
    if answer.status_code in (401, 403) and info.gated:
        return dict(info.config or {})
    huggingface_hub.hf_raise_for_status(answer)
    config = json.loads(answer.content)
    return config if isinstance(config, dict) else {}


def _repository(
    info: Any, config: dict[str, Any], *, branch: str = "main", listed: bool = False
) -> Repository:
    total = info.safetensors.total if info.safetensors else 0
    return Repository(
        **summary(info), revision=info.sha or "", branch=branch, config=config,
        files=() if listed else _wanted(info.siblings or ()), parameters=int(total or 0),
        why_not=_why_not(info, config, listed=listed),
    )  # fmt: skip


def summary(info: Any) -> dict[str, Any]:
    """Return what lists show of a model or dataset, as the hub's library describes it."""
    card = info.card_data or {}
    tagged = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
    license = str(card.get("license") or next(iter(tagged), ""))
    if license == "other":
        license = str(card.get("license_name") or license)
    return {
        "id": info.id, "downloads": info.downloads or 0, "likes": info.likes or 0,
        "license": license, "gated": bool(info.gated),
        "updated": info.last_modified.isoformat() if info.last_modified else "",
    }  # fmt: skip


def _wanted(siblings: Any) -> tuple[RemoteFile, ...]:
    """Return the files that a run needs: no pickles, no code, nothing in folders."""
    return tuple(
        remote_file(one) for one in siblings
        if not {*"/\\"} & {*one.rfilename} and any(fnmatch(one.rfilename, p) for p in WANTED)
    )  # fmt: skip


def remote_file(one: Any) -> RemoteFile:
    """Return a file as the hub's library lists it.

    Raises:
        ModelError: It has no hash to check a download by.
    """
    etag = str((one.lfs.sha256 if one.lfs else one.blob_id) or "")
    if not re.fullmatch(r"[0-9a-f]{64}" if one.lfs else r"[0-9a-f]{40}", etag):
        raise ModelError(
            f"The hub names no hash of {one.rfilename}, so its download could not be "
            "checked: use another mirror."
        )
    return RemoteFile(one.rfilename, one.size or 0, etag, bool(one.lfs))


def _why_not(info: Any, config: dict[str, Any], *, listed: bool) -> str:
    names = [one.rfilename for one in info.siblings or ()]
    if listed:  # without files: the hub counts the parameters of safetensors only
        has_weights = info.safetensors is not None
    else:
        has_weights = any(name.endswith(WEIGHTS) for name in names if "/" not in name)
    if not has_weights:
        if any(name.endswith(".gguf") for name in names) or "gguf" in (info.tags or ()):
            return f"{info.id} is in GGUF, which cannot be trained: take the original model."
        if any(name.endswith(PICKLES) for name in names):
            return (
                f"{info.id} holds only pickled weights, which can run code and are never opened: "
                "choose a repository with safetensors."
            )
        return f"{info.id} has no weights in safetensors."
    if not listed and not set(names) & set(TOKENIZER_FILES):
        return f"{info.id} has no tokenizer: choose the original model."
    try:
        checked_architecture(info.id, config)
    except ModelError as error:
        return error.text
    return ""


def refused(name: str, error: Exception, revision: str = "", kind: str = "model") -> StudioError:
    """Return a failure of the hub's library as an error for the user; `name` may be empty."""
    from huggingface_hub import errors  # takes longer to load than the library itself

    label = f'The {kind} "{name}"'
    status = getattr(getattr(error, "response", None), "status_code", 0)
    said = str(getattr(getattr(error, "response", None), "headers", {}).get("X-Error-Message", ""))
    if isinstance(error, StudioError):
        return error
    if is_disk_full(error):
        return DiskFull(
            f'The disk ran full while the {kind} "{name}" was downloaded: free some room, then try '
            "again; what has arrived is kept."
        )
    if isinstance(error, errors.GatedRepoError):
        page = f"{endpoint()}/{name}"
        if status == 403 or huggingface_hub.get_token():
            return ModelError(
                f"{label} is gated, and your account has no access yet: accept its licence on "
                f"{page}, wait until it is granted, then try again."
            )
        return ModelError(
            f"{label} is gated: 1. accept its licence on {page}, 2. make a token with read access "
            f"on {endpoint()}/settings/tokens, 3. enter it on the Models page or with "
            "`studio models token --token -`."
        )
    if status == 401 and "Invalid credentials" in said:
        return ModelError(
            "The hub refuses the stored token, which is wrong or was revoked: enter a new one on "
            "the Models page or with `studio models token --token -`."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(f'{label} has no revision "{revision}".')
    unknown = errors.RepositoryNotFoundError | errors.HFValidationError
    if isinstance(error, unknown) or status in (401, 404):
        return ModelError(
            f"{label} is neither a folder here nor a {kind} on the hub: check the spelling. A "
            f"private {kind} needs a token."
        )
    if status == 403:
        return ModelError(f"{label} is closed to your token (403): its owner must grant access.")
    if status == 429:
        return Unreached(
            "The hub has had too many requests from here (429): wait a few minutes, then try "
            "again; what has arrived is kept."
        )
    if status >= 500:
        return Unreached(
            f"The hub has a fault of its own (status {status}): try again later; what has arrived "
            "is kept."
        )
    if not name and is_transient(error):
        return Unreached(f"The hub cannot be reached ({_offline()}): check the connection.")
    if isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        return Unreached(
            f"{label} is not a folder here, is not downloaded, and the hub cannot be reached "
            f"({_offline()}): check the spelling or the connection."
        )
    logger.warning("%s: %r", label, error.__cause__ or error)
    if is_transient(error):
        return Unreached(
            f"{label} cannot be fetched: the hub cannot be reached, or stopped answering. Check "
            "the connection, then try again; what has arrived is kept."
        )
    fault = getattr(error, "strerror", None) or "the log says why"
    return ModelError(f"{label} cannot be fetched: {fault}.")


def use_token(token: str, *, forget: bool = False) -> dict[str, Any]:
    """Store a token with the hub's library after asking whose it is, or remove it.

    Returns:
        `account`, the name of its owner (empty where there is none), and `page`, where tokens are
        made. The token itself is never returned.

    Raises:
        ModelError: The hub does not know the token.
        Unreached: The hub does not answer.
    """
    page = f"{endpoint()}/settings/tokens"
    unknown = ModelError(
        f"The hub does not know this token: copy it whole from {page}, where it begins with hf_."
    )
    if token and not re.fullmatch(r"[\w.-]{1,200}", token, re.ASCII):
        raise unknown  # without a word of what was pasted
    try:
        if forget:
            huggingface_hub.logout()
        elif token:
            huggingface_hub.login(token=token, add_to_git_credential=False)
        known = huggingface_hub.get_token()
        account = huggingface_hub.HfApi().whoami(token=known)["name"] if known else ""
    except Exception as error:  # the library raises dozens of kinds
        status = getattr(getattr(error, "response", None), "status_code", 0)
        cause = getattr(getattr(error.__cause__, "response", None), "status_code", 0)
        if 401 in (status, cause) or isinstance(error, ValueError):
            raise unknown from None
        raise refused("", error) from None
    return {"account": account, "page": page}


def _offline() -> str:
    return "this studio is offline" if constants.is_offline_mode() else "no answer"


# -- the cache -------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Return the hub's cache."""
    return Path(constants.HF_HUB_CACHE)


def repository_folder(name: str, kind: str = "model") -> Path:
    """Return the folder of a model, or of another kind of repository, in the cache."""
    return cache_folder() / f"{kind}s--{name.replace('/', '--')}"


def ref_file(name: str, branch: str, kind: str = "model") -> Path:
    """Return the file that notes the commit of a branch or tag.

    Raises:
        ModelError: The name leads out of the model's folder.
    """
    if not branch or re.search(r"[\\\0:]", branch) or {"", ".", ".."} & set(branch.split("/")):
        raise ModelError(f'"{branch[:80]}" is not a revision: give a branch, tag or commit.')
    return repository_folder(name, kind) / "refs" / branch


def linking_mark(name: str, commit: str, kind: str = "model") -> Path:
    """Return the file that is there while a snapshot's links are made, and after a kill then."""
    return cache_folder() / ".locks" / repository_folder(name, kind).name / f"{commit}.linking"


def cached(name: str, revision: str = "") -> Path | None:
    """Return the snapshot of a model if all of it is here, without asking the hub."""
    folder = repository_folder(name)
    commit = revision if _COMMIT.fullmatch(revision) else ""
    if not commit:
        with contextlib.suppress(OSError, ValueError, ModelError):
            commit = ref_file(name, revision or "main").read_text(encoding="utf-8").strip()
    found = [folder / "snapshots" / commit] if commit else []
    if not commit and not revision:  # fetched by commit only: the newest
        found = sorted((folder / "snapshots").glob("*"), key=lambda p: p.stat().st_mtime)
    if not found or linking_mark(name, found[-1].name).exists():
        return None
    return found[-1] if is_whole(found[-1]) else None


def is_whole(snapshot: Path) -> bool:
    """Return True if configuration, tokenizer and every weight file of a model are there."""
    if not any((snapshot / name).is_file() for name in TOKENIZER_FILES):
        return False
    try:
        return (snapshot / "config.json").is_file() and bool(weight_files(snapshot))
    except ModelError:
        return False


def size_on_disk(name: str) -> int:
    """Return the bytes of a model's blobs, of those in part, and of copies where links fail."""
    folder = repository_folder(name)
    with contextlib.suppress(OSError):
        found = [*(folder / "blobs").glob("*"), *(folder / "snapshots").rglob("*")]
        return sum(one.stat().st_size for one in found if one.is_file() and not one.is_symlink())
    return 0


def remove_from_cache(name: str) -> int:
    """Delete a model from the cache, every revision of it; return the bytes that are free again.

    Raises:
        ModelError: It is not in the cache, or cannot be deleted.
    """
    folder = repository_folder(name)
    if not folder.is_dir():
        raise ModelError(f'"{name}" is not in the hub\'s cache: `studio models` lists what is.')
    size = size_on_disk(name)
    try:
        shutil.rmtree(folder)
        for mark in linking_mark(name, "x").parent.glob("*.linking"):
            mark.unlink(missing_ok=True)
    except OSError as error:
        why = error.strerror or "it is a link"
        raise ModelError(f'"{name}" cannot be deleted from {folder} ({why}).') from None
    return size
