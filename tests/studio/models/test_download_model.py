"""Models of a hub that fails in every way: a sentence each, nothing half used, the rest kept."""

import hashlib
import json
import threading
from dataclasses import replace

import pytest
from huggingface_hub import file_download

from studio import offline
from studio.errors import DiskFull, ModelError, Unreached
from studio.models import download_model
from studio.models.download_model import DownloadRequest, arrived_bytes, fetch, free_bytes, missing
from studio.models.find_model import facts, origin_of, resolve
from studio.models.hub_models import (
    PARTIAL,
    cached,
    endpoint,
    look_up,
    read_name,
    remove_from_cache,
    repository_folder,
    search,
    size_on_disk,
)
from studio.spec import ModelSource
from studio.starter import MODEL_DIR
from studio.training.training_events import Finished, Working
from tests import hub as hubs
from tests.hub import NAME

SMALL = {"chat_template.jinja", "tokenizer_config.json"}  # a model seems whole without them


def weights(hub):
    """The storage path of the starter's weights."""
    return f"/storage/{NAME}/{hub.repos[NAME].etag('model.safetensors')}"


def test_a_model_arrives_whole_in_the_librarys_own_layout(hub):
    from huggingface_hub import scan_cache_dir, snapshot_download

    repo = hub.repos[NAME]
    repo.files |= {"pytorch_model.bin": b"pickle", "modeling_x.py": b"code", "onnx/a.json": b"{}"}
    assert origin_of(NAME).kind == "hub" and cached(NAME) is None

    folder = resolve(ModelSource(path=NAME))

    wanted = {name for name in repo.files if name.endswith((".json", ".safetensors", ".jinja"))}
    assert {one.name for one in folder.iterdir()} == wanted - {"onnx/a.json"}
    assert facts(ModelSource(path=NAME)).fingerprint == facts(ModelSource()).fingerprint
    asked = len(hub.asked)
    assert resolve(ModelSource(path=NAME)) == folder == cached(NAME) == cached(NAME, repo.sha)
    wanted = ["*.json", "*.safetensors"]
    again = snapshot_download(
        NAME, local_files_only=True, allow_patterns=wanted, ignore_patterns=["*/*"]
    )
    assert again == str(folder)
    assert [one.repo_id for one in scan_cache_dir().repos] == [NAME] and cached(NAME)
    assert origin_of(NAME).is_local and len(hub.asked) == asked  # the hub is not asked again
    assert not list(repository_folder(NAME).rglob(f"*{PARTIAL}"))
    assert remove_from_cache(NAME) > 1_000_000 and cached(NAME) is None
    with pytest.raises(ModelError, match="not in the hub's cache"):
        remove_from_cache(NAME)


def gate(repo, **more):
    repo.gated = "manual"
    for name, value in more.items():
        setattr(repo, name, value)


def configure(**values):
    def change(hub):
        repo = hub.repos[NAME]
        config = json.loads(repo.files["config.json"]) | values
        repo.files["config.json"] = json.dumps(config).encode()

    return change


def pickled(hub):
    files = hub.repos[NAME].files
    files["pytorch_model.bin"] = files.pop("model.safetensors")


def use_token(token):
    from huggingface_hub import constants

    def write(hub):
        gate(hub.repos[NAME], accepted=False)
        hubs.Path(constants.HF_TOKEN_PATH).parent.mkdir(parents=True, exist_ok=True)
        hubs.Path(constants.HF_TOKEN_PATH).write_text(token)

    return write


FAILURES = {
    "unknown": (lambda hub: hub.repos.clear(), ModelError, "neither a folder here nor a model"),
    "gated": (lambda hub: gate(hub.repos[NAME]), ModelError, "1. accept its licence on http"),
    "gated, not granted": (use_token(hubs.TOKEN), ModelError, "has no access yet"),
    "wrong token": (use_token("hf_wrong"), ModelError, "refuses the stored token"),
    "closed": (lambda hub: hub.fail("/resolve/", status=403), ModelError, "closed to your token"),
    "unauthorised": (lambda hub: hub.fail("/api/", status=401), ModelError, "private model needs"),
    "too many requests": (lambda hub: hub.fail("/storage/", status=429), Unreached, "429"),
    "hub down": (lambda hub: hub.fail("/api/", status=503), Unreached, "status 503"),
    "storage down": (lambda hub: hub.fail("/storage/", status=500), Unreached, "status 500"),
    "cut for good": (lambda hub: hub.fail("GET /storage/", cut_after=1000), Unreached, "is kept"),
    "damaged": (lambda hub: hub.fail("GET /storage/", spoil=True), Unreached, "arrived damaged"),
    "silent": (lambda hub: hub.server.server_close(), Unreached, "what has arrived is kept"),
    "pickles": (pickled, ModelError, "only pickled weights"),
    "code": (configure(auto_map={"AutoModel": "x.Y"}), ModelError, "its own Python code"),
    "no family": (configure(architectures=["Odd"], model_type="odd"), ModelError, r"\(Odd\)"),
    "no list": (configure(architectures=7, model_type="odd"), ModelError, r"\(7\)"),
    "quantised": (configure(quantization_config={"quant_method": "aqlm"}), ModelError, "aqlm"),
    "no tokenizer": (lambda hub: [hub.repos[NAME].files.pop(name) for name in list(
        hub.repos[NAME].files) if "token" in name], ModelError, "has no tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_of_the_hub_ends_in_a_sentence_and_nothing_is_half_used(hub, failure):
    break_it, kind, words = FAILURES[failure]
    break_it(hub)

    with pytest.raises(kind, match=words) as error:
        resolve(ModelSource(path=NAME))

    said = error.value.text
    assert NAME in said or "hub" in said
    assert (
        len(said) < 320 and "\n" not in said and hubs.TOKEN not in said and "hf_wrong" not in said
    )
    assert cached(NAME) is None
    assert not list((repository_folder(NAME)).glob("snapshots/*/*"))


def test_a_revision_that_is_gone_and_a_repository_that_was_renamed(hub, monkeypatch):
    with pytest.raises(ModelError, match='has no revision "v9"'):
        resolve(ModelSource(path=NAME, revision="v9"))
    with monkeypatch.context() as mirror:
        mirror.setattr("huggingface_hub.constants.ENDPOINT", "https://me:secret@mirror/hub")
        assert endpoint() == "https://mirror/hub"  # as sentences and pages show it
    hub.repos["org/old"] = hubs.Repo({}, moved_to=NAME)
    assert look_up("org/old").id == NAME
    assert facts(ModelSource(path="org/old")).parameters == facts(ModelSource()).parameters


def test_what_has_arrived_is_kept_and_only_the_rest_is_fetched(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 50_000)
    size = len(hub.repos[NAME].files["model.safetensors"])
    hub.fail(f"GET {weights(hub)}", cut_after=100_000, times=1)
    hub.fail(f"GET {weights(hub)}", status=500, times=1)
    with pytest.raises(Unreached):
        fetch(look_up(NAME))
    found = look_up(NAME)
    rest = {one.name: one.size for one in missing(found)}  # a failure stops what was not begun
    assert rest["model.safetensors"] == size
    assert arrived_bytes(found) == found.size_bytes - sum(rest.values()) + 100_000

    hub.asked.clear()
    fetch(found)

    assert [at for how, path, at in hub.asked if (how, path) == ("GET", weights(hub))] == [100_000]
    assert facts(ModelSource(path=NAME)).fingerprint == facts(ModelSource()).fingerprint


def test_a_range_that_is_ignored_or_a_partial_file_of_other_bytes_does_no_harm(hub):
    found, etag = look_up(NAME), hub.repos[NAME].etag("model.safetensors")
    partial = repository_folder(NAME) / "blobs" / f"{etag}{PARTIAL}"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x" * 5000)
    with pytest.raises(Unreached, match="arrived damaged"):
        fetch(found)
    assert not partial.exists()
    partial.write_bytes(b"y" * 5000)
    hub.takes_ranges = False
    fetch(found)
    assert (
        hashlib.sha256((repository_folder(NAME) / "blobs" / etag).read_bytes()).hexdigest() == etag
    )


@pytest.mark.parametrize(("kind", "more"), [("model", ""), ("dataset", " --repo-type dataset")])
def test_a_file_that_the_hub_does_not_send_whole_is_refused_before_any_is_fetched(
    hub, home, monkeypatch, kind, more
):
    found = look_up(NAME)
    most = max(file.size for file in found.files) - 1  # in place of 50 GB
    monkeypatch.setattr("huggingface_hub.constants.MAX_HTTP_DOWNLOAD_SIZE", most)
    with pytest.raises(ModelError, match=rf"model.safetensors of .*`hf download {NAME}{more}`"):
        fetch(replace(found, kind=kind))
    assert not arrived_bytes(found)


def test_where_links_fail_copies_need_room_and_are_counted(hub, monkeypatch):
    found = look_up(NAME)
    room = download_model.SPARE_BYTES + found.size_bytes * 3 // 2
    monkeypatch.setattr(download_model, "free_bytes", lambda: room)
    download_model.check(found)
    monkeypatch.setattr(download_model, "_copies", lambda: True)
    with pytest.raises(DiskFull, match="are free"):
        download_model.check(found)
    for place in ("blobs/a", "snapshots/c/a"):
        (repository_folder(NAME) / place).parent.mkdir(parents=True, exist_ok=True)
        (repository_folder(NAME) / place).write_bytes(b"x" * 10)
    (repository_folder(NAME) / "snapshots/c/b").symlink_to("../../blobs/a")
    assert size_on_disk(NAME) == 20


def test_a_full_disk_is_said_before_and_while_it_fills(hub, home, monkeypatch):
    found = look_up(NAME)
    with pytest.raises(DiskFull, match="needs .* are free"):
        download_model.check(
            replace(found, files=(replace(found.files[0], size=free_bytes() + 1),))
        )
    real = file_download.http_get

    def full(url, file, *, expected_size, **more):
        if expected_size > 1 << 20:
            file.write(bytes(1 << 19))
            raise OSError(28, "No space left on device")
        real(url, file, expected_size=expected_size, **more)

    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(DiskFull, match="what has arrived is kept"):
        fetch(found)
    with pytest.raises(ModelError, match="free some room"):  # a job fails and may be resumed
        list(DownloadRequest(repo=NAME, commit=found.revision).run(home, None, lambda: None))
    assert arrived_bytes(found) > 1 << 19


def test_offline_only_what_is_here_is_used(hub, monkeypatch):
    resolve(ModelSource(path=NAME))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert facts(ModelSource(path=NAME)).parameters > 1_000_000
    with pytest.raises(Unreached, match="this studio is offline"):
        resolve(ModelSource(path="org/other"))


def test_what_the_hub_or_a_user_names_stays_in_the_models_folder(hub, tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    for revision in ("../../../outside", str(outside), "a/../../b", "a\\..\\b", "a//b"):
        with pytest.raises(ModelError, match="is not a revision"):
            DownloadRequest(repo=NAME, revision=revision, commit=hub.repos[NAME].sha).checked(None)
        with pytest.raises(ModelError, match="is not a revision"):
            fetch(replace(look_up(NAME), branch=revision))
        assert cached(NAME, revision) is None and not outside.exists()
    for etag in ("../../../../outside", "", "A" * 64):
        monkeypatch.setattr(hubs.Repo, "etag", lambda *_, etag=etag: etag)
        with pytest.raises(ModelError, match="names no hash"):
            look_up(NAME)


def test_a_snapshot_that_was_linked_in_part_is_not_used(hub, monkeypatch):
    import huggingface_hub

    def killed(name, *, allow_patterns, **more):
        few = [one for one in allow_patterns if one not in SMALL]
        whole(name, allow_patterns=few, **more)
        raise KeyboardInterrupt

    whole = huggingface_hub.snapshot_download
    with monkeypatch.context() as during:
        during.setattr(huggingface_hub, "snapshot_download", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch(look_up(NAME))
    assert cached(NAME) is None and origin_of(NAME).kind == "hub"
    assert all((resolve(ModelSource(path=NAME)) / one).is_file() for one in SMALL)
    assert cached(NAME)


def test_the_token_goes_to_the_hub_and_not_to_its_storage(hub):
    use_token(hubs.TOKEN)(hub)
    hub.repos[NAME].accepted = True
    fetch(look_up(NAME))
    assert ("GET", weights(hub), 0) in hub.asked
    assert hub.trusted and not [path for path in hub.trusted if "/storage/" in path]


def test_going_offline_stops_a_download_and_keeps_what_arrived(hub, home, monkeypatch):
    monkeypatch.setattr(download_model, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(offline, "_GIVEN", "")
    hub.fail("GET /storage/", stall_after=1 << 20, times=1)
    job = DownloadRequest(repo=NAME, commit=hub.repos[NAME].sha).run(home, home.path, lambda: None)
    while not isinstance(next(job), Working):
        pass
    (home.state / "offline").touch()
    with pytest.raises(Unreached, match="this studio is offline"):
        list(job)


def test_a_job_says_how_far_it_is_and_pins_the_commit(hub, home, monkeypatch):
    monkeypatch.setattr(download_model, "LOOK_SECONDS", 0.01)
    request = DownloadRequest(repo=f"{hub.url}/{NAME}/tree/main").checked(None)
    assert (request.repo, request.revision, request.commit) == (NAME, "main", hub.repos[NAME].sha)
    *others, last = request.run(home, None, lambda: None)
    assert isinstance(last, Finished) and last.facts["folder"] == str(cached(NAME))
    steps = [one for one in others if isinstance(one, Working)]
    assert "4.69 MiB of" in steps[-1].text and steps[-1].step <= steps[-1].total_steps


def test_two_hundred_files_and_two_downloads_at_once(hub):
    hub.repos[NAME].files |= {f"part-{i:03}.json": b'{"i": %d}' % i for i in range(200)}
    found = look_up(NAME)
    fetch(found)
    assert len(list(cached(NAME).iterdir())) == len(found.files) > 200
    hub.repos["org/other"] = hubs.repo_of(MODEL_DIR)
    other = look_up("org/other")
    threads = [threading.Thread(target=fetch, args=(other,)) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert cached("org/other")
    got = [path for how, path, _ in hub.asked if how == "GET" and "part-" in path]
    assert len(got) == len(set(got)) == 200
    assert len([path for _, path, _ in hub.asked if "/storage/org/other" in path]) == 1


def test_search_says_why_a_model_cannot_be_trained(hub):
    hub.repos["org/odd"] = hubs.Repo({"config.json": b'{"model_type": "odd"}'}, downloads=99)
    hub.repos["you/small-GGUF"] = hubs.Repo({"a.gguf": b"x"}, tags=("gguf",), downloads=50)
    found = search("", sort="downloads")
    assert [(one.id, bool(one.why_not)) for one in found] == [
        ("org/odd", True), ("you/small-GGUF", True), (NAME, False)]  # fmt: skip
    assert found[2].license == "apache-2.0" and found[2].parameters > 0
    assert [one.id for one in search("org/s", sort="likes")] == [NAME]


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("org/name", ("org/name", "")),
        (" https://huggingface.co/org/name ", ("org/name", "")),
        ("https://hf-mirror.example/org/name/tree/v1.0?x=1", ("org/name", "v1.0")),
        ("llama3.2:1b", "Ollama"),
        ("ollama run llama3.2", "Ollama"),
        ("someone/Llama-3.2-1B-GGUF", "perhaps someone/Llama-3.2-1B"),
        ("model.Q4_K_M.gguf", "GGUF"),
        ("not a name", "write OWNER/NAME"),
        ("../../etc", "write OWNER/NAME"),
    ],
)
def test_what_a_user_pastes_is_read_or_refused(text, meaning):
    if isinstance(meaning, tuple):
        assert read_name(text) == meaning
    else:
        with pytest.raises(ModelError, match=meaning):
            read_name(text)
