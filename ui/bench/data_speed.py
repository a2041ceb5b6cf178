"""`studio bench data`: how fast rows are checked, tokenised, cached and imported, in what memory.

The tokenizer alone encodes the same texts in the same batches, in turns with preparation. The cost
of our part is measured with a tokenizer that replays its answers: as a difference of two figures
ten times as large it would be noise. The import runs first, in a process of its own with its own
peak, since a child's peak begins with what its parent held.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, cast

from ui.bench.bench_figures import Figure, figure, median_ratio, progress, seconds
from ui.bench.child_processes import run

ROUNDS, PART_BYTES = 3, 4_000_000
IMPORT = """
import json, resource, sys, time
from studio.data.import_dataset import import_dataset
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
    folder: Path, *, file: str, model: str, chat_template: str, megabytes: int
) -> list[Figure]:
    """Run `studio bench data` on a jsonl file, or on made conversations of `megabytes` MB."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the figures are per core
    from studio.data.import_dataset import check_file

    path = Path(file) if file else _made(folder / "made.jsonl", megabytes)
    size = path.stat().st_size / 1e6
    progress(f"import of {size:.0f} MB")
    imported = _import(path, folder)
    progress("check")
    checked = seconds(lambda: check_file(path), time.process_time)
    progress("tokenise")
    tokenised = _tokenise(path, model, chat_template, folder)
    return [figure("check", size / checked, "MB/s", 20), *tokenised, *imported]


class _Recorded:
    """A tokenizer that records the texts it encodes."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.batches: list[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.core, name)

    def encode_batch(self, texts: list[str], **options: Any) -> Any:
        """Encode and record the texts."""
        self.batches.append(texts)
        return self.core.encode_batch(texts, **options)


class _Ready(_Recorded):
    """A tokenizer that replays its answers in order, from the start again after the last."""

    def __init__(self, core: Any, batches: list[list[str]]) -> None:
        super().__init__(core)
        self.answers = [core.encode_batch(texts, add_special_tokens=False) for texts in batches]
        self._next = 0

    def encode_batch(self, texts: list[str], **options: Any) -> Any:
        """Return the next answer."""
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


def _tokenise(path: Path, model: str, template: str, folder: Path) -> list[Figure]:
    from studio.data.model_tokenizer import backend_from_folder
    from studio.data.prepare_run_data import prepare
    from studio.home import open_home
    from studio.models.find_model import facts
    from studio.spec import DataSource, ModelSource

    backend = backend_from_folder(facts(ModelSource(path=model)).path)
    source = DataSource(path=str(path), chat_template=template)
    recorded = _Recorded(backend.core)
    prepare(source, replace(backend, core=cast(Any, recorded)), context_length=2048, seed=0)
    alone, whole = [], []
    for _ in range(ROUNDS):
        alone.append(_used(lambda: _encode(backend.core, recorded.batches)))
        whole.append(_used(lambda: prepare(source, backend, context_length=2048, seed=0)))
    own, ours = median(alone), _ours(path, source, backend, folder)
    ratio = median_ratio(whole, alone)
    home = open_home(folder / "home")
    prepare(source, backend, context_length=2048, seed=0, home=home)
    again = seconds(lambda: prepare(source, backend, context_length=2048, seed=0, home=home))
    size = path.stat().st_size / 1e6
    return [
        figure("tokenizer alone", size / own, "MB/s"),
        figure("prepare without it", 1 / ours, "MB/s", 20),
        figure("prepare over tokenizer", ratio, "times", 1.3),
        figure("second launch", again, "s"),
    ]


def _ours(path: Path, source: Any, backend: Any, folder: Path) -> float:
    """Return the seconds per megabyte beside the tokenizer's."""
    from studio.data.prepare_run_data import prepare

    part = folder / "part.jsonl"
    with path.open("rb") as whole:
        part.write_bytes(b"".join(whole.readlines(PART_BYTES)))
    some = source.model_copy(update={"path": str(part)})
    recorded = _Recorded(backend.core)
    prepare(some, replace(backend, core=cast(Any, recorded)), context_length=2048, seed=0)
    ready = _Ready(backend.core, recorded.batches)
    quick = replace(backend, core=cast(Any, ready))
    seconds = [
        _used(lambda: prepare(some, quick, context_length=2048, seed=0))
        - _used(lambda: _encode(ready, recorded.batches))
        for _ in range(2 * ROUNDS)
    ]
    return median(seconds) / (part.stat().st_size / 1e6)


def _encode(core: Any, batches: list[list[str]]) -> None:
    """Encode, read the ids, free what was made: the least that ids cost."""
    for texts in batches:
        for encoding in core.encode_batch(texts, add_special_tokens=False):
            encoding.ids  # noqa: B018


def _used(work: Callable[[], object]) -> float:
    return seconds(work, time.process_time)


def _import(path: Path, folder: Path) -> list[Figure]:
    found = json.loads(run("-c", IMPORT, str(path), str(folder / "import-home")))
    size = path.stat().st_size / 1e6
    return [
        figure("import", size / found["seconds"], "MB/s"),
        figure("import peak memory", found["peak_bytes"] / 1e6, "MB", 600),
    ]
