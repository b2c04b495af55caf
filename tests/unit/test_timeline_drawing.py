"""The drawing of a run: well formed, self-contained, legible, and true to what happened."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from typing import override
from xml.etree.ElementTree import Element, fromstring

import pytest

from distributed_backup.position import Position
from distributed_backup.timeline.chart import draw
from distributed_backup.timeline.history import History, history_of
from distributed_backup.timeline.html_page import page
from distributed_backup.timeline.incidents import costliest, costs_of
from distributed_backup.timeline.labels import cells
from distributed_backup.timeline.layout import LEFT, LETTER, RIGHT, SMALL_LETTER, WIDTH, fitted, shortened, width_of
from distributed_backup.timeline.styles import style
from distributed_backup.timeline.time_scale import TimeScale
from tests.support.stories import (
    START,
    STORIES,
    Story,
    many_workers,
    one_worker_five_preemptions,
    three_days,
    three_workers,
)

SVG = "{http://www.w3.org/2000/svg}"
LONG_AFTER = START + 10**7
EVIL = "</text><script>alert('&\"')</script>\x00\x1b\ud800"


def history_from(story: Story, *, now: float = LONG_AFTER) -> History:
    return history_of(story.in_order, now=now)


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


def test_a_picture_is_an_image_with_a_title_and_a_description(pictures: dict[str, str]) -> None:
    """For who can't see it: the description says who led when, and what it cost."""
    for picture in pictures.values():
        root = fromstring(picture)
        named = {child.get("id"): child.text for child in root}
        assert root.get("role") == "img"
        assert (root.get("aria-labelledby") or "").split() == ["title", "description"]
        assert named["title"] == "Run job-42"
    description = fromstring(pictures["three_workers"]).findtext(f"{SVG}desc") or ""
    assert "train-1-aaaa0001 led term 2 from 1 min 47 s to 3 min 2 s." in description
    assert "in all at most 1 min 2 s without a leader" in description


def test_a_picture_loads_nothing_and_runs_nothing(pictures: dict[str, str]) -> None:
    for picture in pictures.values():
        assert {shape.tag.removeprefix(SVG) for shape in fromstring(picture).iter()} == {
            *("svg", "title", "desc", "style", "defs", "pattern"),
            *("rect", "line", "polyline", "polygon", "text"),
        }
        assert set(re.findall(r"url\([^)]*\)", picture)) == {"url(#bars)", "url(#rising)", "url(#falling)"}
        assert "href" not in picture
        assert picture.count("http") == 1  # the namespace


def test_the_same_events_make_the_same_picture() -> None:
    """However late it is drawn, once the run is over."""
    assert drawn(history_from(three_workers())) == drawn(history_from(three_workers(), now=LONG_AFTER + 3600))


def test_all_of_it_is_inside_the_picture(pictures: dict[str, str]) -> None:
    for picture in pictures.values():
        root = fromstring(picture)
        height = float(root.get("height", "0"))
        assert root.get("viewBox") == f"0 0 1200 {root.get('height')}"
        outside = [
            shape.attrib
            for shape in root.iter()
            if shape.get("class") and not shape.get("class", "").endswith("-ink")
            for name in ("x", "x1", "x2", "y", "y1", "y2")
            if not 0 <= float(shape.get(name, "0")) <= (WIDTH if name[0] == "x" else height)
        ]
        assert outside == []
        assert all(shape.get("points") for shape in root.iter() if shape.tag in {f"{SVG}polyline", f"{SVG}polygon"})
        assert all(float(shape.get(name, "0")) >= 0 for shape in root.iter("rect") for name in ("width", "height"))


def test_every_look_is_used_and_has_a_colour_by_day_and_by_night(pictures: dict[str, str]) -> None:
    slow = Story()
    slow.start(0, "w-00000001")
    slow.tell(1, "w-00000001", "unreachable")
    slow.commit(9, "w-00000001", 1, Position(1), seconds=3.0)
    used = {
        shape.get("class")
        for picture in (*pictures.values(), drawn(history_from(slow)))
        for shape in fromstring(picture).iter()
    }
    by_day, by_night = style().split("@media (prefers-color-scheme: dark)")
    defined = set(re.findall(r"svg \.([a-z-]+) \{", by_day))
    assert used - {None} == defined
    assert set(re.findall(r"svg \.([a-z-]+) \{(?:fill|stroke):#", by_night)) == defined


def luminance(colour: str) -> float:
    """WCAG 2.1, relative luminance."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(
    ("look", "ground"),
    [
        *((look, "paper") for look in ("head", "ink", "bold", "muted", "small", "loss")),
        ("led", "leading"),
        ("digit", "number"),
    ],
)
def test_text_stands_out_by_day_and_by_night(look: str, ground: str) -> None:
    """WCAG 2.1 AA: 4.5 to 1."""
    for sheet in style().split("@media (prefers-color-scheme: dark)"):
        colours = dict(re.findall(r"svg \.([a-z-]+) \{fill:(#[0-9a-f]{6})", sheet))
        light, dark = sorted((luminance(colours[look]), luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


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


# -------------------------------------------------------------------- who led when


def test_the_strip_of_leaders_names_who_led_when(pictures: dict[str, str]) -> None:
    history, picture = history_from(three_workers()), pictures["three_workers"]
    scale = TimeScale(start=history.start, end=history.end, left=LEFT, right=RIGHT)
    top = shapes(picture, "leading")[1].get("y")  # the first is the legend's
    strip = [shape for shape in shapes(picture, "leading") if shape.get("y") == top]
    assert [float(shape.get("x", "")) for shape in strip] == pytest.approx(
        [scale.x(START + at) for at in (1, 107, 200, 292)], abs=0.05
    )
    assert title(strip[0]) == (
        "train-0-aaaa0000 led term 1\n10:00:01 to 10:01:45 UTC, 1 min 44 s from 1 s on, preempted"
    )
    assert [text for text in texts(picture, "led") if "·" in text] == [
        "train-0 · term 1",
        "train-1 · term 2",
        "train-2 · term 3",
        "train-0 · term 4",
    ]
    gaps = [title(shape) for shape in shapes(picture, "leaderless")][1:]
    assert gaps == [
        "no leader for 2 s",
        "no leader for at most 18 s: last event to next election",
        "no leader for 42 s",
    ]
    assert texts(picture, "loss") == ["≤18 s", "no leader, 42 s"]
    # In its lane, the third has the mark of a failure, and less room beside it.
    leaderships = [text for text in texts(picture, "led") if "leads" in text]
    assert leaderships == [*(f"leads, term {term}" for term in (1, 4, 2)), "leads"]


def test_nothing_that_matters_is_too_short_to_be_seen() -> None:
    """In three days, an election of minutes is less than a pixel wide."""
    picture = drawn(history_from(three_days()))
    for look in ("leaderless", "leaving"):
        found = shapes(picture, look)
        assert len(found) > 5
        assert all(float(shape.get("width", "0")) >= 3 for shape in found)


def test_each_lane_has_its_name_and_all_ids_where_the_pointer_rests(pictures: dict[str, str]) -> None:
    found = [shape for shape in shapes(pictures["three_workers"], "ink") if title(shape)]
    assert [(shape.text, title(shape)) for shape in found] == [
        ("train-0", "train-0-aaaa0000: preempted\ntrain-0-bbbb0000: preempted\ntrain-0-cccc0000: finished"),
        ("train-1", "train-1-aaaa0001: gone\ntrain-1-cccc0001: finished"),
        ("train-2", "train-2-aaaa0002: preempted\ntrain-2-cccc0002: finished"),
    ]


def test_marks_tell_what_happened(pictures: dict[str, str]) -> None:
    failures = Counter(title(shape) for shape in shapes(pictures["three_workers"], "failure"))
    assert failures == {
        "": 2,  # the legend's; each cross has two strokes
        "train-1-aaaa0001 was not heard of again\nlast word 10:03:02 UTC": 2,
        "train-2-aaaa0002 commit failed: No space left on device\n10:03:30 UTC": 2,
    }
    assert [title(shape) for shape in shapes(pictures["three_workers"], "notice")][1:] == [
        "train-0-aaaa0000 notice: SIGTERM, 30 s left\n10:01:41 UTC",
        "train-0-bbbb0000 notice: SIGTERM, 30 s left\n10:04:07 UTC",
        "train-2-aaaa0002 notice: SIGTERM, 30 s left\n10:04:07 UTC",
    ]
    assert len(shapes(pictures["three_workers"], "restore")) == 1 + 7
    assert len(shapes(pictures["three_workers"], "finish")) == 1 + 3


def test_there_is_one_mark_on_a_pixel_at_most() -> None:
    story = Story()
    story.start(0, "w-00000001")
    story.tell(0, "w-00000001", "elected", term=1)
    for number in range(1, 6001):
        story.commit(number, "w-00000001", 1, Position(number))
    story.tell(6001, "w-00000001", "finished", epoch=6000, batch=0)
    commits = shapes(drawn(history_from(story)), "commit")[1:]
    assert RIGHT - LEFT - 3 < len(commits) <= RIGHT - LEFT + 1
    assert "(the last of 6)" in title(commits[100])


def test_the_tail_of_who_is_gone_ends_where_its_next_life_begins() -> None:
    story = Story()
    story.start(0, "w-00000001")
    story.tell(500, "w-00000001", "progress", epoch=1, batch=0)
    story.start(510, "w-00000002")
    story.tell(1000, "w-00000002", "finished", epoch=2, batch=0)
    story.start(0, "x-00000001")
    story.tell(500, "x-00000001", "progress", epoch=1, batch=0)
    (tail, free) = shapes(drawn(history_from(story)), "gone")[1:]
    assert float(tail.get("width", "0")) == pytest.approx((RIGHT - LEFT) / 100, abs=0.1)
    assert float(free.get("width", "0")) == 36


@pytest.mark.parametrize(("lanes", "height"), [(1, 28.0), (12, 28.0), (13, 20.0), (64, 15.0)])
def test_many_lanes_are_low_ones(lanes: int, height: float) -> None:
    story = Story()
    for number in range(lanes):
        story.start(0, f"w{number}-00000001")
    stripes = shapes(drawn(history_from(story)), "stripe")
    assert len(stripes) == (lanes + 1) // 2
    assert {float(stripe.get("height", "0")) for stripe in stripes} == {height}


# -------------------------------------------------------------------- progress and costs


def test_the_curve_goes_up_by_epochs_and_falls_where_batches_are_repeated() -> None:
    picture = drawn(history_from(one_worker_five_preemptions()))
    assert [text for text in texts(picture, "small") if text.isdecimal()][1:] == ["0", "5", "10", "15"]
    assert [text for text in texts(picture, "loss") if text.startswith("-")] == ["-6", "-6"]
    levels = [line for line in shapes(picture, "blow") if line.get("y1") == line.get("y2")]
    assert len(levels) == 5  # nobody trained
    for drop in shapes(picture, "drop"):
        assert float(drop.get("y1", "0")) < float(drop.get("y2", "0"))
        assert re.fullmatch(r"solo-\S+ had come to epoch \d+, batch 6; epoch \d+, batch 0 was restored", title(drop))


def points(shape: Element) -> list[tuple[float, float]]:
    pairs = (point.split(",") for point in shape.get("points", "").split())
    return [(float(x), float(y)) for x, y in pairs]


def test_the_curve_of_who_leads_is_strong_from_its_election_on(pictures: dict[str, str]) -> None:
    history = history_from(three_workers())
    scale = TimeScale(start=history.start, end=history.end, left=LEFT, right=RIGHT)
    courses = shapes(pictures["three_workers"], "course")
    assert [title(course) for course in courses] == [
        "train-0-aaaa0000 leads, term 1",
        "train-0-cccc0000 leads, term 4",
        "train-1-aaaa0001 leads, term 2",
        "train-2-aaaa0002 leads, term 3",
    ]
    found = points(courses[2])
    assert found[0][0] == pytest.approx(scale.x(START + 107), abs=0.05)
    assert found[-1][0] == pytest.approx(scale.x(START + 182), abs=0.05)
    heights = [y for _, y in found]
    assert heights == sorted(heights, reverse=True)


def test_between_two_words_of_the_leader_its_curve_is_straight() -> None:
    """It is elected halfway between two epochs' ends, and killed a quarter after the second."""
    story = Story()
    story.start(0, "w-00000001", after=0.0)
    story.tell(50, "w-00000001", "elected", term=1)
    story.tell(100, "w-00000001", "progress", epoch=1, batch=0)
    story.tell(125, "w-00000001", "lost", term=1, reason="lease lost")
    story.tell(200, "w-00000001", "progress", epoch=2, batch=0)
    (course,) = shapes(drawn(history_from(story)), "course")
    (track,) = shapes(drawn(history_from(story)), "track")
    (left, foot), _, (right, top) = points(track)
    width, height = right - left, foot - top
    expected = [(left + width * at, foot - height * at) for at in (0.25, 0.5, 0.625)]
    assert [coordinate for point in points(course) for coordinate in point] == pytest.approx(
        [coordinate for point in expected for coordinate in point], abs=0.11
    )


def test_each_cost_has_a_number_over_its_instant_and_a_row_of_the_table(pictures: dict[str, str]) -> None:
    history = history_from(three_workers())
    assert texts(pictures["three_workers"], "digit") == ["1", "2", "3-4"]
    written = {*texts(pictures["three_workers"], "ink"), *texts(pictures["three_workers"], "muted")}
    for cost in costs_of(history):
        assert set(cells(history, cost)) <= written
    assert {"0 s", "0"}.isdisjoint(texts(pictures["three_workers"], "ink"))


def test_only_what_cost_the_run_something_has_a_line_through_all_lanes(pictures: dict[str, str]) -> None:
    """26 of 64 workers were gone; one of them led."""
    lines = Counter(line.get("y2") for line in shapes(pictures["many_workers"], "blow"))
    assert lines.pop(str(round(max(map(float, filter(None, lines)))))) == 1
    assert lines.total() > 20


def test_losses_at_one_place_have_one_label(pictures: dict[str, str]) -> None:
    """Three times both workers lost the same batches."""
    assert len(shapes(pictures["three_days"], "drop")) == 6
    assert [text for text in texts(pictures["three_days"], "loss") if text.startswith("-")] == ["-6", "-6", "-6"]


def test_a_long_table_is_cut_and_says_so() -> None:
    story = Story()
    for number in range(43):
        story.start(number, f"w{number}-00000001")
    picture = drawn(history_from(story))
    assert "3 more, which cost no more than these" in texts(picture, "muted")
    assert len(shapes(picture, "number")) < 43
    history = history_from(story)
    assert "more, which cost" not in page(history, costs_of(history))


def test_a_long_table_keeps_what_cost_most_in_order_of_time() -> None:
    """Time first, then batches; what is not over yet counts until now."""
    story = Story()
    for number in range(50):
        worker = f"w{number}-0000000"
        story.start(number, f"{worker}1", after=0.0)
        story.tell(200 + number, f"{worker}1", "progress", epoch=0, batch=9 if number == 30 else 0)
        story.start(400 + number, f"{worker}2", after=0.0)
        story.tell(600 + number, f"{worker}2", "finished", epoch=1, batch=0)
    story.tell(5, "w45-00000001", "elected", term=1)
    story.tell(447, "w3-00000002", "elected", term=2)
    story.tell(448, "w3-00000002", "lost", term=2, reason="lease lost")
    history = history_from(story)
    costs = costs_of(history)
    most = costliest(history, costs, 4)
    assert [(cost.worker_id, cost.without_leader, cost.without_training, cost.batches) for cost in most] == [
        ("w30-00000001", 0.0, 0.0, 9),
        ("w45-00000001", 202.0, 0.0, 0),
        ("w49-00000001", 0.0, 151.0, 0),
        ("w3-00000002", None, 0.0, 0),
    ]
    assert costliest(history, costs, 100) == costs
    picture = drawn(history)
    assert f"{len(costs) - 40} more, which cost no more than these" in texts(picture, "muted")
    assert {cost.worker_id for cost in most} <= set(texts(picture, "ink"))


def test_nothing_lost_nothing_to_table() -> None:
    story = Story()
    story.start(0, "w-00000001")
    story.tell(5, "w-00000001", "finished", epoch=1, batch=0)
    picture = drawn(history_from(story))
    assert "nothing was preempted or lost" in texts(picture, "ink")
    assert "What happened" not in picture


def test_the_axis_tells_both_times(pictures: dict[str, str]) -> None:
    small = texts(pictures["three_days"], "small")
    assert small[2:4] == ["0", "11-23 10:05"]
    assert {"1 d", "11-24 10:05", "1 d 12 h", "22:05"} <= set(small)


def test_the_ends_of_the_axis_are_told_inside_of_it(pictures: dict[str, str]) -> None:
    """What stands left of it is what the two lines are."""
    told_times = [shape for shape in shapes(pictures["three_seconds"], "small") if ":" in (shape.text or "")]
    assert [shape.get("text-anchor") for shape in told_times] == [None, *["middle"] * 5, "end"]


def test_the_description_of_a_long_run_has_an_end() -> None:
    story = Story()
    story.start(0, "w-00000001")
    for term in range(1, 100):
        story.tell(term, "w-00000001", "elected", term=term)
    description = fromstring(drawn(history_from(story))).findtext(f"{SVG}desc") or ""
    assert description.count("led term") == 50


def tight() -> Story:
    """Short leads that end in saves, in failures or without a word; long names and reasons; batches to repeat."""
    story, at, position = Story(), 0.0, Position(0)
    for turn in range(14):
        worker, end = f"Worker-WITH-a-very-long-name-{turn % 3}-abcdef{turn:02}", at + (40, 80, 30, 120, 60)[turn % 5]
        story.start(at, worker, position=position, after=2.0)
        story.tell(at + turn % 2 + 0.2, worker, "elected", term=turn + 1)
        reached = story.train(worker, at + 2, end, position=position, period=3, term=turn + 1)
        position = reached
        if turn % 4 == 1:
            story.tell(end - 5, worker, "lost", term=turn + 1, reason="no answer from redis://host:6379 in ten seconds")
            story.tell(end, worker, "left")
            position = Position(max(0, reached.epoch - 1), 3)
        elif turn % 4 != 3:
            story.preempt(end, worker, reached, seconds=(8, 20, 3)[turn % 3], term=turn + 1)
        at = end + (12, 30, 25)[turn % 3]
    return story


def extent(shape: Element) -> tuple[float, float]:
    """From where to where a shape goes, from left to right; a text in the fonts of most viewers."""
    if shape.tag == f"{SVG}text":
        x, width = float(shape.get("x", "0")), width_of(shape.text or "", SMALL_LETTER)
        return x - width / 2, x + width / 2
    if shape.tag == f"{SVG}rect":
        return float(shape.get("x", "0")), float(shape.get("x", "0")) + float(shape.get("width", "0"))
    if shape.tag == f"{SVG}line":
        ends = [float(shape.get("x1", "0")), float(shape.get("x2", "0"))]
    else:
        ends = [x for x, _ in points(shape)]
    return min(ends), max(ends)


def height(shape: Element) -> float:
    """About where the middle of a shape is."""
    if shape.tag == f"{SVG}text":
        return float(shape.get("y", "0")) - 4
    if shape.tag == f"{SVG}rect":
        return float(shape.get("y", "0")) + float(shape.get("height", "0")) / 2
    if shape.tag == f"{SVG}line":
        return (float(shape.get("y1", "0")) + float(shape.get("y2", "0"))) / 2
    return sum(y for _, y in points(shape)) / len(points(shape))


@pytest.mark.parametrize("story_of", [*STORIES.values(), tight])
def test_a_label_is_within_its_bar_and_under_nothing(story_of: Callable[[], Story]) -> None:
    """White letters on a hatching, or beneath a mark, can't be read."""
    picture = drawn(history_from(story_of()))
    labels = shapes(picture, "led")
    assert labels
    bars = shapes(picture, "leading")
    others = [shape for look in ("leaving", "restore", "notice", "failure", "gone") for shape in shapes(picture, look)]
    for label in labels:
        left, right = extent(label)
        beside = [bar for bar in bars if abs(height(bar) - height(label)) < 3]
        assert any(start <= left and right <= end for start, end in map(extent, beside))
        over = [shape for shape in others if abs(height(shape) - height(label)) < 14]
        assert not any(start < right and left < end for start, end in map(extent, over)), label.text


def test_what_is_not_known_of_who_is_gone_is_drawn_left_of_the_edge() -> None:
    """Even where nobody was heard of later."""
    for story_of in (three_days, many_workers, tight):
        tails = shapes(drawn(history_from(story_of())), "gone")[1:]
        assert tails
        assert all(extent(tail)[1] <= RIGHT + 0.1 for tail in tails)
    (last, *_) = sorted(shapes(drawn(history_from(three_days())), "gone"), key=extent, reverse=True)
    assert float(last.get("width", "0")) == 36


def test_a_cell_is_cut_only_where_there_is_no_room_for_it() -> None:
    """The free text first: whom it happened to, and why."""
    story = Story()
    story.start(0, "w-00000001")
    story.tell(50, "w-00000001", "progress", epoch=13, batch=4)
    story.start(100, "w-00000002", position=Position(12, 3))
    story.tell(150, "w-00000002", "finished", epoch=14, batch=0)
    assert "5 or more, back to epoch 12, batch 3" in texts(drawn(history_from(story)), "ink")
    picture = drawn(history_from(tight()))
    cells_of_tight = {cell for cost in costs_of(history_from(tight())) for cell in cells(history_from(tight()), cost)}
    cut = {text for text in texts(picture, "ink") if "…" in text}
    assert {text for text in texts(picture, "ink") if "back to" in text} <= cells_of_tight
    assert any(text.startswith("lost the lea") for text in cut)
    assert all(title(shape) for shape in shapes(picture, "ink") if shape.text in cut)
    right = max(float(shape.get("x", "0")) + width_of(shape.text or "", LETTER) for shape in shapes(picture, "ink")[4:])
    assert right <= WIDTH


@pytest.mark.parametrize(
    ("text", "pixels"),
    [
        *(("leads, term 1", 82), ("0123456789", 76), ("nobody, 15 min 19 s", 124), ("Worker-WITH-MANY · 6", 142)),
        *(("mwmwmw", 65), ("abcdef01", 57), ("2d 12h ffff rrtt", 91)),
    ],
)
def test_a_text_is_taken_to_be_a_little_wider_than_it_is(text: str, pixels: float) -> None:
    """Measured where rsvg-convert 2.54 draws it in DejaVu Sans, bold, of 11 pixels."""
    assert pixels <= width_of(text, SMALL_LETTER) <= pixels * 1.1


@pytest.mark.parametrize(("width", "text"), [(1000, "a-long-name-0123"), (70, "a-l…123"), (1, ""), (0, ""), (-9, "")])
def test_a_text_is_cut_to_what_fits(width: float, text: str) -> None:
    assert fitted("a-long-name-0123", width, 10.0) == text
    assert fitted("x" * 10_000, 100, 10.0) == "xxxx…xxxx"


@pytest.mark.parametrize(("letters", "text"), [(40, "a-long-name-0123"), (9, "a-lo…0123"), (2, "a-")])
def test_what_does_not_fit_is_cut_in_the_middle(letters: int, text: str) -> None:
    assert shortened("a-long-name-0123", letters) == text


def test_who_told_of_no_progress_has_no_curve() -> None:
    story = Story()
    story.tell(0, "w-00000001", "joined")
    assert shapes(drawn(history_from(story)), "track") == []


def test_positions_at_their_limits_can_be_drawn() -> None:
    story = Story()
    story.start(0, "w-00000001", position=Position(10**8 - 1, 10**8 - 1))
    assert "</svg>" in drawn(history_from(story))


# -------------------------------------------------------------------- page


class Reader(HTMLParser):
    """Collects what a page consists of, and fails if a tag is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.cells: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    @override
    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags[tag] += 1
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
        if self._open and self._open[-1] == "td":
            self.cells.append(data)


def test_a_page_holds_the_picture_and_all_costs_as_a_table() -> None:
    history = history_from(many_workers())
    costs = costs_of(history)
    found = Reader(page(history, costs))
    assert (found.tags["svg"], found.tags["table"], found.tags["script"]) == (1, 1, 0)
    assert found.cells == [cell for cost in costs for cell in cells(history, cost)]
    assert page(history, costs).count("What happened") == 1


def test_a_page_without_costs_has_no_table() -> None:
    story = Story()
    story.start(0, "w-00000001")
    story.tell(5, "w-00000001", "finished", epoch=1, batch=0)
    assert Reader(page(history_from(story), [])).tags["table"] == 0
