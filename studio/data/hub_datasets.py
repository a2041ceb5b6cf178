"""Datasets on the hub: search them, look one up, load one through the `datasets` library.

The library retries for half a minute and logs each attempt. So one quick request comes first; if
the hub does not answer it, only downloaded datasets are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
from huggingface_hub import HfApi, constants, errors

from studio.data.conversation_records import Problem, Row
from studio.data.dataset_files import Origin
from studio.data.readers import data_suffix
from studio.data.readers.arrow import BATCH_ROWS, floats_in, rows_of
from studio.errors import DataError, InputError, Unreached, is_transient
from studio.models.hub_models import ANSWER_SECONDS, Repository, remote_file, summary
from studio.spec import DataSource

Sort = Literal["downloads", "likes", "last_modified", "trending_score"]

SCANNED_ROWS = 4096  # at once, of columns of numbers
_SWITCHING = threading.Lock()
_BEFORE: list[list[bool]] = []  # the libraries' settings; the last thread that ends takes the first


def is_reached(path: str) -> bool:
    """Ask the hub for a dataset, once; False where the hub is silent and it was downloaded before.

    Raises:
        DataError: The hub has none of that id, or refuses it.
        Unreached: It is silent, and none was downloaded.
    """
    try:
        HfApi().dataset_info(path, timeout=ANSWER_SECONDS)
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise _meaning(DataSource(path=path), error) from None
    except Exception as error:  # whatever the network, a proxy or the hub itself has
        if _is_downloaded(path):
            return False
        raise _meaning(DataSource(path=path), error) from None
    return True


def from_hub(source: DataSource, *, first: int = 0) -> Origin:
    """Load one split of a hub dataset (from the local cache when offline).

    Args:
        source: The id, configuration and split.
        first: Stream this many rows and download no more; 0 loads the split whole.

    Raises:
        DataError: It is not there, needs a subset, or wants to run code.
        Unreached: The hub does not answer.
    """
    load = _loaded if first else _loaded.__wrapped__
    minutes = int(time.monotonic() // 60)
    loaded = load(source.path, source.subset, source.split or "train", first, minutes)

    def batches(size: int, names: list[str]) -> Iterator[Any]:
        arrow = loaded.with_format("arrow")  # images stay as they are
        tables = arrow.select_columns(names).iter(batch_size=size)
        return (batch for table in tables for batch in table.to_batches())

    @cache  # a pass over all numbers, and the rows are read several times
    def whole() -> frozenset[str]:
        return floats_in(loaded.features.arrow_schema, partial(batches, SCANNED_ROWS)).whole()

    def rows() -> Iterator[Row | Problem]:
        schema = loaded.features.arrow_schema
        read = rows_of(schema, schema.names, whole())
        found = map(read, batches(BATCH_ROWS, schema.names))
        for number, values in enumerate(chain.from_iterable(found), 1):
            yield Row(number, values)

    name = "/".join(filter(None, [source.path, source.subset, source.split]))
    key = f"{name}@{loaded._fingerprint}"
    return Origin(name, (), False, rows, lambda: hashlib.sha256(key.encode()).hexdigest())


@lru_cache(maxsize=4)  # a page asks for the columns, a guess and the rows of one dataset
def _loaded(path: str, subset: str, split: str, first: int, _minutes: int) -> Any:
    datasets = _library()
    reached = is_reached(path)
    first = first if reached else 0  # what is downloaded is whole
    try:
        with _without_torch(), contextlib.nullcontext() if reached else _offline():
            loaded = datasets.load_dataset(
                path, subset or None, split=split, streaming=bool(first)
            )  # fmt: skip
            return _first_rows(loaded, first) if first else loaded
    except Exception as error:  # the library raises dozens of kinds, some of them undocumented
        raise _meaning(DataSource(path=path, subset=subset, split=split), error) from None


def _first_rows(streamed: Any, count: int) -> Any:
    """Return the first rows of a stream; images and sounds stay bytes, classes keep their names."""
    import datasets

    known = streamed.features or {}
    rows = list((streamed.decode(False) if known else streamed).take(count))
    made = datasets.Dataset.from_list(rows)
    classes = {name: known[name] for name in made.features if "ClassLabel(" in str(known.get(name))}
    return made.cast(datasets.Features({**made.features, **classes})) if classes else made


def to_fetch(source: DataSource) -> Repository | None:
    """Return the files that loading a dataset needs; None where only the library knows.

    Raises:
        DataError: The hub refuses it, or it wants to run code.
        Unreached: The hub does not answer.
    """
    if not is_reached(source.path):
        return None
    try:
        builder = _library().load_dataset_builder(source.path, source.subset or None)
        start = f"hf://datasets/{source.path}@"
        urls = [url for files in (builder.config.data_files or {}).values() for url in files]
        named = [url.removeprefix(start).partition("/") for url in urls if url.startswith(start)]
        if not named or len(named) < len(urls):
            return None
        info = HfApi().dataset_info(
            source.path, revision=named[0][0], files_metadata=True, timeout=ANSWER_SECONDS
        )
    except Exception as error:  # as above
        raise _meaning(source, error) from None
    wanted = {file for _, _, file in named}
    files = [remote_file(one) for one in info.siblings or () if one.rfilename in wanted]
    revision = str(info.sha)
    return Repository(
        id=info.id, kind="dataset", revision=revision, branch=revision, files=tuple(files)
    )


def _library() -> Any:
    """Return the library, silent."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    huggingface_hub.logging.set_verbosity_error()
    return datasets


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Keep the library from importing torch, which takes seconds and which no rows need."""
    import datasets

    datasets.config.TORCH_AVAILABLE = False
    try:
        yield
    finally:  # others in this process hand it tensors (lm-eval, the trainers measured beside ours)
        datasets.config.TORCH_AVAILABLE = True


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Let the libraries look only at what is downloaded, without a try of the network."""
    import datasets

    places: tuple[Any, Any] = (datasets.config, constants)
    with _SWITCHING:
        _BEFORE.append([place.HF_HUB_OFFLINE for place in places])
        for place in places:
            place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        with _SWITCHING:
            for place, value in zip(places, _BEFORE.pop(), strict=True):
                place.HF_HUB_OFFLINE = value


def _is_downloaded(path: str) -> bool:
    prepared = Path(_library().config.HF_DATASETS_CACHE)
    kept = Path(constants.HF_HUB_CACHE) / f"datasets--{path.replace('/', '--')}"
    return (prepared / path.replace("/", "___")).is_dir() or kept.is_dir()


def _unreached(path: str) -> Unreached:
    return Unreached(
        f'There is no file or folder "{path}", and the hub cannot be reached to look for a dataset '
        "of that name: check the spelling or the connection."
    )


def refused(path: str, error: Exception) -> InputError:
    """Return a failure of a search or look-up on the hub as a sentence."""
    found = _meaning(DataSource(path=path or "the hub"), error)
    if isinstance(found, Unreached):
        return Unreached(
            "The hub cannot be reached: check the connection, or `studio offline --off` where this "
            "studio is offline."
        )
    return found


def _meaning(source: DataSource, error: Exception) -> InputError:
    if is_transient(error):
        return _unreached(source.path)
    unknown = errors.RepositoryNotFoundError | errors.HFValidationError
    if isinstance(error, unknown) and not isinstance(error, errors.GatedRepoError):
        return DataError(
            f'"{source.path}" is not a file or folder here, nor an imported dataset, nor a dataset '
            "on the hub: check the spelling, or search the hub."
        )
    text = str(error).split("\n")[0][:200]
    name = type(error).__name__
    known = f'The hub dataset "{source.path}"'
    if "BuilderConfig" in text or "Config name is missing" in text:
        return DataError(f"{known} has several subsets: {text}")
    if "Unknown split" in text or "split" in text.lower():
        return DataError(f'{known} has no split "{source.split}": {text}')
    if "script" in text.lower():
        return DataError(f"{known} wants to run code, which is refused.")
    if "Gated" in name or "401" in text or "403" in text:
        return DataError(f"{known} needs permission: `studio models token --token -`.")
    if "reach" in text or "offline" in text:
        return _unreached(source.path)
    return DataError(f'There is no file, folder or hub dataset "{source.path}" ({name}: {text}).')


def search(words: str, *, sort: Sort = "downloads", limit: int = 30) -> list[dict[str, Any]]:
    """Return datasets that match some words.

    Raises:
        Unreached: The hub does not answer.
    """
    try:
        found = list(HfApi().list_datasets(search=words.strip() or None, sort=sort, limit=limit))
    except Exception as error:  # the library raises dozens of kinds
        raise refused(words, error) from None
    return [summary(info) for info in found]


def look_up(name: str) -> dict[str, Any]:
    """Return a dataset's configurations and splits with rows and bytes, where its card has them.

    Raises:
        DataError: The hub does not have it, or refuses it.
        Unreached: The hub does not answer.
    """
    try:
        info = HfApi().dataset_info(name, files_metadata=True, timeout=ANSWER_SECONDS)
    except Exception as error:  # as above
        raise refused(name, error) from None
    files = [
        one for one in info.siblings or ()
        if data_suffix(one.rfilename) and not one.rfilename.startswith(("README", "LICENSE"))
    ]  # fmt: skip
    return summary(info) | {
        "revision": info.sha, "files": len(files), "bytes": sum(one.size or 0 for one in files),
        "parts": [*_parts(info.card_data or {})],
    }  # fmt: skip


def _parts(card: Any) -> Iterable[dict[str, Any]]:
    """Yield each split of each configuration; `rows` and `bytes` are None where unknown."""
    known = card.get("dataset_info") or []
    known = [known] if isinstance(known, dict) else known
    described = {str(one.get("config_name") or "default"): one for one in known}
    for name, one in described.items():
        for split in one.get("splits") or ():
            yield {
                "subset": name, "split": str(split.get("name")), "rows": split.get("num_examples"),
                "bytes": split.get("num_bytes"),
            }  # fmt: skip
    for one in card.get("configs") or ():
        name, files = str(one.get("config_name") or "default"), one.get("data_files")
        if name not in described and isinstance(files, list):
            for part in files:
                split = part.get("split", "train") if isinstance(part, dict) else "train"
                yield {"subset": name, "split": str(split), "rows": None, "bytes": None}
