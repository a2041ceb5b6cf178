"""What a cluster answers becomes facts, and what it does not becomes a sentence."""

import json
import socket
import sys

import pytest

from studio.cluster.ray_api import ClusterFacts, NoAnswer, Ray, checked_address, error_in
from studio.cluster.shared_storage import MARK, lacking, needed
from studio.cluster.submit import too_few
from studio.errors import ClusterError, Diverged
from tests.dashboard import node, nodes


def test_gpus_of_living_machines_are_the_devices(dashboard):
    assert Ray(dashboard.address).facts() == ClusterFacts(
        version="2.60.0", kind="GPU", devices=6, free=5, machines=2
    )


def test_without_gpus_processors_are_and_too_few_say_how_many_there_are(dashboard):
    words = "train.num_processes is 8, but the cluster has 6 GPUs on 2"
    assert too_few(8, Ray(dashboard.address).facts()).startswith(words)
    dashboard.answers["/nodes?view=summary"] = nodes(node(CPU=3))
    dashboard.answers["/api/cluster_status"] = {"data": {"clusterStatus": None}}
    facts = Ray(dashboard.address).facts()
    assert (facts.kind, facts.devices, facts.free) == ("CPU", 3, 3)


def test_an_address_nobody_answers_is_a_sentence():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(NoAnswer, match=f"The cluster at {address} does not answer"):
        Ray(address).facts()


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (503, NoAnswer, "it answered 503"),
        (401, ClusterError, "set RAY_AUTH_TOKEN"),
        *((strange, ClusterError, "is not a Ray dashboard")
          for strange in (404, b"<html>hello</html>", {"version": 1}, [1])),
        *(({"ray_version": old}, ClusterError, f"runs Ray {old}; this studio needs 2.51 or later")
          for old in ("2.9.3", "1.13", "3.0.0")),
    ],
)  # fmt: skip
def test_a_dashboard_that_cannot_be_used_is_a_sentence(dashboard, answer, kind, words):
    dashboard.answers["/api/version"] = answer
    with pytest.raises(kind, match=words):
        Ray(dashboard.address).facts()


def test_a_job_has_a_status_or_is_not_known(dashboard):
    dashboard.answers["/api/jobs/one"] = {"status": "FAILED", "message": "why"}
    ray = Ray(dashboard.address)
    assert ray.status("one") == ("FAILED", "why")
    assert ray.status("two") is None
    ray.stop("one")
    assert dashboard.asked[-1] == "POST /api/jobs/one/stop"


def test_an_address_may_leave_out_what_is_clear_and_what_is_none_is_refused():
    assert checked_address("10.0.0.5:8265") == "http://10.0.0.5:8265"
    assert checked_address(" https://ray.example/x/ ") == "https://ray.example/x"
    for wrong in ("", "ftp://x", "http://a b", "http://x'; rm -rf", "file:///etc"):
        with pytest.raises(ClusterError, match="Invalid address"):
            checked_address(wrong)
    with pytest.raises(ClusterError, match=r"such as http://head:8265"):
        checked_address("ray://head:10001")


def test_a_drivers_last_word_is_its_error():
    log = f"a line\n{MARK}{json.dumps(Diverged('The loss became nan.').as_dict())}\n"
    found = error_in(log)
    assert isinstance(found, Diverged) and found.text == "The loss became nan."
    assert error_in("nothing of the kind") is None


def test_what_is_needed_is_here_and_what_is_not_is_named():
    assert any(text.startswith("torch") for text in needed())
    assert lacking(needed()) == ""
    assert lacking(("no-such-package>=2",)) == "no-such-package is not installed"
    assert lacking(("pydantic<1",)).startswith("pydantic is 2.")


def test_a_studio_without_ray_says_what_to_install(dashboard, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.job_submission", None)
    with pytest.raises(ClusterError, match=r"pip install 'adapter-studio\[ray\]'"):
        Ray(dashboard.address).submit("one", place="/x")
