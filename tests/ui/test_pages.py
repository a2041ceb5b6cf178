"""What the pages may not do: expose functions, hold connections, name outside hosts."""

import json
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest

from tests.served import ROOT, Served
from ui.app import ASSETS, build_app
from ui.page_frame import PAGES


def assets() -> list[Path]:
    return sorted(file for file in ASSETS.rglob("*") if file.is_file())


def html(studio: Served, path: str) -> str:
    with urllib.request.urlopen(studio.address + path, timeout=20) as answer:
        return str(answer.read().decode())


def config(page: str) -> dict:
    found = re.search(r"window\.gradio_config = (.*?);</script>", page)
    assert found
    return json.loads(found[1])


@pytest.mark.parametrize(("path", "name"), [(page.address, page.title) for page in PAGES])
def test_a_page_is_one_document_with_our_bar_and_no_held_connection(studio, path, name):
    page = html(studio, path)
    assert f"<title>{name} · Adapter Studio</title>" in page
    assert f'href="{path}" aria-current' in page
    assert 'data-testid="pulse"' in page
    settings = config(page)
    assert settings["connect_heartbeat"] is False
    assert settings["analytics_enabled"] is False
    assert settings["footer_links"] == []


def test_a_wrong_address_is_a_page_for_a_person_and_json_for_a_script(studio):
    for headers, kind, words in (
        ({"Sec-Fetch-Dest": "document"}, "text/html", "There is no such page"),
        ({}, "application/json", "Not Found"),
    ):
        request = urllib.request.Request(studio.address + "/nope", headers=headers)
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(request, timeout=20)
        assert error.value.code == 404
        assert error.value.headers["content-type"].startswith(kind)
        assert words in error.value.read().decode()


def test_a_page_is_themed_before_it_is_painted_names_nobody_and_publishes_no_function(studio):
    page = html(studio, "/")
    assert page.index("studio.theme") < page.index("<meta") < page.index("gradio_config")
    own = page.split("window.gradio_config")[0]
    assert not re.findall(r"""(?:src|href|content)=["'](?:https?:)?//[^"']+""", own)
    info = studio.json("/gradio_api/info")
    assert info["named_endpoints"] == {} and info["unnamed_endpoints"] == {}


def test_our_assets_are_few_and_small_name_no_outside_host_and_write_no_html():
    for file in assets():
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"https?://(?!www\.w3\.org/)", text), file.name
        if file.suffix == ".js":
            assert "innerHTML" not in re.sub(r"//.*", "", text), file.name
            assert "insertAdjacentHTML" not in text and "eval(" not in text, file.name
    sizes = {file.name: len(file.read_bytes()) for file in assets()}
    assert sum(sizes.values()) < 442_000 and len(sizes) <= 61, (sum(sizes.values()), len(sizes))
    lines = {file.name: len(file.read_text().splitlines()) for file in assets()}
    assert max(lines.values()) <= 400, lines


def test_a_wheel_contains_every_asset_and_catalog(tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="no setuptools to build with")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "ui", tmp_path / "ui")
    build = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    packed = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    catalogs = (ROOT / "ui/locale").rglob("*.po")
    assert {file.relative_to(ROOT).as_posix() for file in (*assets(), *catalogs)} <= packed


def test_pages_build_without_a_supervisor(home, monkeypatch):
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    assert callable(build_app(home))
    assert Path(home.state / "uploads").name == "uploads"
