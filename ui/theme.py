"""Colours, spaces and sizes of every page and chart.

Calm, dense, professional. Paper and graphite neutrals with one cobalt accent; colour otherwise
means something: a *state* or a *run*. Borders are one pixel and never doubled; there are no shadows
but under what floats. Numbers are tabular and carry units. It refuses to know any page.

Spacing   4 px grid: 4 inside a control, 8 between siblings, 12 inside a card, 16 between cards,
          24 around the page.
Type      11 px captions, 12 px secondary, 13 px text and controls, 15 px card titles, 20 px page
          titles. Two weights: 400 and 600. System fonts only, nothing is fetched.
Corners   6 px controls, 8 px cards, round only for dots and badges.
States    one hue each (`STATES`); a badge is the hue as text on a 12 % tint of itself.
Runs      ten hues (`RUNS`) that remain distinct with colour blindness; a run keeps its hue on
          every page (its id modulo ten, or the next free one where two would clash).
Lanes     take the hues of runs in order, so lane A is always the same blue.
"""

SANS = (
    '-apple-system, "Segoe UI Variable Text", "Segoe UI", Inter, Roboto, Cantarell, '
    '"Noto Sans", "Liberation Sans", Arial, "PingFang SC", "Microsoft YaHei", '
    '"Noto Sans CJK SC", sans-serif'
)
MONO = (
    'ui-monospace, "SF Mono", "Cascadia Mono", "JetBrains Mono", Menlo, Consolas, '
    '"Liberation Mono", "PingFang SC", "Microsoft YaHei", "Noto Sans Mono CJK SC", monospace'
)

SPACES = {"1": "4px", "2": "8px", "3": "12px", "4": "16px", "5": "24px", "6": "32px"}
SIZES = {"caption": "11px", "small": "12px", "text": "13px", "card": "15px", "page": "20px"}
RADII = {"control": "6px", "card": "8px"}

# name: (light, dark)
COLOURS: dict[str, tuple[str, str]] = {
    "bg": ("#f6f6f3", "#121311"),
    "surface": ("#ffffff", "#1a1b19"),
    "raised": ("#fbfbf9", "#20221f"),
    "hover": ("#f0f0ec", "#252723"),
    "line": ("#e3e3dd", "#2d2f2b"),
    "line-strong": ("#c9c9c1", "#45483f"),
    "text": ("#1b1c1a", "#ecece6"),
    "muted": ("#5f615b", "#a3a59c"),
    "faint": ("#6c6e67", "#8d8f87"),
    "accent": ("#3350cf", "#93a7ff"),
    "accent-fill": ("#3350cf", "#4460dd"),
    "accent-fill-hover": ("#2941b3", "#4b66e0"),
    "on-accent": ("#ffffff", "#ffffff"),
    "grid": ("#ecece7", "#262824"),
}

STATES: dict[str, tuple[str, str]] = {
    "queued": ("#5f615b", "#a3a59c"),
    "starting": ("#3350cf", "#93a7ff"),
    "running": ("#3350cf", "#93a7ff"),
    "stopping": ("#8a5a00", "#e3b04b"),
    "paused": ("#8a5a00", "#e3b04b"),
    "succeeded": ("#17703f", "#5cc98b"),
    "stopped": ("#0d6e74", "#58c4c9"),
    "failed": ("#b92f27", "#ff8d84"),
    "cancelled": ("#5f615b", "#a3a59c"),
    "interrupted": ("#a34a08", "#f2a163"),
}

RUNS: list[tuple[str, str]] = [
    ("#3350cf", "#93a7ff"),  # cobalt
    ("#d06a12", "#f3a55c"),  # orange
    ("#0d8a78", "#4cc9b4"),  # teal
    ("#b5318b", "#e685c6"),  # magenta
    ("#768a0b", "#b9cb4e"),  # olive
    ("#2389bd", "#6cc4f0"),  # sky
    ("#c4392f", "#ff8d84"),  # red
    ("#7a4fc0", "#bd9bf5"),  # violet
    ("#8a5a34", "#cfa27c"),  # brown
    ("#5f6b76", "#aab6c1"),  # steel
]


def tokens_css() -> str:
    """Return the custom properties (`--s-*`) of both schemes, and the hues of badges."""
    fixed = {
        "sans": SANS,
        "mono": MONO,
        **{f"space-{name}": value for name, value in SPACES.items()},
        **{f"size-{name}": value for name, value in SIZES.items()},
        **{f"radius-{name}": value for name, value in RADII.items()},
    }
    pairs = {
        **COLOURS,
        **{f"state-{name}": pair for name, pair in STATES.items()},
        **{f"run-{index}": pair for index, pair in enumerate(RUNS)},
    }
    light = {**fixed, **{name: pair[0] for name, pair in pairs.items()}}
    dark = {name: pair[1] for name, pair in pairs.items()}
    badge = "html:root:root .s-badge[data-state={0}]{{--c:var(--s-state-{0})}}"
    return (
        f":root{{color-scheme:light;{_properties(light)}}}"
        f".dark{{color-scheme:dark;{_properties(dark)}}}"
        "html{background:var(--s-bg)}" + "".join(map(badge.format, STATES))
    )


def _properties(values: dict[str, str]) -> str:
    return "".join(f"--s-{name}:{value};" for name, value in values.items())
