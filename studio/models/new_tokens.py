"""Add tokens to a base: a new model folder whose tokenizer, embeddings and head know them.

A token's embedding starts at the mean of all, or at the mean of the tokens of a text that describes
it. Runs on the new base train these rows by themselves (`method.trainable_token_indices`), and
chat, merge and export read the folder as any other model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from studio import atomic
from studio.adapters.library import refuse_place
from studio.errors import ModelError
from studio.fields import knob
from studio.home import Home, publishing, slug
from studio.job_request import Request
from studio.models.find_model import facts, file_dtype
from studio.spec import ModelSource
from studio.training.training_events import Event, Finished, Loading

if TYPE_CHECKING:
    from studio.models.loading import Loaded

FILE = "new_tokens.json"
MAX_TOKENS = 10_000


class NewToken(NamedTuple):
    """A token to add, and the text whose tokens its embedding starts from; empty for all."""

    token: str
    text: str = ""


class ExtendRequest(Request):
    """Add tokens to a base, as a new model."""

    kind: ClassVar[str] = "extend_model"
    model: ModelSource = knob(
        ModelSource(), "Folder, hub id, or starter.", title="Base model", of="model",
        inner=("path",),
    )  # fmt: skip
    token: tuple[str, ...] = knob(
        (), "Tokens to add, one each; TOKEN=TEXT starts at the mean of the text's tokens, TOKEN at "
        "that of all tokens.", title="Tokens", lines=4, metavar="TOKEN[=TEXT]",
    )  # fmt: skip
    name: str = knob("", "Name of the new model.", title="Name", max_length=120)

    def checked(self, home: Home) -> Self:
        """Return it with its name; refuse invalid tokens and a name that is taken."""
        known = facts(self.model)
        read_tokens(self.token)
        name = self.name.strip() or f"{known.path.name} extended"
        refuse_place(home.models / slug(name))
        return self.model_copy(update={"name": name})

    def perform(self, home: Home, *_: Any) -> Iterator[Event]:
        """Load the base, add the tokens, write the folder."""
        from studio.models.loading import load

        yield Loading(text="Loading the base")
        dtype = file_dtype(facts(self.model)) if self.model.dtype == "auto" else self.model.dtype
        loaded = load(self.model.model_copy(update={"dtype": dtype}), "cpu")
        added = extend(loaded, read_tokens(self.token))
        yield Loading(text="Writing the model")
        out = self.target(home)
        with publishing(out) as temporary:
            loaded.model.save_pretrained(temporary)
            loaded.tokenizer.save_pretrained(temporary)
            before = new_tokens(loaded.facts.path)
            record = {"base": self.model.path, "tokens": [*before, *added]}
            atomic.write(temporary / FILE, json.dumps(record, ensure_ascii=False, indent=1))
        yield Finished(adapter=str(out))

    def target(self, home: Home) -> Path:
        """Return the folder of the new model."""
        return home.models / slug(self.name)

    def outcome(self, home: Home, run_dir: Path, result: dict[str, Any]) -> dict[str, Any]:
        """Return the folder and its new tokens."""
        out = self.target(home)
        return {"model": str(out), "tokens": new_tokens(out)}


def read_tokens(texts: Sequence[str]) -> list[NewToken]:
    """Read `TOKEN` and `TOKEN=TEXT`.

    Raises:
        ModelError: There is none, there are too many, or one is empty or given twice.
    """
    found = []
    for text in texts:
        token, _, words = text.strip().partition("=")
        found.append(NewToken(token.strip(), words.strip()))
    names = [one.token for one in found]
    if not names or len(names) > MAX_TOKENS:
        raise ModelError(f"Name 1 to {MAX_TOKENS:,} tokens to add, one each (--token TOKEN).")
    for name in names:
        if not name or names.count(name) > 1:
            raise ModelError(
                f'The token "{name}" is given twice.' if name
                else "A token is empty: write TOKEN, or TOKEN=TEXT that describes it."
            )  # fmt: skip
    return found


def extend(loaded: Loaded, wanted: Sequence[NewToken]) -> list[dict[str, Any]]:
    """Add tokens to a loaded base and its tokenizer; return each with its id.

    Raises:
        ModelError: A token is in the vocabulary already, or the model has no plain embeddings.
    """
    import torch

    model, tokenizer = loaded.model, loaded.tokenizer
    vocabulary = tokenizer.get_vocab()
    if there := [one.token for one in wanted if one.token in vocabulary]:
        raise ModelError(
            f'"{there[0]}" is a token of this model already (number {vocabulary[there[0]]}): train '
            f"it with method.trainable_token_indices={vocabulary[there[0]]}."
        )
    described = {
        one.token: tokenizer(one.text, add_special_tokens=False)["input_ids"] for one in wanted
    }
    known = len(tokenizer)
    tokenizer.add_tokens([one.token for one in wanted])
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    head = model.get_output_embeddings()
    tables = {id(m.weight): m.weight for m in (model.get_input_embeddings(), head) if m is not None}
    added = [
        {"token": one.token, "id": tokenizer.convert_tokens_to_ids(one.token), "text": one.text}
        for one in wanted
    ]
    with torch.no_grad():
        for weight in tables.values():
            mean = weight[:known].float().mean(0)
            for one in added:
                ids = described[one["token"]]
                start = weight[ids].float().mean(0) if ids else mean
                weight[one["id"]] = start.to(weight.dtype)
        if head is not None and getattr(head, "bias", None) is not None:
            head.bias[[one["id"] for one in added]] = head.bias[:known].mean()
    return added


def new_tokens(folder: Path) -> list[dict[str, Any]]:
    """Return the tokens that were added to a base; empty for any other model."""
    found = atomic.read_object(folder / FILE).get("tokens")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def new_token_ids(folder: Path) -> list[int]:
    """Return the ids of the tokens that were added to a base."""
    return [one["id"] for one in new_tokens(folder) if isinstance(one.get("id"), int)]
