"""Names of runs and adapters, and sizes in bytes."""

import pytest

from studio.names import cleaned, fault, readable


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "between 1 and 120"),
        ("x" * 121, '"' + "x" * 60 + '…" (121)'),
        ("a\nb", '"a?b" cannot be a name: it holds line breaks or control characters'),
        ("red\x1b[31m", "control characters"),
        ("a\u202eb", "control characters"),
        ("a/b", "a path"),
        ("../../etc", "a path"),
        ("..", "a path"),
        ("~root", "a path"),
        ("a\\b", "a path"),
        ("--json", "an option"),
        ("5", "a run's number"),
        ("con", "a device of Windows"),
        ("Aux.v2", "a device of Windows"),
        ("x:2", "a name with a weight"),
        ("x:-.5e1", "a name with a weight"),
        ("x:", "a name with a weight"),
    ],
)
def test_what_could_be_something_else_is_no_name(name, said):
    assert said in fault(name)
    assert fault(cleaned(name)) == ""


@pytest.mark.parametrize(
    "name", ["pirate", "Käpt'n 2", "a-b_c.d", "trial: warm", "r=4 lr=1e-3", "می‌خواهم", "👩‍🚀"]
)
def test_ordinary_names_are_names_and_stay_as_they_are(name):
    assert fault(name) == ""


def test_a_name_made_up_of_parts_is_cleaned():
    assert cleaned("s device=cuda:0 path=/a/b") == "s device=cuda-0 path=-a-b"
    assert cleaned("push owner/name") == "push owner-name"
    assert cleaned("x" * 500) == "x" * 120


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),  # 1000 / 1024
        (5 * 2**20, "5.00 MiB"),
        (248 * 1024, "248 KiB"),
        (999.7 * 2**20, "0.976 GiB"),  # never 1e+03 MiB
    ],
)
def test_bytes_have_three_digits_and_a_unit(count, words):
    assert readable(count) == words
