"""Diagnostics hold what a report of a problem needs, without secrets and paths of the user."""

from contextlib import closing
from pathlib import Path

import pytest

from jobs.doctor import diagnostics
from jobs.job_queue import JobStore
from studio.home import open_home
from studio.names import redacted
from tests.jobs.conftest import a_spec, begin


def test_the_last_error_and_its_log_are_in_without_secrets_and_paths(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "jane")
    monkeypatch.setenv("WANDB_API_KEY", "s3cr3t-value")
    home = open_home(tmp_path / "jane" / "studio")
    with closing(JobStore(home)) as store:
        store.submit(a_spec())
        claim = begin(store)
        data = tmp_path / "jane" / "rows.jsonl"
        store.claims.finish(claim, "failed", error=("data", f"No row of {data} can be used."))
        log = home.run(claim.job) / "log.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(
            f"GET https://jane:hunter2@hub with s3cr3t-value in {home.path}/runs\n"
            'File "/opt/secret/lib/site-packages/torch/nn.py", no /mnt/clients/secret/a.csv:1\n'
            r"no C:\clients\secret\rows.csv, 3/4 of it, https://example.org/a/b" + "\n"
        )
    text = diagnostics(home)
    assert "No row of ~/rows.jsonl can be used." in text
    assert "GET https://…@hub with … in HOME/runs" in text
    assert 'File "…/site-packages/torch/nn.py", no …/a.csv:1' in text
    assert "no …/rows.csv, 3/4 of it, https://example.org/a/b" in text
    assert "Python" in text and "torch" in text and "cpu: " in text
    for private in (str(tmp_path), "hunter2", "s3cr3t", "clients", "secret/"):
        assert private not in text


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("token hf_abcdefghijklmno", "token hf_…"),
        ("Authorization: Bearer abcdef.ghijkl", "Authorization: Bearer …"),
        ("http://hub/x?token=abc&rows=3", "http://hub/x?token=…&rows=3"),
        ("an ordinary line with a basic idea", "an ordinary line with a basic idea"),
    ],
)
def test_secrets_are_known_by_their_shape(text, kept):
    assert redacted(text) == kept
