"""Masks of TRL, where it is installed: templates as published, and its own with generation blocks.

TRL also trains what no model writes: the white space behind the end of a turn, and in some families
the role marker or the thought that the generation prompt opens. Beside these the masks are equal.
"""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from studio.data.conversation_records import Conversation, Problem
from studio.data.template.choose_template import choose
from studio.data.template.render_conversation import as_parts
from tests.studio.data.families import PROMPTS, SHAPES

FOUND = importlib.util.find_spec("trl")
FOLDER = Path(FOUND.origin).parent / "chat_templates" if FOUND and FOUND.origin else Path("none")
CONTROL = re.compile(
    r"<\|[\w▁/]+\|>|<｜[\w▁]+｜>|</?(?:start|end)_of_\w+>|<end_of_utterance>|\[gMASK\]|<sop>|<\|\w+>|"
    r"<\w+\|>"
)
ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>", "deepseek": "<｜end▁of▁sentence｜>", "diffusion": "<eos>",
    "gemma": "<eos>", "glm4": "<|endoftext|>", "gptoss": "<|return|>", "llama3": "<|eot_id|>",
    "llava": "</s>", "phi3": "<|endoftext|>", "muse": "<|eot|>", "idefics": "<end_of_utterance>",
    "smolvlm": "<end_of_utterance>",
}  # fmt: skip
MORE = {
    "phi3": {"<|endoftext|>"},  # stands behind a whole conversation, after the end of its last turn
    "deepseek": {"<｜tool▁outputs▁end｜>"},  # closes the results
}
LESS = {"diffusion": {"<|tool_response>"}}  # where generation stops after a call
OTHER_TEXT = {"glm4moe", "qwen3", "qwen3_5_think", "qwen3_5_nothink", "qwen3_6", "qwen3_8"}
"""TRL's templates of these write another end, or keep the empty thoughts of earlier answers."""


def of(names, family, default):
    return next((value for name, value in names.items() if family.startswith(name)), default)


def published():
    """Return the names of templates with a peer for training."""
    names = sorted(file.stem.removesuffix("_training") for file in FOLDER.glob("*_training.jinja"))
    return [name for name in names if (FOLDER / f"{name}.jinja").is_file()] or ["none"]


def runs(core, ids, mask):
    """Yield the texts of the tokens that a mask takes, run by run, without outer white space."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False)).reshape(-1, 2)
    for start, stop in edges:
        yield core.decode(ids[start:stop].tolist(), skip_special_tokens=False).strip()


@pytest.mark.skipif(not FOLDER.is_dir(), reason="TRL with its chat templates is not installed")
@pytest.mark.parametrize("family", published())
def test_masks_are_those_of_trl_but_for_what_no_model_writes(family, byte_backend):
    from transformers import PreTrainedTokenizerFast

    source = (FOLDER / f"{family}.jinja").read_text(encoding="utf-8")
    eos = of(ENDS, family, "<|im_end|>")
    bos = "<s>"
    backend = byte_backend(sorted({*CONTROL.findall(source), eos, bos}), source, eos=eos, bos=bos)
    peer = PreTrainedTokenizerFast(tokenizer_object=backend.core, eos_token=eos, bos_token=bos)
    peer.chat_template = (FOLDER / f"{family}_training.jinja").read_text(encoding="utf-8")
    template = choose(backend)
    compared = []
    for shape, (messages, tools) in SHAPES.items():
        batch = template.encode_batch([Conversation(messages, tools)])
        row, view = batch.row(0), batch.views[0]
        if shape in PROMPTS or isinstance(row, Problem) or view.changes:
            continue  # written in other words than by TRL, or not at all
        given = [as_parts(m) for m in messages] if template._layout._as_parts else messages
        theirs = peer.apply_chat_template(
            given, tools=tools, return_dict=True, return_assistant_tokens_mask=True
        )
        if row.ids.tolist() != theirs["input_ids"]:
            assert family in OTHER_TEXT or view.lost
            continue
        mask = np.array(theirs["assistant_masks"], bool)
        allowed = of(MORE, family, set())
        for extra in runs(backend.core, row.ids, mask & ~row.trained):
            assert extra in template._layout.cue or extra in allowed, (shape, extra)
        for extra in runs(backend.core, row.ids, row.trained & ~mask):
            assert extra in of(LESS, family, set()), (shape, extra)
        compared.append(shape)
    assert compared
