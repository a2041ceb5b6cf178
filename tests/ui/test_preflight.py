import pytest

from jobs import supervisor
from studio.spec import RunSpec
from tests.jobs.conftest import begin
from tests.ui.conftest import client_of
from ui.queue_routes import queue_routes
from ui.train_page import train_routes
from ui.train_page_facts import unknown


@pytest.fixture
def client(home, store):
    return client_of(queue_routes(home, store), train_routes(home, store))


def test_the_form_is_estimated_by_part(client):
    found = client.post("/api/train/estimate", json={"set": ["train.max_steps=5"]}).json()
    assert found["total_steps"] == 5
    assert sum(found["parts"].values()) == found["total_bytes"]
    assert set(found["parts"]) == set(found["titles"])


def test_several_processes_are_told_apart_from_their_sum(client):
    found = client.post("/api/train/estimate", json={"set": ["train.num_processes=2"]}).json()
    assert (found["processes"], found["on_device"], found["efficiency"]) == (2, 2, 0.9)
    assert sum(found["parts"].values()) == found["process_bytes"] < found["total_bytes"]
    absent = client.post(
        "/api/train/estimate", json={"set": ["train.device=cuda:70,cuda:71"]}
    ).json()
    assert absent["unknown"].startswith("“Device” names cuda:70, cuda:71, but this machine has")


def test_what_is_not_here_yet_is_said_and_a_path_is_never_called_a_download(home):
    assert unknown(RunSpec(), home) == ""
    for field, words in (("model.path", "model is downloaded"),
                         ("data.path", "dataset is downloaded")):  # fmt: skip
        assert words in unknown(RunSpec().with_values({field: "someone/thing"}), home)
    for field, words in (
        ("data.path", "no file or folder /nope/x"),
        ("model.path", "no model at /nope/x"),
    ):
        said = unknown(RunSpec().with_values({field: "/nope/x"}), home)
        assert words in said and "download" not in said
    file = RunSpec().with_values({"data.path": "gone.jsonl"})
    assert unknown(file, home).startswith("There is no file or folder gone.jsonl: check the path")


def do(client, action, **values):
    return client.post(f"/api/do/{action}", json=values)


def test_a_wrong_field_is_one_sentence(client):
    answer = client.post("/api/train/estimate", json={"set": ["train.max_step=5"]})
    assert answer.status_code == 200, "a form on its way to a valid one is no failure"
    assert "max_steps" in answer.json()["error"]["text"]
    assert do(client, "preflight", set=["train.max_step=5"], fit=True).status_code == 400


def test_a_run_that_ran_out_of_memory_is_queued_again_with_the_remedy_chosen(
    client, store, monkeypatch
):
    monkeypatch.setattr(supervisor, "ensure_running", lambda home: None)
    job = store.submit(RunSpec().with_values({"name": "large", "train.device": "cpu"}))
    claim = begin(store)
    store.claims.finish(claim, "failed", error=("out_of_memory", "Memory ran out at step 1."))
    found = do(client, "refit", job=job.id, listing=True).json()
    assert [one["name"] for one in found][:2] == ["batch", "checkpointing"]
    assert found[0]["same_result"] and found[0]["about"].startswith("Batch size 4")
    answer = do(client, "refit", job=job.id, remedy="checkpointing").json()
    again = RunSpec.parse(store.get(answer["id"]).spec)
    assert answer["remedy"]["name"] == "checkpointing"
    assert again.train.gradient_checkpointing and again.train.per_device_train_batch_size == 8
    first = do(client, "refit", job=job.id).json()
    assert RunSpec.parse(store.get(first["id"]).spec).train.per_device_train_batch_size == 4
    wrong = do(client, "refit", job=job.id, remedy="memory")
    assert wrong.status_code == 400


def test_a_base_that_does_not_fit_is_offered_what_makes_its_weights_smaller(
    client, store, monkeypatch
):
    monkeypatch.setattr(supervisor, "ensure_running", lambda home: None)
    values = {"model.dtype": "float32", "train.device": "cuda:7"}
    job = store.submit(RunSpec().with_values(values))
    claim = begin(store, "cuda:7", wanted=["cuda:7"])
    store.claims.finish(claim, "failed", error=("weights_too_large", "They do not fit."))
    found = do(client, "refit", job=job.id, listing=True).json()
    assert [one["name"] for one in found] == ["precision", "quantization"]
    refused = do(client, "refit", job=job.id).json()["error"]["text"]
    assert "precision (half precision)" in refused


def test_only_a_run_that_ran_out_of_memory_is_refitted(client, store):
    job = store.submit(RunSpec())
    answer = do(client, "refit", job=job.id)
    assert "did not run out of memory" in answer.json()["error"]["text"]
