"""Uploading goes through the hub's own library to a small hub of our own on the loopback."""

import base64
import json
from functools import partial
from typing import ClassVar

import huggingface_hub
import pytest
from huggingface_hub import constants

from studio.adapters import export
from studio.adapters.export import PushRequest, files_of
from studio.errors import InputError, Unreached
from tests.serving import Handler, serving


class Hub(Handler):
    """As much of a hub's API as an upload of small files needs."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[tuple[str, str]]] = []
    status = 200
    loses = ""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        Hub.asked.append((self.path, self.headers.get("authorization", "")))
        if Hub.status != 200:
            return self.answer({"error": "no"}, Hub.status)
        if self.path.endswith("/repos/create"):
            name = json.loads(body)["name"]
            return self.answer({"url": f"http://{self.headers['host']}/me/{name}"})
        if "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False,
                      "oid": None} for f in asked]  # fmt: skip
            return self.answer({"files": modes})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    Hub.files[value["path"]] = base64.b64decode(value["content"])
            address = f"http://{self.headers['host']}/me/x/commit/{'0' * 40}"
            return self.answer({"commitUrl": address, "commitOid": "0" * 40, "success": True,
                                "pullRequestUrl": None})  # fmt: skip
        if "/paths-info/" in self.path:
            there = [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                     for name, data in Hub.files.items() if name != Hub.loses]  # fmt: skip
            return self.answer(there)
        return self.answer({})

    def do_GET(self) -> None:
        self.answer({"id": "me/x", "modelId": "me/x", "siblings": []}, Hub.status)

    def answer(self, values: object, status: int = 200) -> None:
        body = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch):
    Hub.files, Hub.asked, Hub.status, Hub.loses = {}, [], 200, ""
    monkeypatch.setattr(constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    with serving(Hub) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(
            huggingface_hub, "HfApi", partial(huggingface_hub.HfApi, endpoint=address)
        )
        yield Hub


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "export"
    made.mkdir()
    (made / "adapter_model.safetensors").write_bytes(b"weights")
    (made / "README.md").write_text("card")
    (made / "MANIFEST.json").write_text("{}")
    (made / "passport.json").write_text('{"base": {"path": "/home/me/models"}}')
    return made


def test_a_folder_is_uploaded_and_looked_at(hub, folder, home):
    request = PushRequest.parse({"folder": str(folder), "repo": "me/x"}).checked(home)

    finished = list(request.perform(home))[-1]

    assert finished.facts["address"].endswith("/me/x")
    assert hub.files == {"adapter_model.safetensors": b"weights", "README.md": b"card"}
    assert {word for _, word in hub.asked} == {"Bearer hf_secret"}
    assert "hf_secret" not in request.model_dump_json()


def test_what_did_not_arrive_whole_is_said(hub, folder):
    hub.loses = "README.md"

    with pytest.raises(InputError, match=r"README.md did not arrive completely in me/x"):
        export.push(folder, "me/x")


@pytest.mark.parametrize(
    ("status", "kind", "sentence"),
    [(401, InputError, "no longer valid"), (403, InputError, "cannot write"),
     (418, InputError, "status 418"), (429, Unreached, "status 429"),
     (503, Unreached, "status 503")],
)  # fmt: skip
def test_a_refusal_is_a_sentence_and_a_busy_hub_may_be_asked_again(
    hub, folder, status, kind, sentence
):
    hub.status = status

    with pytest.raises(kind, match=sentence) as caught:
        export.push(folder, "me/x")

    assert "hf_secret" not in caught.value.text


def test_offline_and_without_a_token_nothing_is_tried(hub, folder, home, monkeypatch):
    asked = PushRequest.parse({"folder": str(folder), "repo": "me/x"})
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(InputError, match="The hub has no token"):
        asked.checked(home)
    monkeypatch.setattr(constants, "is_offline_mode", lambda: True)
    with pytest.raises(InputError, match="this studio is offline"):
        asked.checked(home)
    assert hub.asked == []


def test_a_name_that_is_no_repository_or_an_empty_folder_is_refused(folder, home, tmp_path):
    (tmp_path / "empty").mkdir()
    assert files_of(tmp_path / "empty") == {}
    for place, repos, words in (
        (str(folder), ("", "x", "a/b/c", "../x", "me/ x"), "Invalid repository"),
        (str(tmp_path / "empty"), ("me/x",), "has nothing to upload"),
        ("", ("me/x",), "has nothing to upload"), ("/no/such", ("me/x",), "has nothing to upload"),
    ):  # fmt: skip
        for repo in repos:
            with pytest.raises(InputError, match=words):
                PushRequest.parse({"folder": place, "repo": repo}).checked(home)
