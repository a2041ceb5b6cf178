"""The embedded default: a tiny chat model made by this project, and demo datasets for it.

The model is an ordinary model folder and the datasets are ordinary files, without special cases
elsewhere. It knows a toy world only, see `model/README.md`; in the sources `python -m
studio.starter.make` makes all of it again from a seed. Imports without torch.
"""

from __future__ import annotations

from pathlib import Path

from studio.errors import DataError

MODEL = "starter"
DATA_PREFIX = "starter:"
MODEL_DIR = Path(__file__).parent / "model"
DATA_DIR = Path(__file__).parent / "data"

# Questions that the starter answers well, suggested in an empty prompt box.
SAMPLE_PROMPTS = [
    "What is the capital of France?",
    "What sound does a cow make?",
    "What is 7 plus 5?",
    "What is the opposite of happy?",
    "Is the sky green?",
    "Who are you?",
    "Tell me a story about a fox.",
]


def datasets() -> dict[str, Path]:
    """Return name and training file of every demo dataset; the first is the default."""
    names = ["pirate", "json", "terse", "butler"]
    return {name: DATA_DIR / f"{name}.jsonl" for name in names}


def resolve_data(path: str) -> Path | None:
    """Return the file of `starter:<name>`; None when `path` is not a demo.

    Raises:
        DataError: There is no such demo.
    """
    if not path.startswith(DATA_PREFIX):
        return None
    name = path.removeprefix(DATA_PREFIX)
    if name not in datasets():
        raise DataError(f"There is no demo dataset {name!r}: take {', '.join(datasets())}.")
    return datasets()[name]
