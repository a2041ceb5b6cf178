"""The System page's cluster: named there, shown as a device, with what is wrong."""

import pytest

from jobs import ray_cluster, supervisor
from jobs.doctor import examine
from studio import gpus
from studio.spec import RunSpec
from tests.jobs.conftest import begin, take, until
from tests.ui.conftest import client_of
from ui import page_frame
from ui.queue_routes import queue_routes
from ui.system_page import system_routes
from ui.train_page_facts import device_choices


@pytest.fixture
def page(home, store, monkeypatch):
    monkeypatch.setattr(supervisor, "ensure_running", lambda _: 0)
    return client_of(system_routes(home, store), queue_routes(home, store))


def test_a_cluster_is_one_more_device_with_who_holds_it(page, store, dashboard, tmp_path):
    assert page.get("/api/system").json()["cluster"] is None
    wanted = {"address": dashboard.address, "storage": str(tmp_path / "s")}
    assert page.post("/api/do/cluster", json=wanted).json()["devices"] == 6
    store.submit(RunSpec.parse({"name": "far", "train": {"device": "ray", "num_processes": 2}}))
    take(store, "ray:0", more=["ray:1"], wanted=["ray"])

    found = until(lambda: (s := page.get("/api/system").json()["cluster"]).get("devices") and s)

    assert (found["free"], found["kind"], found["holders"]) == (5, "GPU", ["far"])
    assert page.post("/api/do/cluster", json={"off": True}).json() is None
    assert ray_cluster.chosen(store) is None


def test_a_gpu_that_torch_cannot_use_is_shown_with_the_command_that_mends_it(page, monkeypatch):
    card = gpus.Card(
        name="", label="NVIDIA RTX 3060", total_bytes=12 << 30, free_bytes=12 << 30,
        why="The installed torch is built for CPUs only.", command="uv pip install torch<3",
    )  # fmt: skip
    monkeypatch.setattr(gpus, "cards", lambda: [card])
    (row,) = page.get("/api/system").json()["blocked"]
    assert (row["label"], row["command"]) == ("NVIDIA RTX 3060", "uv pip install torch<3")

    (found,) = [f for f in examine(None)["findings"] if "RTX 3060" in f["text"]]
    assert found["kind"] == "problem" and card.why in found["text"]
    assert "Run: uv pip install" in found["text"]

    assert "Runs use the CPU: NVIDIA RTX 3060" in page_frame.bar(
        "/"
    ) and "torch&lt;3" in page_frame.bar("/")
    monkeypatch.setattr(gpus, "cards", list)
    assert "gpu-notice" not in page_frame.bar("/")


def test_the_form_offers_the_cluster_among_the_devices():
    values = [value for _, value in device_choices()]
    assert values[:2] == ["auto", "all"] and "cpu" in values and values[-1] == "ray"


def test_who_holds_a_device_is_named_with_state_time_and_memory(page, store):
    job = store.submit(RunSpec(name="<b>large"), memory_bytes=5 * 10**8).id
    begin(store)
    store.take_chat_lease("cpu", memory_bytes=10**7)
    store.ask_chat_to_leave("cpu")

    here = page.get("/api/system").json()["devices"][-1]

    held = [(h["name"], h["job"], h["state"], h["bytes"]) for h in here["holders"]]
    assert here["name"] == "cpu" and held == [
        ("chat", None, "asked to leave", 10**7),
        ("<b>large", job, "running", 5 * 10**8),
    ]
    assert all(0 <= one["seconds"] < 60 for one in here["holders"])


def test_what_is_not_measured_yet_is_not_told_as_zero(page, store):
    store.announce("web", url="http://127.0.0.1:1")
    rows = page.get("/api/system").json()["processes"]
    assert [row["cpu"] for row in rows if row["pid"]] == [None]
    rows = page.get("/api/system").json()["processes"]
    assert all(row["cpu"] is not None for row in rows if row["pid"])
