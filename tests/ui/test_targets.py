"""The routes behind the picker of target modules."""

from fastapi.testclient import TestClient

from tests.ui.conftest import client_of
from ui.targets import target_routes


def page() -> TestClient:
    return client_of(target_routes())


def test_the_starters_own_modules_can_be_ticked_layer_by_layer():
    modules = page().get("/api/targets", params={"path": "starter"}).json()["modules"]
    names = {one["name"] for one in modules}
    assert {"self_attn.q_proj", "mlp.down_proj"} <= names
    queries = [one["key"] for one in modules if one["name"] == "self_attn.q_proj"]
    ask = {"path": "starter", "keys": queries}
    assert page().post("/api/targets", json=ask).json() == {"targets": ["q_proj"]}
    ask["keys"] = queries[:1]
    assert page().post("/api/targets", json=ask).json() == {"targets": queries[:1]}


def test_a_model_that_is_not_here_is_a_sentence_and_no_download():
    for path in ("org/name", "/no/such/folder", ""):
        answer = page().get("/api/targets", params={"path": path})
        assert answer.status_code == 400 and "not a folder here" in answer.json()["error"]["text"]
