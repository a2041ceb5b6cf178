import pytest

from studio.names import readable


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
