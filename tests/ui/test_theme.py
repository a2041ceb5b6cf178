"""The colours can be read: WCAG contrast, computed from the written-down values."""

import pytest

from ui.theme import COLOURS, RUNS, STATES, tokens_css


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted([luminance(one), luminance(other)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_measure_is_right():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["text", "muted", "faint", "accent"])
@pytest.mark.parametrize("ground", ["bg", "surface"])
def test_words_can_be_read(name, ground, scheme):
    assert contrast(COLOURS[name][scheme], COLOURS[ground][scheme]) >= 4.5


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("state", list(STATES))
def test_a_badge_can_be_read_on_its_own_tint(state, scheme):
    hue, ground = STATES[state][scheme], COLOURS["surface"][scheme]
    mixed = [
        round(0.12 * int(hue[i : i + 2], 16) + 0.88 * int(ground[i : i + 2], 16)) for i in (1, 3, 5)
    ]
    assert contrast(hue, "#{:02x}{:02x}{:02x}".format(*mixed)) >= 4.5


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_curves_stand_out_from_the_card(scheme):
    # 3:1 is what WCAG asks of graphics.
    assert all(contrast(run[scheme], COLOURS["surface"][scheme]) >= 3 for run in RUNS)


def test_words_on_the_accent_can_be_read():
    for fill in ("accent-fill", "accent-fill-hover"):
        for scheme in (0, 1):
            assert contrast(COLOURS["on-accent"][scheme], COLOURS[fill][scheme]) >= 4.5


def test_both_schemes_have_every_colour():
    light, dark = tokens_css().split(".dark{")
    for name in [*COLOURS, *(f"state-{state}" for state in STATES), "run-0", "run-9"]:
        assert f"--s-{name}:" in light
        assert f"--s-{name}:" in dark
