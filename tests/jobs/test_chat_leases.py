"""Training comes first: chat gives way on a GPU and shares a CPU."""

from jobs.chat_worker import Leases
from jobs.store import JobStore


class Board(JobStore):
    """A store whose leases are told by the test."""

    rows = ()

    def leases(self):
        return self.rows


def leases_with(home, *rows):
    leases = Leases(home)
    leases._store = Board(home)
    leases._store.rows = [{"wanted_back": 0} | row for row in rows]
    return leases


def test_what_chat_holds_is_written_and_returned(home):
    leases, store = Leases(home), JobStore(home)

    leases.take([{"device": "cpu", "bytes": 100}, {"device": "cpu", "bytes": 20}])
    held = [(row["device"], row["holder"], row["memory_bytes"]) for row in store.leases()]
    leases.give_back()

    assert held == [("cpu", "chat", 120)]
    assert store.leases() == []


def test_a_gpu_is_given_back_when_a_job_has_it(home):
    leases = leases_with(home, {"device": "cuda:0", "holder": "job"})

    leases.take([{"device": "cuda:0", "bytes": 1}])

    assert leases.wanted()


def test_a_gpu_is_given_back_when_it_is_asked_for(home):
    leases = leases_with(home, {"device": "cuda:0", "holder": "chat", "wanted_back": 1})

    leases.take([{"device": "cuda:0", "bytes": 1}])

    assert leases.wanted()


def test_a_cpu_or_another_gpu_is_kept(home):
    leases = leases_with(
        home, {"device": "cpu", "holder": "job"}, {"device": "cuda:1", "holder": "job"}
    )

    leases.take([{"device": "cpu", "bytes": 1}, {"device": "cuda:0", "bytes": 1}])

    assert not leases.wanted()


def test_models_go_to_the_cpu_while_a_job_has_the_gpu(home, monkeypatch):
    monkeypatch.setattr("studio.models.loading.default_device", lambda: "cuda:0")

    assert leases_with(home).device() == "cuda:0"
    assert leases_with(home, {"device": "cuda:0", "holder": "job"}).device() == "cpu"


def test_a_gpu_of_which_a_job_has_only_a_seat_is_the_jobs(home, monkeypatch):
    monkeypatch.setattr("studio.models.loading.default_device", lambda: "cuda:0")
    leases = leases_with(home, {"device": "cuda:0#2", "holder": "job"})

    assert leases.device() == "cpu"
    leases.take([{"device": "cuda:0", "bytes": 1}])
    assert leases.wanted()


def test_a_cpu_of_which_a_job_has_a_seat_is_shared(home):
    leases = leases_with(home, {"device": "cpu#2", "holder": "job"})

    leases.take([{"device": "cpu", "bytes": 1}])

    assert not leases.wanted()
    assert leases._taken_by_jobs() == {"cpu"}
