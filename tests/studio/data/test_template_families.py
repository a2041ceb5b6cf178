"""The yardstick: each family's template with each shape of conversation.

The text must be transformers' own rendering, or the cell of the table in docs/templates.md names
what is different; what is trained must be what `spoken` says, which was written by hand.
"""

import re
from pathlib import Path

import numpy as np
import pytest

from studio.data.conversation_records import Conversation, Problem
from studio.data.template.choose_template import choose
from tests.studio.data.conftest import labelled, make_backend
from tests.studio.data.families import FAMILIES, PROMPTS, SHAPES, answer
from tests.studio.data.spoken import SPOKEN

DOCS = Path(__file__).parents[3] / "docs" / "templates.md"
WORDS = {
    "system": "system prompt before the first question",
    "tools": "tools in the system prompt",
    "calls": "calls as JSON",
    "results": "results as questions",
    "thoughts": "thoughts between tags",
}
APPENDED = ("<|user|>", "<|observation|>", "<｜tool▁outputs▁begin｜>")


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
        backend = kind.backend(byte_backend)
        names = {"eos_token": kind.eos, "bos_token": kind.bos}
        peer = PreTrainedTokenizerFast(
            tokenizer_object=backend.core, **{k: v for k, v in names.items() if v}
        )
        peer.chat_template = kind.source
        return choose(backend, **how), peer

    return make


def views(template, shape):
    """Return the text of each view of a shape with what is trained of it, and the table's cell."""
    messages, tools = SHAPES[shape]
    if shape in PROMPTS:
        messages = [*messages, answer("Done.")]
    batch = template.encode_batch([Conversation(messages, tools)])
    shown = []
    for number, view in enumerate(batch.views):
        row = batch.row(number)
        if isinstance(row, Problem):
            return [], "refused: " + refusal(row)
        edges = np.flatnonzero(np.diff(row.trained, prepend=False, append=False)).reshape(-1, 2)
        spoken = [decoded(template, row.ids[start:stop]) for start, stop in edges]
        shown.append((decoded(template, row.ids), spoken))
        assert not view.lost
    words = [WORDS[change] for change in batch.views[0].changes]
    words += ["turn by turn"] * (len(shown) > 1)
    words += ["thoughts written back"] * any(view.restored for view in batch.views)
    return shown, ", ".join(words)


def table():
    """Return the table of docs/templates.md."""
    lines = ["| family | " + " | ".join(SHAPES) + " |", "|---|" + "---|" * len(SHAPES)]
    for family, kind in FAMILIES.items():
        backend = make_backend([*kind.specials], kind.source, eos=kind.eos, bos=kind.bos)
        template = choose(backend, thoughts="turns")
        words = [views(template, shape)[1] or "exact" for shape in SHAPES]
        lines.append(f"| {family} | {' | '.join(words)} |")
    return "\n".join(lines)


def decoded(template, ids):
    return template.backend.core.decode(list(ids), skip_special_tokens=False)


def refusal(row):
    cut = re.search(r"cuts the (\w[\w ]*) of message", row.text)
    raised = row.text.partition(": ")[2].partition(". Choose")[0]
    return f"the template cuts a {cut[1]}" if cut else raised


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_text_is_transformers_own_and_what_is_spoken_is_trained_or_the_difference_is_named(
    family, shape, made
):
    template, peer = made(family, thoughts="turns")

    shown, words = views(template, shape)

    assert cells()[family, shape] == (words or "exact")
    if words.startswith("refused"):
        return
    theirs = [""] * len(shown)
    if words in ("", "turn by turn"):
        theirs = rendered_by_transformers(peer, family, shape, num_views=len(shown))
    if shape in PROMPTS:
        prompt = decoded(template, template.encode_prompt(*SHAPES[shape]))
        # Of what the prompt ends with, the training text may lack the thought that it opens.
        assert shown[0][0].startswith(prompt.removesuffix("<think>\n")) and prompt.endswith(
            theirs[0]
        )
        return
    assert [spoken for _, spoken in shown] == SPOKEN[family].of(shape)
    for (text, _), wanted in zip(shown, theirs, strict=True):
        assert not wanted or any(wanted + end == text for end in ("", *APPENDED))


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
        ids, labels = labelled(template, messages, tools=tools)
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
