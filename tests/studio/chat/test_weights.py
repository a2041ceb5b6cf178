"""Weights that move while an answer is written act on its next token, and only weights can."""

import torch

from studio.chat.decoding import Batch
from tests.studio.chat.tiny import collect, engine_of, make_engine, make_lane


def moved_by_hand(engine, ids, before, after, at, count):
    """Greedy tokens under one stack, then under another on the same cache."""
    engine.backbone.use(before)
    batch = Batch(engine.loaded.model, [ids], torch.device("cpu"))
    logits, _ = batch.prefill()
    tokens = []
    for number in range(count):
        if number == at:
            engine.backbone.use(after)
        if number:
            logits = batch.step([tokens[-1]])
        tokens.append(int(logits.argmax()))
    return tokens


def moving(stacks: dict[int, tuple], after: int):
    """Ask for the stacks once so many tokens have been asked for."""
    asked = iter(range(10_000))
    return lambda: stacks if next(asked) >= after else {}


def test_a_slider_acts_on_the_next_token_of_its_lane_and_on_no_other():
    engine = engine_of("llama")
    lanes = [make_lane("w5 w6", "a"), make_lane("w5 w6", "a"), make_lane("w7", "b")]
    still = collect(engine.stream(lanes))
    expected = moved_by_hand(engine, [1, 5, 6, 2], [("a", 1.0)], [("a", -1.0)], 4, 24)

    answers = collect(engine.stream(lanes, wanted=moving({1: (("a", -1.0),)}, 4)))

    moved = answers[1]
    ended = next((i for i, token in enumerate(expected) if token in (95, 96)), len(expected))
    assert moved["tokens"] == expected[:ended]
    assert moved["tokens"][:4] == still[1]["tokens"][:4]
    assert moved["tokens"] != still[1]["tokens"]
    assert moved["end"].active.stack == (("a", -1.0),)
    assert moved["notes"] == ["Weights changed while it was written, last at token 5."]
    for other in (0, 2):
        assert answers[other]["tokens"] == still[other]["tokens"]
        assert answers[other]["notes"] == []


def test_a_weight_of_zero_takes_the_adapter_out_at_once():
    engine = engine_of("llama")
    expected = moved_by_hand(engine, [1, 5, 6, 2], [("a", 1.0)], [], 2, 24)

    answer = collect(engine.stream([make_lane("w5 w6", "a")], wanted=moving({0: (("a", 0.0),)}, 2)))

    assert answer[0]["tokens"] == expected[: len(answer[0]["tokens"])]
    assert answer[0]["end"].active.stack == ()


def test_adapters_cannot_come_or_go_in_the_middle():
    engine = engine_of("llama")
    lane = make_lane("w5 w6", "a")
    still = collect(engine.stream([lane]))[0]

    answer = collect(engine.stream([lane], wanted=moving({0: (("a", 1.0), ("b", 1.0))}, 2)))[0]

    assert answer["tokens"] == still["tokens"]
    assert answer["notes"] == [
        "This change applies to the next answer: while one is written, only weights can change."
    ]


def test_virtual_tokens_can_be_weighted_but_not_switched_off_in_the_middle():
    engine = make_engine("llama", {"front": "prefix_tuning"})
    lane = make_lane("w5 w6", "front")
    still = collect(engine.stream([lane]))[0]

    weaker = collect(engine.stream([lane], wanted=moving({0: (("front", 0.2),)}, 1)))[0]
    off = collect(engine.stream([lane], wanted=moving({0: (("front", 0.0),)}, 1)))[0]
    negative = collect(engine.stream([lane], wanted=moving({0: (("front", -1.0),)}, 1)))[0]

    assert weaker["end"].active.stack == (("front", 0.2),)
    assert off["tokens"] == negative["tokens"] == still["tokens"]
    assert "applies to the next answer" in off["notes"][0]
    assert "not negatively" in negative["notes"][0] and len(negative["notes"]) == 1
