"""Chat on a simulated GPU: the CPU's answers, and one host wait per token."""

import pytest

from tests.fakegpu import GPU, MPS, XPU, fake_gpu, log
from tests.studio.chat.tiny import collect, make_engine, make_lane

ADAPTERS = {"a": "lora", "b": "lora", "p": "prefix_tuning", "i": "ia3"}
DRAWN = {"temperature": 1.1, "seed": 4, "stop": []}
LANE_SETS = {
    "base": [make_lane("w5 w6")],
    "one adapter": [make_lane("w5 w6", "a")],
    "drawn": [
        make_lane("w5 w6", "a", **DRAWN, top_p=0.9),
        make_lane("w5 w6", "a", **DRAWN, top_k=5, logprobs=2),
        make_lane("w5 w6 w7", "a", **DRAWN),
        make_lane("w5", "a", **DRAWN, top_p=0.7, top_k=9, repetition_penalty=1.3),
    ],
    "an adapter each": [
        make_lane("w5 w6"), make_lane("w5 w6 w9", "a", logprobs=1),
        make_lane("w7", "b", ("a", 0.5), repetition_penalty=1.4),
    ],
    "methods mixed": [make_lane("w5 w6", "p"), make_lane("w5 w6 w9", "i"), make_lane("w7", "b")],
}  # fmt: skip


def answered(device, lanes):
    """Return what each lane said, and the most host waits of a token after the first ones."""
    engine = make_engine("llama", ADAPTERS, device)
    said, most = [], 0
    for number, delta in enumerate(engine.stream(lanes)):
        said.append(delta)
        if number > 2 * len(lanes) and not delta.done:
            most = max(most, log.waits.total())
        log.clear()
    found = collect(said)
    return {n: (one["tokens"], one["text"], one["end"].reason) for n, one in found.items()}, most


@pytest.mark.parametrize("device", [GPU, MPS, XPU], ids=str)
@pytest.mark.parametrize("name", LANE_SETS)
def test_answers_are_those_of_the_cpu_at_one_wait_a_token(name, device):
    expected, _ = answered("cpu", LANE_SETS[name])
    with fake_gpu(device=device):
        found, waits = answered(str(device), LANE_SETS[name])
    assert found == expected
    assert max(len(tokens) for tokens, *_ in found.values()) > 4
    assert waits == 1
