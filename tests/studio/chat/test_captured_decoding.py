"""Captured decoding on a simulated GPU: the CPU's answers, and one launch for a token's model."""

import json
import logging

import pytest
import torch

from jobs.doctor import examine
from studio.chat import captured_decoding
from studio.chat.lanes import Sampling
from studio.training import kernel_check
from studio.training.kernel_check import graph_results, sentences
from studio.training.sample_answers import continuations
from tests.fakegpu import GPU, fake_gpu, log
from tests.fakegraph import Graph
from tests.studio.chat.test_chat_on_gpu import ADAPTERS, LANE_SETS
from tests.studio.chat.tiny import collect, make_engine, make_lane

LONG = {"max_new_tokens": 60, "stop": []}
WEIGHED = [make_lane("w5 w6", ("a", 0.5), **LONG), make_lane("w7 w8 w9", ("b", 1.0), **LONG)]
SETS = LANE_SETS | {
    "long": [make_lane("w5 w6", "a", **LONG), make_lane("w5 w6 w7 w8 w9 w1 w2 w3 w4", **LONG)],
    "lengths": [make_lane("w5 w6", "a", max_new_tokens=n) for n in (12, 30, 24)],
}  # fmt: skip


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(captured_decoding, "CALM", 2)


def answers(kind, lanes, device="cpu", home=None, wanted=None, seen=None):
    """Return what each lane said; `seen` gets launches and host waits of each delta."""
    engine = make_engine(kind, ADAPTERS, device)
    if home is not None:
        place = {"device": engine.loaded.device, "dtype": torch.float32, "home": home}
        captured_decoding.allow(engine.backbone, **place)
    said, log_of = [], [] if seen is None else seen
    for delta in engine.stream(lanes, wanted=wanted and wanted()):
        said.append(delta)
        log_of.append((dict(log.ops), log.waits.total(), log.launches))
        log.clear()
    return {n: (one["tokens"], one["text"]) for n, one in collect(said).items()}


@pytest.fixture
def fast(monkeypatch):
    times = {"replayed": 1.0, "eager": 2.0}
    monkeypatch.setattr(captured_decoding, "milliseconds", lambda call, device, calls: (
        times["replayed" if call.__name__ == "_replayed" else "eager"]
    ))  # fmt: skip
    return times


@pytest.mark.parametrize("kind", ["llama", "windowed"])
@pytest.mark.parametrize("name", SETS)
def test_answers_are_those_of_the_cpu(name, kind, home, fast, monkeypatch):
    """With eight spare columns, long answers need several graphs."""
    monkeypatch.setattr(captured_decoding, "ROOM", 8)
    monkeypatch.setattr(captured_decoding, "MULTIPLE", 4)
    expected, seen = answers(kind, SETS[name]), []
    with fake_gpu():
        found = answers(kind, SETS[name], "cuda:0", home, seen=seen)
    assert found == expected
    (result,) = graph_results(home).read().values()
    assert result == {"why": "", "milliseconds": 1.0, "plain_milliseconds": 2.0}
    replayed = [one for one in seen if one[0].get("replay") and "embedding" not in one[0]]
    assert replayed, "no token was one launch of a graph"
    assert {waits for _, waits, _ in replayed} == {1}


def test_a_token_of_one_lane_takes_a_few_launches(home, fast):
    seen = []
    with fake_gpu():
        answers("llama", SETS["long"][:1], "cuda:0", home, seen=seen)
    launches = [n for ops, _, n in seen if ops.get("replay") and "embedding" not in ops]
    assert launches and max(launches) <= 9, launches  # ids, counts, graph, copies, the choice


def test_a_changed_weight_ends_the_graph_and_the_next_one_has_it(home, fast):
    """Weights move every tenth token."""

    def wanted():
        asked = [0]

        def now():
            asked[0] += 1
            return {0: (("a", 0.5 + asked[0] // 10 / 8),)}

        return now

    expected = answers("llama", WEIGHED, wanted=wanted)
    assert expected != answers("llama", WEIGHED)
    seen = []
    with fake_gpu():
        assert answers("llama", WEIGHED, "cuda:0", home, wanted=wanted, seen=seen) == expected
    assert sum("replay" in ops for ops, *_ in seen) > 20


def test_a_run_that_learns_from_its_answers_gets_those_of_the_cpu(home, fast):
    """Two prompts, three drawn answers each, that end at different lengths."""

    def written(device):
        engine = make_engine("llama", ADAPTERS, device)
        place = {"device": engine.loaded.device, "dtype": torch.float32, "home": home}
        captured_decoding.allow(engine.backbone, **place)
        engine.backbone.use([("a", 1.0)])
        own = [Sampling(temperature=1.0, seed=seed) for seed in (1, 2, 3)]
        found = continuations(
            engine.backbone, [[1, 5, 6, 2], [1, 7, 2]], [own, own], device=engine.loaded.device,
            stop_ids={96, 3, 4}, limits=[40, 30],
        )  # fmt: skip
        return [one.ids for one in found]

    expected = written("cpu")
    assert len(set(map(len, expected))) > 2
    with fake_gpu():
        assert written("cuda:0") == expected
        assert log.ops["replay"] > 10


def waiting(monkeypatch, fast):
    """A model that reads a number of the token on the host."""
    run = captured_decoding.Capture._eager
    monkeypatch.setattr(captured_decoding.Capture, "_eager", lambda self: (
        run(self) + (self._place * 0).item()
    ))  # fmt: skip
    return "RuntimeError: CUDA error: item while capturing"


def wrong(monkeypatch, fast):
    replay = Graph.replay

    def twice(self):
        replay(self)
        self.steps = self.steps[:-1]  # the next time, the logits stay what they are
        for held in self.own.values():
            held.fill_(0)

    monkeypatch.setattr(Graph, "replay", twice)
    return "its logits differ by"


def slow(monkeypatch, fast):
    fast["replayed"] = 3.0
    return "3 ms a token, 2 without it"


@pytest.mark.parametrize("fault", [waiting, wrong, slow])
def test_a_graph_that_fails_differs_or_is_slow_is_not_used(fault, home, fast, monkeypatch, caplog):
    expected = answers("windowed", SETS["long"])
    why, seen = fault(monkeypatch, fast), []
    with fake_gpu(), caplog.at_level(logging.WARNING):
        found = answers("windowed", SETS["long"], "cuda:0", home, seen=seen)
        assert found == expected
        assert [record.message.partition(": ")[2][: len(why)] for record in caplog.records] == [why]
        seen.clear()
        assert answers("windowed", SETS["long"], "cuda:0", home, seen=seen) == expected
    assert not any("replay" in ops for ops, *_ in seen), "tried again"
    (result,) = graph_results(home).read().values()
    assert result["why"].startswith(why)
    (text,) = sentences(home)
    assert text in [one["text"] for one in examine(home.path)["findings"]] and why in text
    monkeypatch.setattr(kernel_check, "_version", lambda name: "another")
    assert sentences(home) == []
    key = next(iter(json.loads((home.state / "graphs.json").read_text())))
    assert key.startswith("Fake RTX / 8.6 / float32 / MistralForCausalLM / ")


def test_out_of_memory_is_not_kept(home, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(captured_decoding.Capture, "_record", full)
    expected = answers("llama", SETS["long"])
    with fake_gpu():
        assert answers("llama", SETS["long"], "cuda:0", home) == expected
    assert graph_results(home).read() == {}


def test_graphs_can_be_switched_off(home, monkeypatch):
    monkeypatch.setenv("STUDIO_GRAPHS", "0")
    with fake_gpu():
        answers("llama", SETS["base"], "cuda:0", home)
    assert graph_results(home).read() == {}


def test_the_simulated_graph_refuses_what_a_real_one_does():
    with fake_gpu(), torch.cuda.device(GPU), torch.no_grad():
        x, y, graph = torch.ones(3, device=GPU), torch.ones(3, device=GPU), torch.cuda.CUDAGraph()
        graph.capture_begin()
        z = x * 2 + y
        x += 1
        graph.capture_end()
        assert z.isnan().all() and x.cpu().tolist() == [1.0] * 3, "computed while capturing"
        graph.replay()
        graph.replay()
        assert z.cpu().tolist() == [5.0] * 3 and x.cpu().tolist() == [3.0] * 3
        del y
        with pytest.raises(RuntimeError, match="freed"):
            graph.replay()
        for forbidden in (lambda: x.sum().item(), lambda: torch.tensor([1.0], device=GPU) + x[:1],
                          lambda: x.cpu(), torch.cuda.synchronize):  # fmt: skip
            other = torch.cuda.CUDAGraph()
            other.capture_begin()
            with pytest.raises(RuntimeError, match="while capturing"):
                forbidden()
            other.capture_end()
