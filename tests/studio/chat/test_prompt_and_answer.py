"""The prompt of an answer, its text of whole characters, and the sampling of its tokens.

Conversations are shortened by whole old turns, or refused in one sentence.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoTokenizer,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from studio.chat.lanes import Lane, Message, Sampling
from studio.chat.prompt_and_answer import (
    Detokenizer,
    FittedPrompt,
    StopTexts,
    _parts_after,
    fit_prompt,
    without_thought,
)
from studio.chat.sampling import Sampler, candidates, pick_all
from studio.chat.thought_and_tool_parser import Piece, markers_in
from studio.errors import ChatError
from tests.studio.chat.tiny import WordTemplate, make_tokenizer

TEXTS = [
    "Hello, world! It's  fine.\n\n  indented\ttab",
    "日本語のテキスト，中国中国。",
    "👩‍👩‍👧 and 🎉🎉 é ü ñ ẞ",
    " leading and trailing ",
]


@pytest.mark.parametrize("name", ["tokenizers/minimind", "models/stories260k", "models/tarot-gpt2"])
@pytest.mark.parametrize("prompt", ["", "Once upon a", "a line\n"])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text_of_all_tokens(real, name, prompt, text):
    tokenizer = AutoTokenizer.from_pretrained(real / name)
    before = tokenizer.encode(prompt)[-6:] if prompt else []
    answer = tokenizer.encode(text, add_special_tokens=False)

    detokenizer = Detokenizer(tokenizer, before)
    pieces = [detokenizer.add(token) for token in answer] + [detokenizer.flush()]

    whole = tokenizer.decode(before + answer, skip_special_tokens=True)
    assert "".join(pieces) == whole[len(tokenizer.decode(before, skip_special_tokens=True)) :]
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_part_of_a_character_waits_for_the_rest_but_not_forever(real):
    tokenizer = AutoTokenizer.from_pretrained(real / "models/stories260k")
    tokens = tokenizer.encode("日", add_special_tokens=False)[-3:]  # three bytes, E6 97 A5

    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.add(token) for token in tokens] == ["", "", "日"]
    assert (detokenizer.add(tokens[0]), detokenizer.flush()) == ("", "\ufffd"), "stays visible"
    broken = Detokenizer(tokenizer)
    assert len("".join(broken.add(tokens[0]) for _ in range(40))) >= 32


def test_a_thought_that_the_prompt_opened_goes_on_when_its_answer_is_continued():
    words = {1: "<think>", 2: " so", 3: "</think>"}
    tokenizer = SimpleNamespace(decode=lambda ids, **_: "".join(words[token] for token in ids))
    for begun, kind in (([2], "thought"), ([2, 3], "text")):
        text = tokenizer.decode(begun)
        prompt = FittedPrompt(ids=[1, *begun], max_new_tokens=8, num_continued=len(begun))
        lane = Lane(messages=(Message(role="user", content="q"),
                              Message(role="assistant", content=text)))  # fmt: skip
        parts = _parts_after(prompt, lane, markers_in("<think></think>"), tokenizer)
        assert parts.add(" on") == [Piece(kind, " on")]


def test_the_text_of_an_answer_is_without_its_thought():
    words = {1: "<think>", 2: " Paris?", 3: "</think>", 4: "\n\n[1]", 5: "<end>"}

    def decode(ids, *, skip_special_tokens, **_):
        shown = (word for word in ids if not skip_special_tokens or word not in (1, 3, 5))
        return "".join(words[word] for word in shown)

    tokenizer = SimpleNamespace(decode=decode, all_special_ids=[1, 3, 5],
                                all_special_tokens=["<think>", "</think>", "<end>"])  # fmt: skip
    how = {"tokenizer": tokenizer, "markers": markers_in("<think></think>"), "stop_ids": (5,)}
    assert without_thought([1, 2, 3, 4, 5], [2], **how) == "[1]"
    assert without_thought([2, 3, 4, 5], [2, 1], **how) == "[1]"  # the prompt opened it
    assert without_thought([2, 4], [2], **how | {"markers": markers_in("")}) == "Paris?\n\n[1]"


@pytest.mark.parametrize(
    ("texts", "pieces", "shown", "reached"),
    [
        (["\nUser:", "###"], ["Hello\n", "Us", "er", ": more"], "Hello", True),
        (["###"], ["a ##", " b #"], "a ## b #", False),
    ],
)
def test_a_stop_text_across_pieces_is_cut_and_what_only_looks_like_one_is_shown(
    texts, pieces, shown, reached
):
    stops = StopTexts(texts)
    assert "".join(stops.add(piece) for piece in pieces) + stops.flush() == shown
    assert stops.reached is reached


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.7, 5, 1.0), (1.3, 0, 0.9), (0.8, 40, 0.5), (2.0, 3, 0.99), (1.0, 0, 0.01)],
)
def test_filters_leave_the_same_distribution_as_transformers(temperature, top_k, top_p):
    row = logits(3000)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    expected = warpers(torch.zeros(1, 1, dtype=torch.long), row[None].clone())[0].softmax(-1)

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    probabilities, tokens = candidates(row, sampling)

    assert set(tokens.tolist()) == set(expected.nonzero().flatten().tolist())
    torch.testing.assert_close(probabilities, expected[tokens])


def test_a_flat_distribution_keeps_more_tokens_than_the_first_thousand():
    row = torch.zeros(5000)

    probabilities, tokens = candidates(row, Sampling(temperature=1, top_p=0.8))

    assert len(tokens) == math.ceil(0.8 * 5000)
    torch.testing.assert_close(probabilities.sum(), torch.tensor(1.0))


def pick(sampler: Sampler, row: torch.Tensor) -> int | None:
    return pick_all([sampler], row[None])[0]


def test_repetition_penalty_is_that_of_transformers_and_counts_what_was_generated():
    row, prompt = logits(50), [3, 7, 7, 49]
    processor = RepetitionPenaltyLogitsProcessor(1.7)
    expected = processor(torch.tensor([prompt]), row[None].clone())[0].argmax()
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=1.7), prompt, 50)
    assert pick(sampler, row) == expected

    row = torch.tensor([2.0, 1.9, 0.0])
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=2), [2], 3)
    assert [pick(sampler, row), pick(sampler, row)] == [0, 1]


def test_draws_follow_the_probabilities():
    row = torch.tensor([0.5, 0.3, 0.2]).log()
    sampler = Sampler(Sampling(temperature=1, seed=1), [0], 3)

    counts = torch.bincount(torch.tensor([pick(sampler, row) for _ in range(4000)]), minlength=3)

    # Four standard deviations of a share near one half among 4000 draws: 0.032.
    assert (counts / 4000 - row.exp()).abs().max() < 0.032


def test_same_seed_gives_same_tokens_whatever_the_neighbours_are():
    mine = logits(6, 80)
    alone = Sampler(Sampling(temperature=1, seed=5), [0], 80)
    expected = [pick(alone, row) for row in mine]

    rows = [
        Sampler(Sampling(temperature=2, seed=9), [0], 80),
        Sampler(Sampling(temperature=1, seed=5), [0], 80),
        Sampler(Sampling(temperature=0), [0], 80),
    ]
    got = [pick_all(rows, torch.stack([-row, row, row * 2]))[1] for row in mine]

    assert got == expected


def test_a_draw_is_changed_by_its_seed_and_not_by_rounding():
    mine = logits(40, 80)
    noisy = mine + logits(40, 80, seed=1) * 1e-6
    drawn = []
    for seed, rows in ((5, mine), (5, noisy), (6, mine), (7, mine)):
        sampler = Sampler(Sampling(temperature=1, top_p=0.95, seed=seed), [0], 80)
        drawn.append(tuple(pick(sampler, row) for row in rows))

    assert drawn[0] == drawn[1] and len(set(drawn)) == 3


def test_numbers_that_overflowed_are_no_token():
    rows = torch.tensor([[1.0, 2.0], [float("nan"), 1.0], [float("inf"), 1.0]])
    samplers = [Sampler(Sampling(temperature=0), [0], 2) for _ in range(3)]

    assert pick_all(samplers, rows) == [1, None, None]


def test_control_tokens_that_mark_parts_are_written_and_others_are_not(byte_markers):
    detokenizer = Detokenizer(byte_markers, kept={257: "[TOOL_CALLS]"})

    text = "".join(detokenizer.add(token) for token in [*b"hi", 256, 257, *b"f{}"])

    assert text + detokenizer.flush() == "hi[TOOL_CALLS]f{}"


@pytest.fixture
def byte_markers():
    """A tokenizer of bytes with two control tokens, 256 and 257, that are skipped."""

    class Bytes:
        def decode(self, ids, **_):
            return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    return Bytes()


def lane_of(*turns: tuple[str, str], system: str = "", max_new_tokens: int = 8) -> Lane:
    return Lane(
        system=system,
        messages=tuple(Message(role=role, content=content) for role, content in turns),
        sampling=Sampling(max_new_tokens=max_new_tokens),
    )


def fitted(lane: Lane, *, context: int = 64, template: object = None, **more: int) -> FittedPrompt:
    return fit_prompt(lane, template or WordTemplate(), make_tokenizer(), context=context, **more)


def test_a_short_conversation_is_read_whole_and_a_last_answer_is_continued():
    whole = fitted(lane_of(("user", "w5"), ("assistant", "w6"), ("user", "w7")))
    assert whole.ids == [1, 5, 2, 1, 6, 2, 1, 7, 2]
    assert (whole.max_new_tokens, whole.note) == (8, "")
    begun = fitted(lane_of(("user", "w5"), ("assistant", "w6 w7")))
    assert (begun.ids, begun.num_continued) == ([1, 5, 2, 6, 7], 2)
    with pytest.raises(ValueError, match="there is no prompt to answer"):
        lane_of(("user", "  "))


def test_the_oldest_turns_go_first_and_it_is_said():
    old = [("user", "w5 w5 w5 w5 w5 w5"), ("assistant", "w6 w6")] * 4

    cut = fitted(lane_of(*old, ("user", "w7"), system="w9"), context=32)

    # 24 of 32 may be read: the system prompt (3), the question (3), one old pair (8 + 4).
    assert cut.ids == [1, 9, 2, 1, 5, 5, 5, 5, 5, 5, 2, 1, 6, 6, 2, 1, 7, 2]
    assert cut.note == (
        "The oldest 6 messages no longer fit into the 32 tokens of the context and were left out."
    )


def test_a_question_that_nearly_fills_the_context_leaves_the_rest_for_the_answer():
    lane = lane_of(("user", "w7 " * 58), max_new_tokens=30)

    found = fitted(lane)
    assert (len(found.ids), found.max_new_tokens) == (60, 4)
    assert fitted(lane, before=3).max_new_tokens == 1
    with pytest.raises(ChatError, match="beside 4 virtual tokens"):
        fitted(lane, before=4)
    with pytest.raises(ChatError, match="The prompt has 72 tokens, but the model reads at most 63"):
        fitted(lane_of(("user", "w7 " * 70)))
