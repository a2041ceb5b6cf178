"""A short soak: nothing grows with use but the database, and that only with what is kept."""

from tests.jobs.soak import soak


def test_a_short_soak_leaves_handles_threads_and_log_as_they_were(tmp_path):
    figures = soak(tmp_path / "home", runs=60)
    warm, end = figures["warm"], figures["end"]
    assert end["handles"] <= warm["handles"] + 4
    assert end["threads"] <= warm["threads"] + 2
    assert end["log_mb"] <= 16
    assert end["rss_mb"] - warm["rss_mb"] < 60
