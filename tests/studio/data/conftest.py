"""A tokenizer small enough to read: one token a byte, plus the special tokens of a model."""

from collections.abc import Callable

import pytest

from studio.data.model_tokenizer import Backend, backend_from_core

Make = Callable[..., Backend]


@pytest.fixture(scope="session")
def byte_backend():
    """Make a byte-level tokenizer with the given special tokens and chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    def make(
        specials: list[str],
        template: str | None = None,
        *,
        eos: str = "",
        bos: str = "",
        plain_added: tuple[str, ...] = (),
    ) -> Backend:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        core.add_special_tokens(specials)
        core.add_tokens(list(plain_added))
        special = {"eos_token": eos, "bos_token": bos}
        return backend_from_core(core, {k: v for k, v in special.items() if v}, template)

    return make


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
