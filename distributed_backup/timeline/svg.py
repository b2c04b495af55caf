"""SVG by shapes: text in, a self-contained picture out, no scripts, no fonts of its own.

Text is escaped, and what XML can't hold is replaced. Numbers are rounded, so that the same shapes give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from xml.etree.ElementTree import Element, SubElement, tostring

# Control characters, lone surrogates and the two that are no characters.
_NOT_XML: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def clean(text: str) -> str:
    """Text without what XML can't hold."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


class Canvas:
    """A picture of a fixed width that grows downwards.

    Args:
        width: In pixels.
        title: What it shows.
        description: The same in sentences, for who can't see it.
    """

    def __init__(self, *, width: float, title: str, description: str) -> None:
        self._root = Element("svg", xmlns="http://www.w3.org/2000/svg", role="img")
        self._root.set("aria-labelledby", "title description")
        self._width = width
        self._add("title", title, id="title")
        self._add("desc", description, id="description")

    def define(self, style: str, patterns: Iterable[Element]) -> None:
        """Set the looks, and the patterns that they use."""
        self._add("style", style)
        SubElement(self._root, "defs").extend(patterns)

    def rect(self, x: float, y: float, width: float, height: float, look: str, *, about: str = "") -> None:
        """A bar; `about` is shown where the pointer rests."""
        self._shape("rect", about, x=x, y=y, width=width, height=height, look=look)

    def line(self, x1: float, y1: float, x2: float, y2: float, look: str, *, about: str = "") -> None:
        """A straight line."""
        self._shape("line", about, x1=x1, y1=y1, x2=x2, y2=y2, look=look)

    def polyline(self, points: Iterable[tuple[float, float]], look: str, *, about: str = "") -> None:
        """A line through these points."""
        joined = " ".join(f"{number(x)},{number(y)}" for x, y in points)
        self._shape("polyline", about, points=joined, look=look)

    def polygon(self, points: Iterable[tuple[float, float]], look: str, *, about: str = "") -> None:
        """A filled shape."""
        joined = " ".join(f"{number(x)},{number(y)}" for x, y in points)
        self._shape("polygon", about, points=joined, look=look)

    def text(self, x: float, y: float, text: str, look: str, *, anchor: str = "start", about: str = "") -> None:
        """A line of text, its foot at y."""
        self._shape("text", about, x=x, y=y, look=look, text_anchor=anchor).text = clean(text)

    def source(self, height: float) -> str:
        """The picture, `height` pixels high."""
        size = {"width": number(self._width), "height": number(height)}
        self._root.attrib.update(size, viewBox=f"0 0 {size['width']} {size['height']}")
        return tostring(self._root, encoding="unicode") + "\n"

    def _add(self, tag: str, text: str, **attributes: str) -> None:
        SubElement(self._root, tag, attributes).text = clean(text)

    def _shape(self, tag: str, about: str, *, look: str, **attributes: float | str) -> Element:
        given = {name.replace("_", "-"): number(value) for name, value in attributes.items() if value != "start"}
        shape = SubElement(self._root, tag, {"class": look, **given})
        if about:
            SubElement(shape, "title").text = clean(about)
        return shape


def number(value: float | str) -> str:
    """A coordinate, to a tenth of a pixel."""
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
