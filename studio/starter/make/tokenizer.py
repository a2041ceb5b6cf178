"""The starter's byte-level BPE tokenizer, and conversations as token ids with labels.

Byte-level, so any UTF-8 text survives the round trip; trained on the world's text only, so that its
words are whole tokens. Digits do not take the space before them: `12` is the same token in
`12 plus`, ` 12.` and `"12"`. One special token opens each role, one ends each turn. The generation
block of the template lets transformers and TRL compute which tokens the assistant wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from studio.data.conversation_records import Conversation, Document, Problem
from studio.data.template.template import IGNORED, choose
from studio.starter.make.chats import Chat

VOCAB_SIZE = 3072
MAX_LENGTH = 512
PAD, SYSTEM, USER, ASSISTANT, END = "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
_WORDS = r" ?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text("utf-8")
Row = tuple[list[int], list[int]]  # token ids, labels


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Learn the merges from `texts` and return them as `AutoTokenizer` would load them."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, SYSTEM, USER, ASSISTANT, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[SYSTEM, USER, ASSISTANT],
        model_max_length=MAX_LENGTH,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def encode_rows(tokenizer: PreTrainedTokenizerFast, chats: Sequence[Chat | str]) -> list[Row]:
    """Return token ids, and labels of assistant turns in conversations, of all in plain texts."""
    given = [Document(one) if isinstance(one, str) else Conversation(one) for one in chats]
    batch = choose(tokenizer).encode_batch(given)
    rows: list[Row] = []
    for number in range(len(given)):
        row = batch.row(number)
        assert not isinstance(row, Problem), row.text
        if len(row.ids) <= MAX_LENGTH:
            labels = np.where(row.trained, row.ids, IGNORED)
            rows.append((row.ids.tolist(), labels.tolist()))
    return rows


def token_texts(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Return the texts of all tokens that are text by themselves, without spaces around them."""
    texts = (tokenizer.decode([number]).strip() for number in range(len(tokenizer)))
    special = set(tokenizer.all_special_tokens)
    return sorted({text for text in texts if text.isprintable() and text not in special} - {""})
