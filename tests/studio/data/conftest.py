"""A tokenizer small enough to read: one token a byte, plus the special tokens of a model."""

import json
from collections.abc import Callable, Iterable
from copy import copy
from pathlib import Path

import numpy as np
import pytest

from studio.data.conversation_records import Conversation, Problem
from studio.data.model_tokenizer import Backend, backend_from_core
from studio.data.template.template import Template
from studio.errors import DataError

Make = Callable[..., Backend]


def write_rows(path: Path, rows: Iterable) -> str:
    """Write rows as JSON lines; return the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def assert_same(shown: Iterable, trained: Iterable) -> None:
    """Compare what the X-ray keeps of rows with the tokens and labels of the loop."""
    for row, example in zip(shown, trained, strict=True):
        kept = [token for token in row.tokens if token.state != "truncated"]
        assert [token.id for token in kept] == example.input_ids.tolist()
        assert [token.state == "trained" for token in kept] == (example.labels >= 0).tolist()


def labelled(
    template: Template, messages: list, train_on: str = "assistant", tools: list | None = None
) -> tuple[list[int], list[int]]:
    """Return ids and labels of one conversation, its thoughts as the template writes them."""
    single = copy(template)
    single.thoughts = "template"
    row = single.encode_batch([Conversation(messages, tools)], train_on).row(0)
    if isinstance(row, Problem):
        raise DataError(row.text)
    return row.ids.tolist(), np.where(row.trained, row.ids, -100).tolist()


def make_backend(
    specials: list[str],
    template: str | None = None,
    *,
    eos: str = "",
    bos: str = "",
    plain_added: tuple[str, ...] = (),
) -> Backend:
    """Make a byte-level tokenizer with the given special tokens and chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(specials)
    core.add_tokens(list(plain_added))
    special = {"eos_token": eos, "bos_token": bos}
    return backend_from_core(core, {k: v for k, v in special.items() if v}, template)


@pytest.fixture(scope="session")
def byte_backend() -> Make:
    """Return the maker of byte-level tokenizers."""
    return make_backend


@pytest.fixture(scope="session")
def bracketed():
    """Write a row as text with the trained parts in double square brackets."""

    def write(backend: Backend, ids: list[int], labels: list[int]) -> str:
        assert len(ids) == len(labels)
        out, run, trained = "", [], False
        for token, label in [*zip(ids, labels, strict=True), (None, None)]:
            assert label in (token, -100)
            if token is None or (label == token) != trained:
                text = backend.core.decode(run, skip_special_tokens=False)
                out += f"[[{text}]]" if trained else text
                run, trained = [], label == token
            if token is not None:
                run.append(token)
        return out

    return write
