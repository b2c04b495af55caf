"""Define how each part of the picture looks, in light and in dark mode, and write the style sheet.

No state depends on colour alone: leading is a high bar, waiting a dashed line, exiting a framed bar, and a worker that
stopped reporting a dashed one. Each mark has its own shape.
"""

from __future__ import annotations

from typing import Final

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

_ON_LINES: Final = "font-size:11px;paint-order:stroke;stroke-width:4px"

# Class: its properties, each with a colour for light and one for dark mode, and the rules for both.
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
    "label": ({"fill": _ON_STRONG}, "font-size:11px;font-weight:600"),
    "leaderless": ({"stroke": _BAD}, "fill:none;stroke-width:1.5"),
    "exiting": ({"fill": _PAPER, "stroke": _NOTICE}, "stroke-width:3"),
    "gone": ({"stroke": _MUTED}, "fill:none;stroke-width:1;stroke-dasharray:3 3"),
    "saving": ({"fill": _SAVED}, ""),
    "commit": ({"stroke": _SAVED}, "stroke-width:1.5"),
    "restore": ({"fill": _INK, "stroke": _PAPER}, "stroke-width:1"),
    "replay": ({"fill": _SAVED, "stroke": _PAPER}, "stroke-width:1"),
    "notice": ({"fill": _NOTICE, "stroke": _PAPER}, "stroke-width:1"),
    "halo": ({"stroke": _PAPER}, "fill:none;stroke-width:5"),
    "failure": ({"stroke": _BAD}, "fill:none;stroke-width:2"),
    "unreachable": ({"stroke": _BAD}, "stroke-width:2;stroke-dasharray:1 3"),
    "finish": ({"stroke": _INK}, "stroke-width:2"),
    "number": ({"fill": _BAD}, ""),
    "digit": ({"fill": _PAPER}, "font-size:11px;font-weight:700"),
    "incident": ({"stroke": _BAD}, "stroke-width:1;stroke-dasharray:2 3"),
    "track": ({"stroke": _SOFT}, "fill:none;stroke-width:1.5"),
    "leader-track": ({"stroke": _STRONG}, "fill:none;stroke-width:2.5;stroke-linejoin:round"),
    "drop": ({"stroke": _BAD}, "stroke-width:2"),
    # With a rim of paper, because these texts are drawn over lines.
    "loss": ({"fill": _BAD, "stroke": _PAPER}, f"{_ON_LINES};font-weight:600"),
    "hint": (
        {"fill": _INK, "stroke": _PAPER},
        "font-size:11px;paint-order:stroke;stroke-width:6px;visibility:hidden;pointer-events:none",
    ),
}


def style() -> str:
    """Return the style sheet."""
    light, dark = ("\n".join(f"svg .{name} {{{_rules(name, which)}}}" for name in _LOOKS) for which in (0, 1))
    return (
        "\nsvg text {font:13px system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif}\n"
        f"{light}\n"
        f"svg :focus {{outline:2px solid {_INK[0]};outline-offset:2px}}\nsvg :focus + .hint {{visibility:visible}}\n"
        f"@media (prefers-color-scheme: dark) {{\n{dark}\nsvg :focus {{outline-color:{_INK[1]}}}\n}}\n"
    )


def _rules(name: str, which: int) -> str:
    colours, both = _LOOKS[name]
    rules = [f"{key}:{colour[which]}" for key, colour in colours.items()]
    return ";".join(rules if which or not both else [*rules, both])
