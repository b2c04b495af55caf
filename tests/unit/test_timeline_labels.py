"""Events, durations and sizes as text, and the ticks of the time axis."""

from __future__ import annotations

import math
from typing import Any

import pytest

from distributed_backup.observability.events import KINDS
from distributed_backup.position import Position
from distributed_backup.timeline.chart import draw
from distributed_backup.timeline.history import history_of
from distributed_backup.timeline.incidents import costs_of
from distributed_backup.timeline.labels import describe
from distributed_backup.timeline.log_reader import parse_events
from distributed_backup.timeline.scale import EPOCH_STEPS, TIME_STEPS, Scale, clock_time, date, duration
from tests.support.stories import LONG_AFTER, START, A, B, C, Story


@pytest.mark.parametrize("value", [None, -1, "x", 10**12, 1e300, True, ["<"], {}], ids=repr)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_field_of_the_wrong_type_counts_as_missing(kind: Any, value: Any) -> None:
    """A value of the wrong type in a log must not stop the drawing."""
    story = Story()
    story.start(0, A)
    story.tell(1, A, kind, **dict.fromkeys(KINDS[kind], value))
    story.tell(2, A, "progress", epoch=0, batch=1)
    events, skipped = parse_events(event.line() for event in story.events)
    history = history_of(events, now=LONG_AFTER)
    assert "</svg>" in draw(history, costs_of(history))
    assert all(START <= span.start <= span.end for span in history.incarnations[0].spans)
    assert skipped == 0
    assert all("\n" not in describe(event) for event in events)


def test_events_are_described_in_words() -> None:
    story = Story()
    story.start(0, A, position=Position(1, 2))
    story.tell(0, B, "joined", standby=True)
    story.start(0, C)
    story.tell(1, A, "elected", term=3)
    story.commit(2, A, 3, Position(1, 3), seconds=0.02)
    story.tell(2, A, "lost", term=3, reason="lease lost")
    story.tell(2, A, "commit_failed", reason="disk full")
    story.tell(2, A, "commit_recovered")
    story.tell(2, A, "replayed", answers=12, epoch=1, batch=3)
    story.tell(2, A, "diverged", reason="the state differs", epoch=1, batch=3)
    story.tell(2, A, "diverged", reason="a request has no key")
    story.tell(2, A, "voided", answers=2, epoch=1, batch=3)
    story.tell(3, A, "notice")
    story.tell(4, A, "preempted", saved=None, seconds=1.5)
    story.tell(4, B, "preempted", saved=False, seconds=1.5)
    story.tell(4, C, "preempted", saved=True, checkpoint="x.ckpt", epoch=1, batch=3, seconds=1.5)
    name = "0000000001-00000001-00000002.ckpt"
    assert [describe(event) for event in story.events] == [
        "run job-42",
        f"epoch 1, batch 2, from {name}",
        "run job-42, standby",
        "run job-42",
        "epoch 0, batch 0, from the beginning",
        "term 3",
        "0000000003-00000001-00000003.ckpt, epoch 1, batch 3, 30.0 kB in 20 ms",
        "term 3: lease lost",
        "disk full",
        "",
        "12 answers, up to epoch 1, batch 3",
        "the state differs, after epoch 1, batch 3",
        "a request has no key",
        "2 answers after epoch 1, batch 3",
        "SIGTERM, 30 s left",
        "nothing to save, 1.5 s after the notice",
        "not saved, 1.5 s after the notice",
        "saved x.ckpt, epoch 1, batch 3, 1.5 s after the notice",
    ]


@pytest.mark.parametrize(
    ("count", "seconds", "text"),
    [
        (17205, 0.010021, "17.2 kB in 10 ms"),
        (1234, 0.00123, "1.2 kB in 1.23 ms"),
        (999, 0, "999 bytes in 0 s"),
        (1000, 0.0000123, "1.0 kB in 0.0123 ms"),
        (999_999, 0.9996, "1,000.0 kB in 1 s"),
        (2_500_000, 83.4, "2.5 MB in 1 min 23 s"),
        (10**9, 1.0, "1.0 GB in 1 s"),
        (None, "x", "None bytes in x s"),
        (-5, -1.5, "-5 bytes in -1.5 s"),
        (10**18 - 1, math.inf, "1,000.0 PB in inf s"),
    ],
)
def test_a_commit_is_described_with_size_and_duration(count: Any, seconds: Any, text: str) -> None:
    story = Story()
    story.tell(0, A, "committed", checkpoint="x", epoch=1, batch=2, bytes=count, seconds=seconds)
    assert describe(story.events[0]) == f"x, epoch 1, batch 2, {text}"


# -------------------------------------------------------------------- scale


@pytest.mark.parametrize(
    ("length", "step", "count"),
    [(0.0, 0.001, 2), (1.0, 0.2, 6), (3.0, 0.5, 7), (59.0, 10.0, 6), (3600.0, 600.0, 7), (3 * 86400.0, 43200.0, 7)],
)
def test_ticks_are_round_durations_after_the_start(length: float, step: float, count: int) -> None:
    scale = Scale(start=START, end=START + length, first=0, last=100, steps=TIME_STEPS)
    assert scale.step == pytest.approx(step)
    assert [tick - START for tick in scale.ticks()] == pytest.approx(
        [number * step for number in range(count)], abs=1e-6
    )


@pytest.mark.parametrize("length", [10.0**power for power in range(-3, 11)])
def test_there_are_some_ticks_and_not_many(length: float) -> None:
    assert 2 <= len(Scale(start=0.0, end=length, first=0, last=1, steps=TIME_STEPS).ticks()) <= 9


@pytest.mark.parametrize(("low", "high", "ticks"), [(0, 1, [0, 1]), (3, 12, [3, 5, 7, 9, 11]), (0, 10**8, None)])
def test_epochs_have_whole_ticks(low: int, high: int, ticks: list[int] | None) -> None:
    found = Scale(start=low, end=high, first=0, last=1, steps=EPOCH_STEPS).ticks()
    assert ticks is None or found == ticks
    assert 2 <= len(found) <= 9


def test_instants_outside_the_scale_are_at_its_edges() -> None:
    scale = Scale(start=10.0, end=20.0, first=100, last=200, steps=TIME_STEPS)
    assert [scale.pixel(instant) for instant in (0.0, 10.0, 15.0, 20.0, 30.0)] == [100, 100, 150, 200, 200]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.0123, "12.3 ms"),
        (0.09994, "99.9 ms"),
        (0.1, "0.1 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min"),
        (83.4, "1 min 23 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h"),
        (86399.0, "1 d"),
        (100_000.0, "1 d 4 h"),
    ],
)
def test_durations_have_about_three_digits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_time_of_day_is_as_fine_as_the_ticks() -> None:
    assert [clock_time(START + 0.25, step=step) for step in (0.1, 1.0, 3600.0)] == [
        "10:00:00.250",
        "10:00:00",
        "11-23 10:00",
    ]
    assert date(START) == "2026-11-23"
