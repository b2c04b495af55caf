"""The picture of a run: well formed, self-contained, legible, and usable with a keyboard and a screen reader."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from typing import override
from xml.etree.ElementTree import Element, fromstring

import pytest

from distributed_backup.position import Position
from distributed_backup.timeline.chart import draw
from distributed_backup.timeline.history import History
from distributed_backup.timeline.html_page import page
from distributed_backup.timeline.incidents import costs_of
from distributed_backup.timeline.labels import HEADINGS, cells
from distributed_backup.timeline.layout import LEFT, LETTER, MARGIN, RIGHT, SMALL_LETTER, TAIL, WIDTH
from distributed_backup.timeline.styles import style
from tests.support.stories import (
    LONG_AFTER,
    STORIES,
    Story,
    every_mark,
    history_from,
    many_workers,
    three_days,
    three_workers,
)

SVG = "{http://www.w3.org/2000/svg}"
EVIL = "</text><script>alert('&\"')</script>\x00\x1b\ud800"


def drawn(history: History) -> str:
    return draw(history, costs_of(history))


def shapes(picture: str, look: str) -> list[Element]:
    return [shape for shape in fromstring(picture).iter() if shape.get("class") == look]


def texts(picture: str, look: str) -> list[str]:
    return [shape.text or "" for shape in shapes(picture, look)]


def title(shape: Element) -> str:
    return shape.findtext(f"{SVG}title") or ""


@pytest.fixture(scope="module")
def pictures() -> dict[str, str]:
    return {name: drawn(history_from(story_of())) for name, story_of in STORIES.items()}


def test_a_picture_has_a_title_and_a_description(pictures: dict[str, str]) -> None:
    """The description counts the incidents and their costs. Each mark has a title of its own."""
    for picture in pictures.values():
        root = fromstring(picture)
        named = {child.get("id"): child.text for child in root}
        assert (root.get("role"), root.get("aria-labelledby")) == ("group", "title")
        assert root.get("aria-describedby") == "description"
        assert named["title"] == "Run job-42"
    description = fromstring(pictures["three_workers"]).findtext(f"{SVG}desc") or ""
    assert "3 preempted, 1 stopped reporting. In all: at most 1 min 2 s without a leader" in description


def test_a_picture_loads_nothing_and_runs_nothing(pictures: dict[str, str]) -> None:
    for picture in pictures.values():
        assert {shape.tag.removeprefix(SVG) for shape in fromstring(picture).iter()} == {
            *("svg", "title", "desc", "style"),
            *("rect", "line", "polyline", "polygon", "text"),
        }
        assert "url(" not in picture
        assert "href" not in picture
        assert picture.count("http") == 1  # the namespace


def test_the_same_events_make_the_same_picture() -> None:
    """After the end of the run, the time of the drawing does not matter."""
    assert drawn(history_from(three_workers())) == drawn(history_from(three_workers(), now=LONG_AFTER + 3600))


def test_all_of_it_is_inside_the_picture(pictures: dict[str, str]) -> None:
    for picture in pictures.values():
        root = fromstring(picture)
        height = float(root.get("height", "0"))
        assert root.get("viewBox") == f"0 0 1200 {root.get('height')}"
        outside = [
            shape.attrib
            for shape in root.iter()
            if shape.get("class")
            for name in ("x", "x1", "x2", "y", "y1", "y2")
            if not 0 <= float(shape.get(name, "0")) <= (WIDTH if name[0] == "x" else height)
        ]
        assert outside == []
        assert all(shape.get("points") for shape in root.iter() if shape.tag in {f"{SVG}polyline", f"{SVG}polygon"})
        assert all(float(shape.get(name, "0")) >= 0 for shape in root.iter("rect") for name in ("width", "height"))


@pytest.mark.parametrize("story_of", STORIES.values())
def test_summary_and_legend_are_inside_the_picture(story_of: Callable[[], Story]) -> None:
    """By the widths of letters that `layout` assumes."""
    found = shapes(drawn(history_from(story_of())), "muted") + shapes(drawn(history_from(story_of())), "ink")
    ends = [float(text.get("x", "0")) + LETTER * len(text.text or "") for text in found if not text.get("text-anchor")]
    assert len(ends) >= 14
    assert max(ends) <= WIDTH - MARGIN


def test_every_look_is_used_and_has_a_colour_by_day_and_by_night(pictures: dict[str, str]) -> None:
    used = {shape.get("class") for picture in pictures.values() for shape in fromstring(picture).iter()}
    by_day, by_night = style().split("@media (prefers-color-scheme: dark)")
    defined = set(re.findall(r"svg \.([a-z-]+) \{", by_day))
    assert used - {None} == defined
    assert set(re.findall(r"svg \.([a-z-]+) \{(?:fill|stroke):#", by_night)) == defined


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2.1."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(*colours: str) -> float:
    dark, light = sorted(map(luminance, colours))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(
    ("look", "ground"),
    [
        *((look, "paper") for look in ("head", "ink", "bold", "muted", "small", "loss", "hint")),
        ("label", "leading"),
        ("digit", "number"),
    ],
)
def test_text_stands_out_by_day_and_by_night(look: str, ground: str) -> None:
    """WCAG 2.1 AA asks for a contrast of 4.5 to 1."""
    for sheet in style().split("@media (prefers-color-scheme: dark)"):
        colours = dict(re.findall(r"svg \.([a-z-]+) \{fill:(#[0-9a-f]{6})", sheet))
        assert contrast(colours[look], colours[ground]) >= 4.5


def test_text_is_escaped_and_what_xml_lacks_is_replaced() -> None:
    story = Story()
    story.tell(0, f"w{EVIL}", "joined", run=EVIL)
    story.tell(1, f"w{EVIL}", "elected", term=1)
    story.tell(2, f"w{EVIL}", "lost", term=1, reason=EVIL)
    history = history_from(story)
    for text in (drawn(history), page(history, costs_of(history))):
        assert "<script" not in text
        assert "�" in text
        assert not re.search("[\x00\x1b\ud800]", text)
    assert "Run </text><script>alert('&\"')</script>���" in texts(drawn(history), "head")


# -------------------------------------------------------------------- keyboard and screen reader


def test_each_mark_is_a_tab_stop_with_a_title(pictures: dict[str, str]) -> None:
    """Only the legend's samples, which come first, have no title."""
    for picture in pictures.values():
        root, *found = fromstring(picture).iter()
        stops = [shape for shape in found if shape.get("tabindex") == "0"]
        assert stops == [shape for shape in found if title(shape)]
        assert title(root)
        assert {shape.get("role") for shape in stops} == {"img"}
        described = Counter(shape.get("class") for shape in stops)
        for look, samples in (("number", 0), ("leading", 1), ("training", 1), ("commit", 1), ("notice", 1)):
            assert described[look] == len(shapes(picture, look)) - samples
    lanes = sum(len(lane.incarnations) for lane in history_from(three_workers()).lanes)
    assert len(shapes(pictures["three_workers"], "training")) - 1 == lanes


def test_a_mark_with_the_focus_shows_its_title_and_an_outline(pictures: dict[str, str]) -> None:
    """The text follows its mark, and the style sheet shows it while the mark has the focus."""
    for picture in pictures.values():
        found = list(fromstring(picture))
        for shape, following in pairwise(found):
            assert (following.get("class") == "hint") == (shape.get("tabindex") == "0")
            if following.get("class") == "hint":
                assert following.text == title(shape).replace("\n", ", ")
    by_day, by_night = style().split("@media (prefers-color-scheme: dark)")
    assert "svg :focus + .hint {visibility:visible}" in by_day
    assert re.search(r"svg \.hint \{[^}]*visibility:hidden", by_day)
    for sheet, paper in ((by_day, "#ffffff"), (by_night, "#0d1117")):
        (outline,) = re.findall(r"svg :focus \{outline[^}]*(#[0-9a-f]{6})", sheet)
        assert contrast(outline, paper) >= 3


# -------------------------------------------------------------------- marks


def test_nothing_that_matters_is_too_short_to_be_seen() -> None:
    """In a run of three days, an election of minutes is less than a pixel wide."""
    picture = drawn(history_from(three_days()))
    for look in ("leaderless", "exiting"):
        found = shapes(picture, look)
        assert len(found) > 5
        assert all(float(shape.get("width", "0")) >= 3 for shape in found)


def test_there_is_one_mark_on_a_pixel_at_most() -> None:
    story = Story()
    story.start(0, "w-00000001")
    story.tell(0, "w-00000001", "elected", term=1)
    for number in range(1, 6001):
        story.commit(number, "w-00000001", 1, Position(number))
    story.tell(6001, "w-00000001", "finished", epoch=6000, batch=0)
    commits = shapes(drawn(history_from(story)), "commit")[1:]
    assert RIGHT - LEFT - 3 < len(commits) <= RIGHT - LEFT + 1
    assert "(the last of 7)" in title(commits[100])


def test_the_tail_after_the_last_event_ends_where_the_next_incarnation_begins() -> None:
    story = Story()
    story.start(0, "w-00000001")
    story.tell(500, "w-00000001", "progress", epoch=1, batch=0)
    story.start(510, "w-00000002")
    story.tell(1000, "w-00000002", "finished", epoch=2, batch=0)
    (tail,) = shapes(drawn(history_from(story)), "gone")[1:]
    assert float(tail.get("width", "0")) == pytest.approx((RIGHT - LEFT) / 100, abs=0.1)


@pytest.mark.parametrize("story_of", [three_days, many_workers, every_mark])
def test_the_tail_after_the_last_event_stays_inside_the_picture(story_of: Callable[[], Story]) -> None:
    tails = shapes(drawn(history_from(story_of())), "gone")[1:]
    assert tails
    assert all(extent(tail)[1] <= WIDTH - MARGIN for tail in tails)
    assert max(float(tail.get("width", "0")) for tail in tails) == TAIL


def extent(shape: Element) -> tuple[float, float]:
    """Return the left and right edge of a bar, or of a text in DejaVu Sans."""
    x = float(shape.get("x", "0"))
    if shape.tag == f"{SVG}text":
        width = SMALL_LETTER * len(shape.text or "")
        return x - width / 2, x + width / 2
    return x, x + float(shape.get("width", "0"))


@pytest.mark.parametrize("story_of", STORIES.values())
def test_a_label_is_within_its_bar(story_of: Callable[[], Story]) -> None:
    picture = drawn(history_from(story_of()))
    for look, bar_look in (("label", "leading"), ("loss", "leaderless")):
        labels = [shape for shape in shapes(picture, look) if shape.get("text-anchor") == "middle"]
        bars = [extent(bar) for bar in shapes(picture, bar_look)]
        for left, right in map(extent, labels):
            assert any(start <= left and right <= end for start, end in bars)
    assert shapes(picture, "label")


def test_each_incident_has_a_number_with_its_row_and_a_line(pictures: dict[str, str]) -> None:
    picture = pictures["three_workers"]
    numbers = shapes(picture, "number")
    assert texts(picture, "digit") == ["1", "2", "3-4"]
    assert len([line for line in shapes(picture, "incident") if line.get("x1") == line.get("x2")]) == 3
    assert title(numbers[1]).splitlines() == [
        "#: 2",
        "After: 3 min 2 s",
        "At, UTC: 11-23 10:03:02",
        "Worker: train-1-aaaa0001",
        "What happened: stopped reporting, led term 2",
        "No leader for: at most 18 s",
        "No training for: 0 s",
        "Batches to repeat: 0",
    ]


def test_a_reader_can_see_what_each_worker_did(pictures: dict[str, str]) -> None:
    """Every kind of mark has a title with the worker, the fact and its time."""
    first, picture = "Worker-WITH-a-very-long-name-0-abcdef01", pictures["every_mark"]
    for look, text in (
        ("leading", f"{first} led term 1\n10:00:00 to 10:00:46 UTC, 45.8 s, lost"),
        ("leading", f"{first} leads, term 1\n10:00:00 to 10:00:46 UTC, 45.8 s"),
        ("leaderless", "no leader for 5 s"),
        ("training", f"{first} trains\n10:00:00 to 10:01:15 UTC, 1 min 14 s"),
        ("waiting", "w-00000002 waits for its start position\n10:01:20 to 10:01:20 UTC, 0.5 s"),
        ("unreachable", f"{first} coordinator unreachable: no answer from redis://host:6379 in ten seconds"),
        ("failure", f"{first} lost the lease: not renewed\n10:00:46 UTC"),
        ("failure", f"{first} commit failed: No space left on device\n10:00:52 UTC"),
        ("saving", f"{first} saves 0000000002-00000001-00000009.ckpt, in 8 s\n10:01:02 to 10:01:10 UTC, 8 s"),
        ("commit", f"{first} committed 0000000002-00000001-00000009.ckpt, in 8 s\n10:01:10 UTC"),
        ("restore", "w-00000002 restored 0000000001-00000001-00000004.ckpt: epoch 1, batch 4\n10:01:20 UTC"),
        ("replay", "w-00000004 42 answers replayed, not paid again, up to epoch 2, batch 9\n10:02:29 UTC"),
        ("failure", "w-00000004 voided answers: 3 answers after epoch 2, batch 9\n10:02:31 UTC"),
        (
            *(
                "failure",
                "w-00000004 diverged in a replay: the state differs in random, after epoch 2, batch 9\n10:02:35",
            ),
        ),
        ("notice", "w-00000002 notice: SIGTERM, 30 s left\n10:01:50 UTC"),
        ("exiting", "w-00000002 saves and exits: SIGTERM\n10:01:50 to 10:02:00 UTC, 10 s"),
        ("gone", f"{first} stopped reporting\nlast event 10:01:15 UTC"),
        ("finish", "w-00000004 finished\n10:02:40 UTC"),
        ("leader-track", f"progress of {first} as the leader of term 1"),
        ("drop", f"{first} had reached epoch 2, batch 7, training resumed from epoch 1, batch 4"),
    ):
        assert any(title(shape).startswith(text) for shape in shapes(picture, look)), (look, text)
    assert {"Worker-W…g-name-0", "w"} == {text for text in texts(picture, "ink") if text[0] in "Ww"}
    assert texts(picture, "head") == ["Run job-42"]


def test_losses_at_one_place_have_one_label(pictures: dict[str, str]) -> None:
    """Both workers lost the same batches, three times."""
    assert len(shapes(pictures["three_days"], "drop")) == 6
    assert [text for text in texts(pictures["three_days"], "loss") if text.startswith("-")] == ["-6", "-6", "-6"]


def test_a_worker_without_progress_has_no_curve() -> None:
    story = Story()
    story.tell(0, "w-00000001", "joined")
    assert shapes(drawn(history_from(story)), "track") == []


def test_positions_at_their_limits_can_be_drawn() -> None:
    story = Story()
    story.start(0, "w-00000001", position=Position(10**8 - 1, 10**8 - 1))
    assert "</svg>" in drawn(history_from(story))


# -------------------------------------------------------------------- page


class Reader(HTMLParser):
    """Counts the tags of a page and collects its cells. Fails if a tag is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.texts: dict[str, list[str]] = {"td": [], "th": [], "caption": []}
        self.scopes: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        given = {name: value or "" for name, value in attrs}
        self.scopes.update([given["scope"]] if tag == "th" else [])
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if "href" in given else []
        if tag != "meta":
            self._open.append(tag)

    @override
    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.tags[tag] += 1

    @override
    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    @override
    def handle_data(self, data: str) -> None:
        if (self._open and self._open[-1] in {"td", "caption"}) or self._open[-2:] == ["tr", "th"]:
            self.texts[self._open[-1]].append(data)


def test_a_page_holds_the_picture_and_all_costs_as_a_table() -> None:
    history = history_from(many_workers())
    costs = costs_of(history)
    found = Reader(page(history, costs))
    assert (found.tags["svg"], found.tags["table"], found.tags["script"]) == (1, 1, 0)
    rows = [cells(history, cost) for cost in costs]
    assert found.texts["td"] == [cell for row in rows for cell in row[1:]]
    assert found.texts["th"] == [*HEADINGS, *(row[0] for row in rows)]
    assert page(history, costs).count(">What happened<") == 1


def test_the_table_has_a_caption_and_scoped_headers_and_a_link_leads_to_it() -> None:
    """Without the link, the Tab key would pass each mark of the picture first."""
    history = history_from(three_workers())
    found = Reader(page(history, costs_of(history)))
    assert found.texts["caption"] == ["Incidents and their costs, in order of time"]
    assert found.scopes == {"col": len(HEADINGS), "row": 4}
    assert found.links == ["#incidents"]
    assert "incidents" in found.ids


def test_a_page_without_costs_has_no_table() -> None:
    story = Story()
    story.start(0, "w-00000001")
    story.tell(5, "w-00000001", "finished", epoch=1, batch=0)
    assert Reader(page(history_from(story), [])).tags["table"] == 0
    assert Reader(page(history_from(story), [])).links == []
