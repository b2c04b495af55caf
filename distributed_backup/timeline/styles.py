"""How each part of the drawing looks, by day and by night: one table, from which the style sheet is made.

No state is told by colour alone: leading is tall, waiting is a dashed line, leaving and gone are hatched each in its
way, and each mark has a shape of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from xml.etree.ElementTree import Element, SubElement

_INK: Final = ("#1f2328", "#e6edf3")
_MUTED: Final = ("#59636e", "#9198a1")
_PAPER: Final = ("#ffffff", "#0d1117")
_FAINT: Final = ("#e4e8ec", "#262c36")
_STRONG: Final = ("#0a5cad", "#58a6ff")
_ON_STRONG: Final = ("#ffffff", "#06182c")
_SOFT: Final = ("#b4d5f5", "#1f4a78")
_SAVED: Final = ("#1a7f37", "#3fb950")
_NOTICE: Final = ("#b45309", "#f0a33a")
_BAD: Final = ("#c4222e", "#ff7b72")

# Class: its properties, each with a colour by day and one by night, and what holds for both.
_LOOKS: Final[dict[str, tuple[dict[str, tuple[str, str]], str]]] = {
    "paper": ({"fill": _PAPER}, ""),
    "stripe": ({"fill": ("#f6f8fa", "#141a22")}, ""),
    "head": ({"fill": _INK}, "font-size:20px;font-weight:600"),
    "ink": ({"fill": _INK}, ""),
    "bold": ({"fill": _INK}, "font-weight:600"),
    "muted": ({"fill": _MUTED}, ""),
    "small": ({"fill": _MUTED}, "font-size:11px"),
    "grid": ({"stroke": _FAINT}, "stroke-width:1"),
    "rule": ({"stroke": _MUTED}, "stroke-width:1"),
    "waiting": ({"stroke": _MUTED}, "stroke-width:2;stroke-dasharray:2 4"),
    "training": ({"fill": _SOFT}, ""),
    "leading": ({"fill": _STRONG}, ""),
    "led": ({"fill": _ON_STRONG}, "font-size:11px;font-weight:600"),
    "leaderless": ({"stroke": _BAD}, "fill:url(#bars);stroke-width:1"),
    "leaving": ({"stroke": _NOTICE}, "fill:url(#rising);stroke-width:1"),
    "gone": ({"stroke": _MUTED}, "fill:url(#falling);stroke-width:1;stroke-dasharray:3 3"),
    "saving": ({"fill": _SAVED}, ""),
    "commit": ({"stroke": _SAVED}, "stroke-width:1.5"),
    "restore": ({"fill": _INK, "stroke": _PAPER}, "stroke-width:1"),
    "notice": ({"fill": _NOTICE, "stroke": _PAPER}, "stroke-width:1"),
    "halo": ({"stroke": _PAPER}, "stroke-width:5"),
    "failure": ({"stroke": _BAD}, "stroke-width:2"),
    "unreachable": ({"stroke": _BAD}, "stroke-width:2;stroke-dasharray:1 3"),
    "finish": ({"stroke": _INK}, "stroke-width:2"),
    "number": ({"fill": _BAD}, ""),
    "digit": ({"fill": _PAPER}, "font-size:11px;font-weight:700"),
    "blow": ({"stroke": _BAD}, "stroke-width:1;stroke-dasharray:2 3"),
    "track": ({"stroke": _SOFT}, "fill:none;stroke-width:1.5"),
    "course": ({"stroke": _STRONG}, "fill:none;stroke-width:2.5;stroke-linejoin:round"),
    "drop": ({"stroke": _BAD}, "stroke-width:2"),
    # With a rim, for it stands on lines.
    "loss": ({"fill": _BAD, "stroke": _PAPER}, "font-size:11px;font-weight:600;paint-order:stroke;stroke-width:4px"),
    "bars-ink": ({"stroke": _BAD}, "stroke-width:1.5"),
    "rising-ink": ({"stroke": _NOTICE}, "stroke-width:3"),
    "falling-ink": ({"stroke": _MUTED}, "stroke-width:1"),
}
# Where the hatching runs, within a tile of eight pixels.
_HATCHES: Final = {
    "bars": ((2, 0, 2, 8), (6, 0, 6, 8)),
    "rising": ((-2, 10, 10, -2), (-2, 2, 2, -2), (6, 10, 10, 6)),
    "falling": ((-2, -2, 10, 10), (-2, 6, 2, 10), (6, -2, 10, 2)),
}


def style() -> str:
    """The style sheet."""
    by_day, by_night = ("\n".join(f"svg .{name} {{{_rules(name, which)}}}" for name in _LOOKS) for which in (0, 1))
    return (
        "\nsvg text {font:13px system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif}\n"
        f"{by_day}\n@media (prefers-color-scheme: dark) {{\n{by_night}\n}}\n"
    )


def _rules(name: str, which: int) -> str:
    colours, both = _LOOKS[name]
    rules = [f"{key}:{colour[which]}" for key, colour in colours.items()]
    return ";".join(rules if which or not both else [*rules, both])


def patterns() -> Iterator[Element]:
    """The hatchings."""
    for name, lines in _HATCHES.items():
        pattern = Element("pattern", id=name, width="8", height="8", patternUnits="userSpaceOnUse")
        for ends in lines:
            places = dict(zip(("x1", "y1", "x2", "y2"), map(str, ends), strict=True))
            SubElement(pattern, "line", {"class": f"{name}-ink", **places})
        yield pattern
