"""Downloads: an adapter and what a job wrote as a zip that is made while it is sent."""

import io
import zipfile

from tests.jobs.conftest import a_spec
from tests.ui.conftest import client_of, put_adapter
from ui.downloads import PIECE, download_routes, zipped


def test_a_zip_holds_the_files_of_a_folder_and_no_links(tmp_path):
    folder = tmp_path / "pirate é"
    (folder / "inner").mkdir(parents=True)
    large = bytes(range(256)) * (PIECE // 64)
    (folder / "weights.safetensors").write_bytes(large)
    (folder / "inner" / "empty.json").write_bytes(b"")
    (tmp_path / "secret").write_text("not of this folder")
    (folder / "link").symlink_to(tmp_path / "secret")
    pieces = list(zipped(folder))
    assert max(map(len, pieces)) < 2 * PIECE  # never a whole file in memory
    with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as read:
        assert read.testzip() is None
        assert sorted(read.namelist()) == [
            "pirate é/inner/empty.json",
            "pirate é/weights.safetensors",
        ]
        assert read.read("pirate é/weights.safetensors") == large


def test_an_adapter_is_sent_by_its_id_and_what_a_job_wrote_by_its_number(home, store):
    page = client_of(download_routes(home, store))
    put_adapter(home.adapters / "a", "garden 花")
    answer = page.get("/api/download/adapter/library-a")
    assert answer.headers["content-disposition"].endswith("garden%20%E8%8A%B1.zip")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as read:
        assert read.read("a/adapter_model.safetensors") == b"12345"
    for path, words in (
        ("adapter/nothing", 'no adapter "nothing"'), ("job/99", "99"),
        (f"job/{store.submit(a_spec()).id}", "nothing to download"),
    ):  # fmt: skip
        refused = page.get(f"/api/download/{path}")
        assert refused.status_code == 400 and words in refused.json()["error"]["text"]
