"""Lanes together say what each says alone, end on their own, and prove who spoke."""

from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from studio.chat.chat_engine import NO_EFFECT
from studio.chat.lanes import Message
from studio.errors import MethodError
from studio.methods import Phase, methods, named
from tests.studio.chat.tiny import CONTEXT, collect, engine_of, make_engine, make_lane

LANES = [
    make_lane("w5 w6"),
    make_lane("w5 w6", "a"),
    make_lane("w5 w6 w9 w10 w11", "a", ("b", -0.5)),
    make_lane("w7", "b"),
    make_lane("w7", "b", temperature=1.2, top_p=0.9, seed=4),
]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_lanes_together_say_what_each_says_alone(kind):
    engine = engine_of(kind)

    together = collect(engine.stream(LANES))

    for number, lane in enumerate(LANES):
        alone = collect(engine.stream([lane]))[0]
        assert together[number]["tokens"] == alone["tokens"]
        assert together[number]["text"] == alone["text"]
        assert together[number]["end"].reason == alone["end"].reason


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_answer_equals_transformers_generate(kind):
    engine = engine_of(kind)
    model = engine.loaded.model
    engine.backbone.use([("a", 1.0)])
    prompt = torch.tensor([[1, 5, 6, 2]])
    expected = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False,
        eos_token_id=[95, 96], pad_token_id=0,
    )[0, 4:].tolist()  # fmt: skip

    got = collect(engine.stream([make_lane("w5 w6", "a")]))[0]["tokens"]

    assert got == [token for token in expected if token not in (95, 96)]


ROUTED = [
    name
    for name, method in methods().items()
    if method.phase in (Phase.DELTA, Phase.GAIN, Phase.TRANSFORM, Phase.KEYS_VALUES, Phase.PROMPT)
]


@pytest.mark.parametrize("method", ROUTED)
def test_every_method_answers_in_a_batch_as_alone(method):
    kind = "gpt2" if method == "bitfit" else "llama"
    try:
        engine = make_engine(kind, {"x": method, "y": "lora"})
    except (MethodError, NotImplementedError) as error:
        pytest.skip(f"{method} cannot be attached here yet: {error}")
    lanes = [make_lane("w5 w6"), make_lane("w5 w6 w7 w8", "x"), make_lane("w5", ("x", 0.5), "y")]

    together = collect(engine.stream(lanes))

    for number, lane in enumerate(lanes):
        assert together[number]["end"].error is None
        assert together[number]["tokens"] == collect(engine.stream([lane]))[0]["tokens"]
    assert together[1]["end"].active.verified
    assert together[1]["tokens"] != collect(engine.stream([make_lane("w5 w6 w7 w8")]))[0]["tokens"]


def test_stacks_that_cannot_share_a_batch_take_turns_and_say_the_same(monkeypatch):
    engine = make_engine("llama", {"a": "lora", "b": "lora"})
    lanes = LANES[:4]
    expected = collect(engine.stream(lanes))

    def refuse(stacks):
        raise MethodError("cannot be routed")

    monkeypatch.setattr(engine.backbone, "use_rows", refuse)
    deltas = list(engine.stream(lanes))

    got = collect(deltas)
    assert [got[n]["tokens"] for n in range(4)] == [expected[n]["tokens"] for n in range(4)]
    assert not any(got[n]["end"].active.batched for n in range(4))
    first_four = [delta.lane for delta in deltas if delta.token_id is not None][:4]
    assert sorted(first_four) == [0, 1, 2, 3]


def test_every_answer_says_what_was_active():
    engine = engine_of("llama")
    stream = engine.stream(LANES)
    list(islice(stream, 4))
    stream.close()  # leaves the engine usable

    lanes = [*LANES, make_lane("w5", ("c", 0.25), "a")]
    ends = {n: lane["end"] for n, lane in collect(engine.stream(lanes)).items()}

    assert ends[0].active.stack == ()
    assert ends[0].active.max_logit_difference < 1e-4
    assert ends[2].active.stack == (("a", 1.0), ("b", -0.5))
    assert ends[5].active.stack == (("c", 0.25), ("a", 1.0)), "names and order are kept"
    assert ends[2].active.max_logit_difference > 0.1
    assert all(end.active.verified for end in ends.values())


def test_a_stack_that_does_nothing_is_not_verified():
    engine = make_engine("llama")
    engine.backbone.attach("fresh", named("lora")())

    lanes = collect(engine.stream([make_lane("w5", "fresh"), make_lane("w5")]))

    assert not lanes[0]["end"].active.verified
    assert lanes[0]["notes"] == [NO_EFFECT]
    assert lanes[0]["tokens"] == lanes[1]["tokens"]


def test_a_prompt_that_changes_the_rotary_factors_is_answered_without_the_comparison():
    engine = make_engine("phi3", {"a": "lora"})
    lanes = [make_lane("w5 w6"), make_lane(" ".join(["w5 w6 w7"] * 20), "a")]

    short, long = (collect(engine.stream([lane]))[0]["end"] for lane in lanes)

    assert short.active.verified and long.error is None
    assert (long.active.stack, long.active.verified) == ((("a", 1.0),), False)


@pytest.mark.parametrize("wrong", ["rotated", "all on", "swapped pair"])
def test_a_lane_that_is_wired_wrongly_is_not_shown_as_answered(monkeypatch, wrong):
    engine = make_engine("llama", {"a": "lora", "b": "lora"})
    right = engine.backbone.use_rows
    rewired = {
        "rotated": lambda stacks: right([*stacks[1:], stacks[0]]),
        "all on": lambda stacks: right([stacks[1]] * len(stacks)),
        "swapped pair": lambda stacks: right([stacks[0], stacks[2], stacks[1]]),
    }
    monkeypatch.setattr(engine.backbone, "use_rows", rewired[wrong])

    lanes = collect(engine.stream([make_lane("w5"), make_lane("w5", "a"), make_lane("w5", "b")]))

    errors = [number for number in range(3) if lanes[number]["end"].error is not None]
    assert errors == {"rotated": [0, 1, 2], "all on": [0, 2], "swapped pair": [1, 2]}[wrong]
    assert "this is a bug" in lanes[errors[0]]["end"].error.text


def test_a_reloaded_adapter_is_measured_anew():
    engine = make_engine("llama", {"a": "lora"})
    lanes = [make_lane("w5"), make_lane("w5", "a")]
    before = collect(engine.stream(lanes))[1]["end"].active.max_logit_difference

    for parameter in engine.backbone.adapters["a"].parameters():
        with torch.no_grad():
            parameter.mul_(1.5)
    after = collect(engine.stream(lanes))[1]["end"]

    assert after.error is None
    assert after.active.max_logit_difference != before


def test_weights_act_at_the_next_answer_without_loading():
    engine = engine_of("llama")

    answers = [
        collect(engine.stream([make_lane("w5 w6", ("a", weight))]))[0] for weight in (0, 0.5, 1, -1)
    ]

    assert len({tuple(answer["tokens"]) for answer in answers}) == 4
    assert answers[0]["tokens"] == collect(engine.stream([LANES[0]]))[0]["tokens"]
    assert answers[0]["end"].active.stack == ()


def test_lanes_end_on_their_own():
    engine = engine_of("llama")
    lanes = [
        make_lane("w5", max_new_tokens=n, temperature=1.5, seed=n) for n in (1, 3, 9)
    ]  # fmt: skip

    ends = [lane["end"] for _, lane in sorted(collect(engine.stream(lanes)).items())]

    assert all(end.stats.tokens <= n for end, n in zip(ends, (1, 3, 9), strict=True))
    assert all(end.reason in ("length", "stop") for end in ends)


def test_a_full_context_ends_the_answer_and_says_so():
    lane = make_lane("w5 " * 80, temperature=3.0, max_new_tokens=200)
    lane = lane.model_copy(update={"sampling": lane.sampling.model_copy(update={"seed": 2})})

    answer = collect(engine_of("llama").stream([lane]))[0]

    assert answer["end"].stats.prompt_tokens + answer["end"].stats.tokens <= CONTEXT
    if answer["end"].reason == "length":
        assert answer["notes"] == ["The model's context is full: the answer ends here."]


def test_a_stop_text_ends_the_answer():
    engine = engine_of("llama")
    whole = collect(engine.stream([make_lane("w5 w6", temperature=2.0, seed=1)]))[0]
    third = whole["text"].split()[2]

    cut = collect(engine.stream([make_lane("w5 w6", temperature=2.0, seed=1, stop=[third])]))[0]

    assert cut["text"].rstrip() == " " + " ".join(whole["text"].split()[:2])
    assert cut["end"].reason == "stop"


def test_stopping_ends_every_lane_where_it_is():
    engine = engine_of("llama")
    asked = iter([False] * 3 + [True] * 100)
    lanes = [make_lane("w5", temperature=2.0, seed=s, max_new_tokens=60) for s in (1, 2)]

    answers = collect(engine.stream(lanes, stopped=lambda: next(asked)))

    for answer in answers.values():
        assert answer["end"].reason in ("stopped", "stop")
        assert 1 <= answer["end"].stats.tokens <= 3


def test_a_lane_that_cannot_answer_costs_only_itself():
    engine = make_engine("llama", {"a": "lora", "overflowing": "lora"})
    for parameter in engine.backbone.adapters["overflowing"].parameters():
        parameter.data.fill_(float("nan"))
    lanes = [LANES[0], make_lane("w5", "nobody"), make_lane("w5 " * 200), LANES[1]]

    answers = collect(engine.stream(lanes))
    overflowed = collect(engine.stream([make_lane("w5", "overflowing"), LANES[0]]))

    assert answers[1]["end"].error.text == 'The adapter "nobody" is not loaded.'
    assert "shorten it" in answers[2]["end"].error.text
    assert "overflow" in overflowed[0]["end"].error.text
    assert answers[3]["end"].error is overflowed[1]["end"].error is None
    assert answers[0]["tokens"] == overflowed[1]["tokens"]
    engine._template_for = lambda lane: SimpleNamespace(  # of another model: it makes token 500
        name="wrong", stop_ids=(), encode_prompt=lambda messages, tools: [500]
    )
    error = collect(engine.stream([make_lane("w5")]))[0]["end"].error
    assert "do not belong together" in error.text


def test_log_probabilities_are_the_models_own():
    engine = engine_of("llama")
    lane = make_lane("w5 w6", temperature=0, logprobs=3, max_new_tokens=2)

    scored = [delta.scored for delta in engine.stream([lane]) if delta.scored]

    engine.backbone.use([])
    with torch.no_grad():
        expected = engine.loaded.model(torch.tensor([[1, 5, 6, 2]])).logits[0, -1].log_softmax(-1)
    values, ids = expected.topk(3)
    assert scored[0].logprob == pytest.approx(float(values[0]), abs=1e-4)
    assert [other.token_id for other in scored[0].top] == ids.tolist()
    assert scored[0].token_id == ids[0]


def test_an_unfinished_answer_is_continued():
    engine = engine_of("llama")
    lane = make_lane("w5 w6", max_new_tokens=10)
    whole = collect(engine.stream([lane]))[0]["tokens"]

    begun = " ".join(f"w{token}" for token in whole[:4])
    messages = (*lane.messages, Message(role="assistant", content=begun))
    rest = collect(engine.stream([lane.model_copy(update={"messages": messages})]))[0]["tokens"]

    assert rest[: len(whole) - 4] == whole[4:]
