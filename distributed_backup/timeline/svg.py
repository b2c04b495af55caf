"""Write SVG shape by shape: no scripts, no fonts, nothing to load.

Text is escaped, and characters that XML can't hold are replaced. Numbers are rounded, so the same shapes give the same
bytes.

A shape with a description is a stop of the Tab key. The description is the shape's `<title>`: a screen reader reads it,
and a browser shows it under the pointer. A text beside the shape shows it while the shape has the focus.
The picture has the role "group", because the shapes in a picture with the role "img" are hidden from screen readers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from xml.etree.ElementTree import Element, SubElement, tostring

from distributed_backup.timeline.layout import MARGIN, SMALL_LETTER
from distributed_backup.timeline.styles import style

# Control characters, lone surrogates, and two code points that are not characters.
_NOT_XML: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def clean(text: str) -> str:
    """Return the text without characters that XML can't hold."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


class Canvas:
    """A picture of this size in pixels."""

    def __init__(self, width: float, height: float, *, title: str, description: str) -> None:
        size = {"width": number(width), "height": number(height), "viewBox": f"0 0 {number(width)} {number(height)}"}
        self._root = Element("svg", size, xmlns="http://www.w3.org/2000/svg", role="group")
        self._root.set("aria-labelledby", "title")
        self._root.set("aria-describedby", "description")
        self._width = width
        SubElement(self._root, "title", id="title").text = clean(title)
        SubElement(self._root, "desc", id="description").text = clean(description)
        SubElement(self._root, "style").text = style()
        self.rect(0, 0, width, height, "paper")

    def rect(self, x: float, y: float, width: float, height: float, look: str, *, about: str = "") -> None:
        """Draw a bar."""
        self._shape("rect", look, x=x, y=y, width=width, height=height)
        self._describe(about, x, y)

    def line(self, x1: float, y1: float, x2: float, y2: float, look: str, *, about: str = "") -> None:
        """Draw a straight line."""
        self._shape("line", look, x1=x1, y1=y1, x2=x2, y2=y2)
        self._describe(about, x1, y1)

    def polyline(self, points: Sequence[tuple[float, float]], look: str, *, about: str = "") -> None:
        """Draw a line through these points."""
        self._points("polyline", points, look, about)

    def polygon(self, points: Sequence[tuple[float, float]], look: str, *, about: str = "") -> None:
        """Draw a filled shape."""
        self._points("polygon", points, look, about)

    def text(self, x: float, y: float, text: str, look: str, *, anchor: str = "start", about: str = "") -> None:
        """Write a line of text with its foot at `y`."""
        self._shape("text", look, x=x, y=y, text_anchor=anchor).text = clean(text)
        self._describe(about, x, y - 12)

    def source(self) -> str:
        """Return the picture as text."""
        return tostring(self._root, encoding="unicode") + "\n"

    def _points(self, tag: str, points: Sequence[tuple[float, float]], look: str, about: str) -> None:
        self._shape(tag, look, points=" ".join(f"{number(x)},{number(y)}" for x, y in points))
        self._describe(about, *min(points, default=(0.0, 0.0)))

    def _shape(self, tag: str, look: str, **attributes: float | str) -> Element:
        given = {name.replace("_", "-"): number(value) for name, value in attributes.items() if value != "start"}
        return SubElement(self._root, tag, {"class": look, **given})

    def _describe(self, about: str, x: float, y: float) -> None:
        """Describe the last shape, which begins at this point."""
        if not about:
            return
        self._root[-1].attrib.update(tabindex="0", role="img")
        SubElement(self._root[-1], "title").text = clean(about)
        text = clean(about.replace("\n", ", "))
        left = max(MARGIN, min(x, self._width - MARGIN - SMALL_LETTER * len(text)))
        self._shape("text", "hint", x=left, y=y - 8).text = text


def number(value: float | str) -> str:
    """Return a coordinate, rounded to a tenth of a pixel."""
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
