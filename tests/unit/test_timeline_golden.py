"""Golden files: three pictures that hold every text and coordinate.

After a wanted change, draw them again, and look at each with a browser before you commit it:

    uv run python -m tests.unit.test_timeline_golden
"""

from __future__ import annotations

from pathlib import Path

import pytest

from distributed_backup.timeline.chart import draw
from distributed_backup.timeline.incidents import costs_of
from tests.support.stories import STORIES, history_from

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("three_workers", "three_seconds", "every_mark")


def picture_of(name: str) -> str:
    history = history_from(STORIES[name]())
    return draw(history, costs_of(history))


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_equals_its_golden_file(name: str) -> None:
    # Compare lines, so that a difference is shown by its shape.
    assert lines(picture_of(name)) == lines((GOLDEN / f"timeline_{name}.svg").read_text(encoding="utf-8"))


def lines(picture: str) -> list[str]:
    return picture.replace("><", ">\n<").splitlines()


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in NAMES:
        (GOLDEN / f"timeline_{name}.svg").write_text(picture_of(name), encoding="utf-8")
