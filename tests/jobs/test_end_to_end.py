"""A hybrid mixture goes from the queue to a merged model with the defaults of the page.

`python -m tests.end_to_end` does the same for every family of its list.
"""

import pytest

from tests import end_to_end


@pytest.mark.slow
def test_a_family_trains_answers_beside_its_base_and_is_merged(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDIO_SPARE", "1")  # as users have it: the merge meets a warm process
    with end_to_end.opened(tmp_path) as home:
        found = end_to_end.examine(home, tmp_path, "qwen3.5-moe")
    assert found.last_loss < found.first_loss / 2
    assert found.merge_error < 1e-3 < found.difference
