"""`studio bench data`: how fast rows are checked, tokenised, cached and imported, in what memory.

The tokenizer alone encodes the very same texts in the same batches, in turns with preparation. What
our part costs is measured by itself, on a tokenizer that has its answers ready: as a difference of
two figures ten times as large it would be noise. The import runs in a process of its own, with its
own peak, and first: a child's peak begins with what its parent held.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, cast

ROUNDS, PART_BYTES = 3, 4_000_000
IMPORT = """
import json, resource, sys, time
from studio.data.importing import import_dataset
from studio.home import open_home
from studio.spec import DataSource
start = time.perf_counter()
made = import_dataset(open_home(sys.argv[2]), DataSource(path=sys.argv[1]))
print(json.dumps({
    "seconds": time.perf_counter() - start,
    "rows": made.snapshot.meta.rows,
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}))
"""


def bench_data(
    *, file: str = "", model: str = "starter", template: str = "auto", megabytes: int = 32
) -> list[dict[str, Any]]:
    """Measure on a jsonl file, or on made conversations of `megabytes` MB."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the figures are per core
    with tempfile.TemporaryDirectory() as folder:
        path = Path(file) if file else _made(Path(folder) / "made.jsonl", megabytes)
        size = path.stat().st_size / 1e6
        imported = _import(path, Path(folder))
        checked = _check(path)
        figures = [
            {"name": "check", "value": size / checked, "unit": "MB/s", "bar": 20},
            *_tokenise(path, model, template, Path(folder)),
            *imported,
        ]
    return figures


class _Recorded:
    """A tokenizer that remembers what it was asked to encode."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.batches: list[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.core, name)

    def encode_batch(self, texts: list[str], **options: Any) -> Any:
        """Encode, and keep the texts."""
        self.batches.append(texts)
        return self.core.encode_batch(texts, **options)


class _Ready(_Recorded):
    """A tokenizer that has every answer ready, in the order in which it is asked."""

    def __init__(self, core: Any, batches: list[list[str]]) -> None:
        super().__init__(core)
        self.answers = [core.encode_batch(texts, add_special_tokens=False) for texts in batches]
        self._next = 0

    def encode_batch(self, texts: list[str], **options: Any) -> Any:
        """Give the next answer, and begin anew behind the last."""
        answer = self.answers[self._next]
        self._next = (self._next + 1) % len(self.answers)
        return answer


def _made(path: Path, megabytes: int) -> Path:
    # Words of many lengths, so that the tokenizer's own cache does not answer everything.
    import random

    rng = random.Random(0)
    words = ["".join(rng.choices("aeioulnrstdmkp", k=rng.randint(1, 9))) for _ in range(20_000)]
    written = 0
    with path.open("w", encoding="utf-8") as handle:
        while written < megabytes * 1_000_000:
            ask, answer = (" ".join(rng.choices(words, k=rng.randint(8, 80))) for _ in range(2))
            line = json.dumps({"question": f"{ask}?", "answer": f"{answer}."}) + "\n"
            written += handle.write(line)
    return path


def _check(path: Path) -> float:
    from studio.data.survey import check_file

    start = time.process_time()
    check_file(path)
    return time.process_time() - start


def _tokenise(path: Path, model: str, template: str, folder: Path) -> list[dict[str, Any]]:
    from studio.data.prepare import prepare
    from studio.data.template.backend import backend_from_folder
    from studio.home import open_home
    from studio.models.sources import facts
    from studio.spec import DataSource, ModelSource

    backend = backend_from_folder(facts(ModelSource(path=model)).path)
    source = DataSource(path=str(path), chat_template=template)
    recorded = _Recorded(backend.core)
    prepare(source, replace(backend, core=cast(Any, recorded)), context_length=2048, seed=0)
    alone, whole = [], []
    for _ in range(ROUNDS):
        alone.append(_seconds(lambda: _encode(backend.core, recorded.batches)))
        whole.append(_seconds(lambda: prepare(source, backend, context_length=2048, seed=0)))
    own, ours = median(alone), _ours(path, source, backend, folder)
    ratio = median(w / a for w, a in zip(whole, alone, strict=True))
    home = open_home(folder / "home")
    prepare(source, backend, context_length=2048, seed=0, home=home)
    start = time.perf_counter()
    prepare(source, backend, context_length=2048, seed=0, home=home)
    again = time.perf_counter() - start
    size = path.stat().st_size / 1e6
    return [
        {"name": "tokenizer alone", "value": size / own, "unit": "MB/s", "bar": 0},
        {"name": "prepare without it", "value": 1 / ours, "unit": "MB/s", "bar": 20},
        {"name": "prepare over tokenizer", "value": ratio, "unit": "times", "bar": 1.3},
        {"name": "second launch", "value": again, "unit": "s", "bar": 0},
    ]  # fmt: skip


def _ours(path: Path, source: Any, backend: Any, folder: Path) -> float:
    """Return the seconds that a megabyte costs beside the tokenizer's."""
    from studio.data.prepare import prepare

    part = folder / "part.jsonl"
    with path.open("rb") as whole:
        part.write_bytes(b"".join(whole.readlines(PART_BYTES)))
    some = source.model_copy(update={"path": str(part)})
    recorded = _Recorded(backend.core)
    prepare(some, replace(backend, core=cast(Any, recorded)), context_length=2048, seed=0)
    ready = _Ready(backend.core, recorded.batches)
    quick = replace(backend, core=cast(Any, ready))
    seconds = [
        _seconds(lambda: prepare(some, quick, context_length=2048, seed=0))
        - _seconds(lambda: _encode(ready, recorded.batches))
        for _ in range(2 * ROUNDS)
    ]
    return median(seconds) / (part.stat().st_size / 1e6)


def _encode(core: Any, batches: list[list[str]]) -> None:
    """What anybody pays who wants ids: encoding, reading them, freeing what was made."""
    for texts in batches:
        for encoding in core.encode_batch(texts, add_special_tokens=False):
            encoding.ids  # noqa: B018


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _import(path: Path, folder: Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, str(path), str(folder / "import-home")],
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout)
    size = path.stat().st_size / 1e6
    return [
        {"name": "import", "value": size / told["seconds"], "unit": "MB/s", "bar": 0},
        {"name": "import peak memory", "value": told["peak_bytes"] / 1e6, "unit": "MB", "bar": 600},
    ]
