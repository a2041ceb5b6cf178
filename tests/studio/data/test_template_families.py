"""The yardstick: each family's template with each shape of conversation.

The text must be transformers' own rendering and the trained spans those of `truths.txt`, which was
read and corrected by hand; or the cell of the table in docs/templates.md names what is different.
Trained parts stand in double square brackets.
"""

import re
from pathlib import Path

import numpy as np
import pytest

from studio.data.records import Conversation, Problem
from studio.data.template.template import choose
from studio.errors import DataError
from tests.studio.data.families import FAMILIES, PROMPTS, SHAPES

TRUTHS = Path(__file__).with_name("truths.txt")
DOCS = Path(__file__).parents[3] / "docs" / "templates.md"
WORDS = {
    "system": "system prompt before the first question",
    "tools": "tools in the system prompt",
    "calls": "calls as JSON",
    "results": "results as questions",
    "thoughts": "thoughts between tags",
}
BRACKETS = r"\[\[(.*?)\]\](?=<|\n|$|\[INST\]|\[TOOL_RESULTS\])"
APPENDED = ("<|endoftext|>", "<|observation|>", "<｜tool▁outputs▁begin｜>")


def _thinking(message):
    return {("thinking" if k == "reasoning_content" else k): v for k, v in message.items()}


def _parts(message):
    if "reasoning_content" not in message:
        return message
    parts = [{"type": "thinking", "thinking": message["reasoning_content"]}]
    parts += [{"type": "text", "text": message["content"]}]
    return {"role": "assistant", "content": parts}


THOUGHTS = {"gpt-oss": _thinking, "Magistral": _parts}
"""The name under which transformers has to be given a thought, where it is another one."""


@pytest.fixture
def made(byte_backend):
    """Return a family's template and transformers' tokenizer with the same files."""
    from transformers import PreTrainedTokenizerFast

    def make(family, **how):
        kind = FAMILIES[family]
        backend = byte_backend([*kind.specials], kind.source, eos=kind.eos, bos=kind.bos)
        names = {"eos_token": kind.eos, "bos_token": kind.bos}
        peer = PreTrainedTokenizerFast(
            tokenizer_object=backend.core, **{k: v for k, v in names.items() if v}
        )
        peer.chat_template = kind.source
        return choose(backend, **how), peer

    return make


def truths():
    """Return the expected texts by family and shape, one per view."""
    found = {}
    text = TRUTHS.read_text(encoding="utf-8").removesuffix("\n")
    for block in text.split("\n=== ")[1:]:
        title, _, body = block.partition("\n")
        family, shape = title.split(" / ")
        found[family, shape] = body.split("\n--- next view ---\n")
    return found


def views(template, shape, bracketed):
    """Return the bracketed views of a shape, or the prompt, and the cell of the table."""
    messages, tools = SHAPES[shape]
    batch = template.encode_batch([Conversation(messages, tools)])
    if shape in PROMPTS:
        try:
            ids = template.encode_prompt(messages, tools)
        except DataError as error:
            return [error.text], "refused"
        changes = template.encode_batch([Conversation(messages, tools)]).views[0].changes
        return [bracketed(template.backend, ids, [-100] * len(ids))], cell_of(changes)
    shown = []
    for number, view in enumerate(batch.views):
        row = batch.row(number)
        if isinstance(row, Problem):
            return [row.text], "refused: " + refusal(row)
        labels = np.where(row.trained, row.ids, -100).tolist()
        shown.append(bracketed(template.backend, row.ids.tolist(), labels))
        assert not view.lost
    changes = [*batch.views[0].changes]
    words = cell_of(changes)
    if len(shown) > 1:
        words = f"{words}, turn by turn" if words else "turn by turn"
    if any(view.restored for view in batch.views):
        words = f"{words}, thoughts written back"
    return shown, words


def cell_of(changes):
    return ", ".join(WORDS[change] for change in changes)


def refusal(row):
    cut = re.search(r"cuts the (\w[\w ]*) of message", row.text)
    return (
        f"the template cuts a {cut[1]}"
        if cut
        else row.text.partition(": ")[2].partition(". Choose")[0]
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_text_is_transformers_own_and_spans_are_the_truth_or_the_difference_is_named(
    family, shape, made, bracketed
):
    template, peer = made(family, thoughts="turns")

    shown, words = views(template, shape, bracketed)

    assert cells()[family, shape] == (words or "exact")
    if words.startswith("refused"):
        return
    assert shown == truths()[family, shape]
    if words in ("", "turn by turn"):
        theirs = rendered_by_transformers(peer, family, shape, num_views=len(shown))
        for one, text in zip(shown, theirs, strict=True):
            whole = one if shape in PROMPTS else re.sub(BRACKETS, r"\1", one, flags=re.DOTALL)
            assert any(text + end == whole for end in ("", *APPENDED))


def rendered_by_transformers(peer, family, shape, *, num_views):
    """Return transformers' texts of a shape: up to each answer where there are several views."""
    messages, tools = SHAPES[shape]
    renamed = [THOUGHTS.get(family, dict)(message) for message in messages]
    stops = [i + 1 for i, message in enumerate(messages) if message["role"] == "assistant"]
    stops = stops if num_views > 1 else [len(messages)]
    return [
        peer.apply_chat_template(
            renamed[:stop], tools=tools, tokenize=False, add_generation_prompt=shape in PROMPTS
        )
        for stop in stops
    ]


@pytest.mark.parametrize("family", ["SmolLM3"])
def test_spans_equal_the_generation_masks_of_transformers(family, made):
    template, peer = made(family)
    for shape, (messages, tools) in SHAPES.items():
        if shape in (*PROMPTS, "thoughts"):
            continue
        theirs = peer.apply_chat_template(
            messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, labels = template.encode(messages, tools=tools)
        assert ids == theirs["input_ids"]
        assert [int(label >= 0) for label in labels] == theirs["assistant_masks"]


def cells():
    """Return the cells of the table in docs/templates.md."""
    text = DOCS.read_text(encoding="utf-8").partition("## Families")[2]
    lines = [line for line in text.splitlines() if line[:1] == "|"]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    shapes = rows[0][1:]
    return {
        (row[0], shape): cell
        for row in rows[2:]
        for shape, cell in zip(shapes, row[1:], strict=True)
    }


def test_no_cell_of_the_table_is_silent():
    found = cells()

    assert set(found) == {(family, shape) for family in FAMILIES for shape in SHAPES}
    assert all(found.values())
