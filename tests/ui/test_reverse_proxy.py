"""Below a path of a reverse proxy, every address of the page has that path in front."""

import re

import pytest
from fastapi.testclient import TestClient

from studio.errors import ServeError
from studio.home import open_home
from ui.app import build_app, checked_root

ROOT = "/box/studio"


@pytest.fixture(scope="module")
def below(tmp_path_factory):
    app = build_app(open_home(tmp_path_factory.mktemp("home")), token="t" * 32, root=ROOT)
    client = TestClient(app, base_url="http://127.0.0.1:7860", follow_redirects=False)
    client.headers["authorization"] = f"Bearer {'t' * 32}"
    return client


@pytest.mark.parametrize("path", ["/runs", f"{ROOT}/runs", "/no/such/page"])
def test_links_and_scripts_of_a_page_have_the_root_path(below, path):
    html = below.get(path, headers={"sec-fetch-dest": "document"}).text

    assert f'<html data-root="{ROOT}"' in html
    places = re.findall(r'(?:href|src)="(/[^/"][^"]*|/)"', html)
    assert len(places) > 8 and all(place.startswith(f"{ROOT}/") for place in places), places


def test_requests_and_redirects_keep_the_root_path(below):
    assert below.get(f"{ROOT}/api/queue").json() == below.get("/api/queue").json()
    assert below.get(f"{ROOT}/train").headers["location"] == f"{ROOT}/"
    entrance = below.get(f"{ROOT}/runs?token={'t' * 32}", headers={"authorization": ""})
    assert entrance.headers["location"] == f"{ROOT}/runs"
    assert below.get(f"{ROOT}/studio/main.js").status_code == 200
    assert below.get(f"{ROOT}/config").json()["root"].endswith(ROOT)


def test_a_root_path_loses_its_last_slash_and_what_is_none_is_refused():
    for path, root in (("", ""), ("/", ""), ("/a/", "/a"), ("/a/b", "/a/b")):
        assert checked_root(path) == root
    for wrong in ("a", "//a", "/a b", '/a"><script>', "http://a"):
        with pytest.raises(ServeError, match="Invalid root path"):
            checked_root(wrong)
