"""Bytes as a person reads them: the one way for every command and page (`bytes` of ui/assets/dom.js
is the same for what the browser counts)."""

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def readable(count: float) -> str:
    """Return bytes with three digits and a unit: 43.5 MiB."""
    size, unit = float(count), 0
    while size >= 999.5 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:#.3g}".rstrip(".") + f" {UNITS[unit]}" if unit else f"{size:.0f} B"
