"""How an attempt words its end."""

from jobs.runner import as_studio_error


def test_only_a_run_that_trains_is_told_of_its_checkpoint():
    odd = NotADirectoryError(20, "Not a directory")
    assert "resume it from there" in as_studio_error(odd, kind="train").text
    for kind in ("merge", "mix", "gguf", "evaluate"):
        text = as_studio_error(odd, kind=kind).text
        assert text.startswith("The job stopped") and text.endswith("The log holds the details.")
