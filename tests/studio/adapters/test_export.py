"""Exports answer like the adapter they were made from; pushes arrive in a small hub of our own."""

import base64
import json
from functools import partial
from pathlib import Path
from typing import ClassVar

import huggingface_hub
import peft
import pytest
import torch
from huggingface_hub import constants

from studio.adapters.export import ExportRequest, PushRequest, export_adapter, files_of, push
from studio.adapters.gguf import GgufRequest
from studio.adapters.library import resolve
from studio.adapters.merge import MergeRequest
from studio.adapters.mix_adapters import mix
from studio.adapters.verify_logits import EXPORT_REPORT
from studio.atomic import read_object
from studio.backbone import Backbone, adapter_files
from studio.errors import AdapterError, InputError, StudioError, Unreached
from studio.home import publishing
from studio.methods.bottleneck import Bottleneck
from studio.methods.lora import Lora
from tests.serving import Handler, serving
from tests.studio.tiny import tiny_folder, tiny_model


@pytest.fixture
def base(tmp_path):
    return tiny_folder(tmp_path / "llama")


def put(home, base: Path, name: str, method, **passport) -> Path:
    """An adapter of the library that was moved by noise, with a passport."""
    backbone = Backbone(tiny_model("llama"))
    adapter = backbone.attach(name, method)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    folder = home.adapters / name
    folder.mkdir()
    backbone.save(name, folder, base=str(base))
    values = {"name": name, "base": {"path": str(base)}, **passport}
    (folder / "passport.json").write_text(json.dumps(values))
    return folder


def test_a_peft_folder_loads_with_peft_and_was_checked_on_its_base(home, base, tmp_path):
    put(home, base, "p", Lora(r=2, target_modules=("q_proj",)))

    out = export_adapter(home, "p", tmp_path / "out")

    peft.PeftModel.from_pretrained(tiny_model("llama"), out)
    check = read_object(out / EXPORT_REPORT)
    assert check["max_error"] == 0.0 and check["moved"] > 0.01
    assert check["tokens_compared"] > 20
    assert "largest logit error 0" in (out / "README.md").read_text()


@pytest.mark.parametrize("place", ["head", "layers"])
def test_a_vllm_folder_names_short_modules_and_its_rank_limit(home, base, tmp_path, place):
    some = ("layers.0.self_attn.q_proj", "layers.1.mlp.up_proj") if place == "layers" else (
        "q_proj", "v_proj")  # fmt: skip
    put(home, base, "v", Lora(r=12, target_modules=some, init_lora_weights="pissa"))

    out = export_adapter(home, "v", tmp_path / "out", form="vllm")

    config = json.loads((out / "adapter_config.json").read_text())
    wanted = {"q_proj", "up_proj"} if place == "layers" else {"q_proj", "v_proj"}
    assert set(config["target_modules"]) == wanted
    assert (config["r"], config["bias"], config["use_dora"]) == (24, "none", False)
    tensors = adapter_files.read_tensors(out, adapter_files.WEIGHTS)
    assert all(key.startswith("base_model.model.model.layers.") for key in tensors)
    assert read_object(out / EXPORT_REPORT)["max_error"] < 1e-5
    card = (out / "README.md").read_text()
    assert "--max-lora-rank 32" in card and f'vllm serve "{base}"' in card


def test_the_rank_limit_of_vllm_is_that_of_the_widest_module(home, base, tmp_path):
    backbone = Backbone(tiny_model("llama"))
    for name, targets, r in (("a", ("q_proj",), 20), ("b", ("q_proj", "v_proj", "k_proj"), 4)):
        backbone.attach(name, Lora(r=r, target_modules=targets))
    mix(backbone, [("a", 1.0), ("b", 1.0)], "mixed")
    with publishing(home.adapters / "wide") as temporary:
        backbone.save("mixed", temporary, base=str(base))
    ranks = json.loads((home.adapters / "wide" / "adapter_config.json").read_text())
    assert ranks["r"] == 24 and set(ranks["rank_pattern"].values()) == {4}
    ranks |= {"r": 4, "lora_alpha": 4, "rank_pattern": {"q_proj": 24}}
    ranks["alpha_pattern"] = {"q_proj": 24}
    (home.adapters / "wide" / "adapter_config.json").write_text(json.dumps(ranks))

    out = export_adapter(home, "wide", tmp_path / "out", form="vllm")

    assert "--max-lora-rank 32" in (out / "README.md").read_text()


def test_biases_of_lora_have_no_place_in_vllm(home, tmp_path):
    base = tiny_folder(tmp_path / "qwen", "qwen2")
    adapter = (backbone := Backbone(tiny_model("qwen2"))).attach(
        "x", Lora(target_modules=("q_proj",))
    )
    for own in adapter.params.values():
        own["lora_bias"] = torch.nn.Parameter(torch.ones(32))
    with publishing(home.adapters / "x") as temporary:
        backbone.save("x", temporary, base=str(base))

    with pytest.raises(AdapterError, match=r"vLLM cannot serve biases of LoRA"):
        export_adapter(home, "x", tmp_path / "no", form="vllm")


def test_an_adapterhub_folder_is_read_back(home, base, tmp_path):
    put(home, base, "b", Bottleneck(bottleneck_dim=4))

    out = export_adapter(home, "b", tmp_path / "hub", form="adapterhub")

    assert json.loads((out / "adapter_config.json").read_text())["name"] == "b"
    assert read_object(out / EXPORT_REPORT)["max_error"] < 1e-5
    again = export_adapter(home, str(out), tmp_path / "peft", model=str(base))
    Backbone(tiny_model("llama")).load("x", again)


def test_the_card_tells_the_training_and_runs_nothing(home, base, tmp_path):
    put(
        home, base, "c<script>", Lora(r=2), steps=40, first_loss=2.5, last_loss=0.5, seed=7,
        data={"path": "rows`.jsonl", "hash": "abc"}, spec={"method": {"name": "lora", "r": 2}},
    )  # fmt: skip

    out = export_adapter(home, "c<script>", tmp_path / "card", form="card")

    text = (out / "README.md").read_text()
    assert [file.name for file in out.glob("*.safetensors")] == []
    assert "# c\\<script\\>" in text and "<script>" not in text.replace("\\<script\\>", "")
    assert "2.5000 at first, 0.5000 at the end" in text
    assert "`rows'.jsonl`" in text and "Seed: 7" in text and "`name=lora`, `r=2`" in text


@pytest.mark.parametrize(
    ("method", "form", "sentence"),
    [
        (Bottleneck(bottleneck_dim=4), "vllm", "vLLM serves LoRA only"),
        (Lora(r=2, use_dora=True), "vllm", "vLLM cannot serve DoRA"),
        (
            Lora(r=2, target_modules=("lm_head", "q_proj")),
            "vllm",
            "outside the layers .lm_head",
        ),
        (
            Lora(r=2, target_modules=("q_proj",), modules_to_save=("up_proj",)),
            "vllm",
            r"modules trained in full \(model.layers.0.mlp.up_proj, ",
        ),
        (Lora(r=2), "adapterhub", "LoRA cannot be written in AdapterHub"),
    ],
)
def test_what_has_no_place_in_a_form_is_refused_and_nothing_is_kept(
    home, base, tmp_path, method, form, sentence
):
    put(home, base, "x", method)

    with pytest.raises(AdapterError, match=sentence):
        export_adapter(home, "x", tmp_path / "no", form=form)

    assert not (tmp_path / "no").exists()


def test_files_that_answer_differently_are_not_kept(home, base, tmp_path, monkeypatch):
    put(home, base, "w", Lora(r=2))
    own = adapter_files.write

    def spoiled(adapter, out, anatomy, *, base):
        own(adapter, out, anatomy, base=base)
        config = json.loads((out / "adapter_config.json").read_text())
        (out / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 99}))

    monkeypatch.setattr(adapter_files, "write", spoiled)

    with pytest.raises(AdapterError, match="exported adapter differs from the original"):
        export_adapter(home, "w", tmp_path / "no", form="vllm")

    assert not (tmp_path / "no").exists()


def test_without_its_base_a_copy_is_read_and_says_so(home, base, tmp_path):
    put(home, tmp_path / "gone", "lost", Lora(r=2))

    out = export_adapter(home, "lost", tmp_path / "out")

    assert read_object(out / EXPORT_REPORT)["max_error"] is None
    assert "Its base is not here" in (out / "README.md").read_text()
    with pytest.raises(StudioError):
        export_adapter(home, "lost", tmp_path / "vllm", form="vllm")


def test_a_request_is_checked_before_it_is_queued(home, base, tmp_path):
    put(home, base, "q", Bottleneck(bottleneck_dim=4))

    asked = ExportRequest.parse({"adapter": "q", "form": "adapterhub"}).checked(home)

    assert asked.out == str(home.path / "exports" / "q-adapterhub")
    with pytest.raises(AdapterError, match="vLLM serves LoRA only"):
        ExportRequest.parse({"adapter": "q", "form": "vllm"}).checked(home)
    with pytest.raises(InputError, match="exists already"):
        ExportRequest.parse({"adapter": "q", "out": str(tmp_path)}).checked(home)
    assert resolve(home, "q") == home.adapters / "q"


def test_a_place_where_no_folder_can_be_is_refused_before_anything_is_queued(
    home, base, tmp_path, monkeypatch
):
    put(home, base, "q", Lora(r=2, target_modules=("q_proj",)))
    file = tmp_path / "odd.csv"
    file.write_text("a,b")
    below = str(file / "x" / "y")
    stack = [{"name": "q"}]

    with pytest.raises(InputError, match=r"odd\.csv is a file, not a folder"):
        export_adapter(home, "q", file / "x")
    for request in (
        ExportRequest.parse({"adapter": "q", "out": below}),
        MergeRequest.parse({"model": {"path": str(base)}, "stack": stack, "out": below}),
        GgufRequest.parse({"model": {"path": str(base)}, "stack": stack, "out": below}),
    ):
        with pytest.raises(InputError, match=r"odd\.csv is a file, not a folder"):
            request.checked(home)

    def full(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(InputError, match="is not writable \\(permission denied\\)"):
        export_adapter(home, "q", tmp_path / "closed")
    assert not (tmp_path / "closed").exists()


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
        push(folder, "me/x")


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
        push(folder, "me/x")

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
