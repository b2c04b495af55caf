"""The history of a run from its events: incarnations, leaderships, lanes, and the workers that still run."""

from __future__ import annotations

import pytest

from distributed_backup.observability.events import Event
from distributed_backup.position import Position
from distributed_backup.timeline.history import History, history_of
from distributed_backup.timeline.incarnations import Incarnation, lane_name
from distributed_backup.timeline.incidents import costs_of, training_gaps
from distributed_backup.timeline.json_report import document
from distributed_backup.timeline.labels import summary
from tests.support.stories import LONG_AFTER, START, A, B, Story, history_from, three_workers


def incarnation(history: History, worker: str) -> Incarnation:
    return next(found for found in history.incarnations if found.worker_id == worker)


def spans(history: History, worker: str) -> list[tuple[str, float, float]]:
    """Return what a worker did, in seconds after the start of the story, except its saves."""
    return [
        (span.kind, round(span.start - START, 3), round(span.end - START, 3))
        for span in sorted(incarnation(history, worker).spans, key=lambda span: (span.start, span.kind))
        if span.kind != "saving"
    ]


def test_a_preempted_leader_waits_trains_leads_and_exits() -> None:
    history = history_from(three_workers())
    assert spans(history, "train-0-aaaa0000") == [
        ("waiting", 0.0, 2.0),
        ("leading", 1.0, 105.0),
        ("training", 2.0, 105.0),
        ("exiting", 101.0, 105.0),
    ]
    found = incarnation(history, "train-0-aaaa0000")
    assert (found.ending, found.saved, found.noticed) == ("preempted", True, START + 101)
    assert [(mark.kind, mark.at - START) for mark in found.marks if mark.kind != "commit"] == [
        ("restore", 2.0),
        ("notice", 101.0),
    ]


def test_each_commit_is_a_mark_at_the_end_of_a_save() -> None:
    story = Story()
    story.start(0, A)
    story.tell(0.2, A, "elected", term=1)
    story.commit(10, A, 1, Position(1), seconds=2.5)
    found = incarnation(history_from(story), A)
    assert [(span.start - START, span.end - START) for span in found.of("saving")] == [(7.5, 10.0)]
    assert [mark.at - START for mark in found.marks if mark.kind == "commit"] == [10.0]


def test_a_worker_without_a_final_event_ends_with_its_last_event() -> None:
    found = incarnation(history_from(three_workers()), "train-1-aaaa0001")
    assert (found.ending, found.end - START) == ("gone", 182.0)
    assert [leadership.how for leadership in found.leaderships] == ["gone"]


def test_events_after_the_final_one_change_nothing() -> None:
    """A worker resigns its lease after its final event."""
    story = Story()
    story.start(0, A)
    story.tell(0.1, A, "elected", term=1)
    story.tell(5, A, "finished", epoch=1, batch=0)
    story.tell(6, A, "resigned", term=1)
    found = incarnation(history_from(story), A)
    assert (found.ending, found.end - START) == ("finished", 5.0)
    assert [(leadership.how, leadership.end - START) for leadership in found.leaderships] == [("finished", 5.0)]


def stood_down() -> Story:
    """Return the story of a standby that resigns at 5 s and waits from 6 s on, while its successor trains from 7 s."""
    story = Story()
    story.start(0, A)
    story.tell(1, A, "elected", term=1)
    story.tell(2, B, "joined", standby=True)
    story.tell(5, A, "resigned", term=1, reason="asked to let another worker lead")
    story.tell(5, B, "elected", term=2)
    story.tell(6, A, "stood_down", leader=B, term=2)
    story.tell(7, B, "restored", checkpoint=None, epoch=0, batch=0)
    return story


def test_a_standby_that_no_longer_leads_waits_until_it_trains_on() -> None:
    story = stood_down()
    story.tell(10, B, "left")
    story.tell(12, A, "elected", term=3)
    story.tell(13, A, "progress", epoch=1, batch=0)
    story.tell(20, A, "finished", epoch=2, batch=0)
    history = history_from(story)
    assert spans(history, A) == [
        ("waiting", 0.0, 0.5),
        ("training", 0.5, 6.0),
        ("leading", 1.0, 5.0),
        ("waiting", 6.0, 13.0),
        ("leading", 12.0, 20.0),
        ("training", 13.0, 20.0),
    ]
    assert [span.about for span in incarnation(history, A).of("waiting")][1:] == [f"waits while {B} leads"]


def test_the_time_in_which_a_standby_waits_and_no_other_worker_trains_is_without_training() -> None:
    """Its fit finishes later, which ends no gap before."""
    story = stood_down()
    story.tell(10, B, "finished", epoch=2, batch=0)
    story.tell(11, A, "finished", epoch=2, batch=0)
    assert [(gap.start - START, gap.end - START) for gap in training_gaps(history_from(story))] == [(6.0, 7.0)]


@pytest.mark.parametrize("waiting", ["joined", "stood_down"])
def test_an_outage_does_not_end_the_wait_of_a_standby(waiting: str) -> None:
    """It reports that the coordinator was away, and then nothing more."""
    story = stood_down()
    story.events = [event for event in story.events if event.worker != A or waiting == "stood_down"]
    if waiting == "joined":
        story.tell(6, A, "joined", standby=True)
    story.tell(20, A, "unreachable", reason="timed out")
    story.tell(25, A, "reachable")
    for seconds in range(30, 301, 10):
        story.tell(seconds, B, "progress", epoch=0, batch=seconds // 10)
    history = history_of(story.events, now=START + 300)
    assert (incarnation(history, A).ending, incarnation(history, A).end - START) == ("", 300.0)


def test_a_standby_that_no_longer_leads_runs_as_long_as_another_worker_does() -> None:
    """It reports nothing while it waits."""
    story = stood_down()
    for seconds in range(10, 301, 10):
        story.tell(seconds, B, "progress", epoch=0, batch=seconds // 10)
    history = history_of(story.events, now=START + 300)
    assert (incarnation(history, A).ending, incarnation(history, A).end - START) == ("", 300.0)


def test_a_lost_leadership_has_a_reason_and_the_worker_goes_on() -> None:
    story = Story()
    story.start(0, A)
    story.tell(1, A, "elected", term=1)
    story.tell(4, A, "unreachable", reason="timed out")
    story.tell(5, A, "lost", term=1, reason="not renewed")
    story.tell(7, A, "reachable")
    story.tell(8, A, "elected", term=4)
    story.tell(9, A, "resigned", term=4)
    story.tell(10, A, "progress", epoch=0, batch=1)
    found = history_from(story)
    assert [
        (leadership.term, leadership.start - START, leadership.end - START, leadership.how, leadership.reason)
        for leadership in found.leaderships
    ] == [
        (1, 1.0, 5.0, "lost", "not renewed"),
        (4, 8.0, 9.0, "resigned", ""),
    ]
    assert [cost.kind for cost in costs_of(found)] == ["lost", "resigned", "gone"]
    assert ("unreachable", 4.0, 7.0) in spans(found, A)
    assert [mark.kind for mark in incarnation(found, A).marks] == ["restore", "failure"]


def test_a_clock_that_goes_backwards_makes_no_negative_span() -> None:
    story = Story()
    story.start(100, A)
    story.events.append(Event(at=story.events[0].at, worker=A, kind="elected", fields={"term": 1}))
    story.tell(50, A, "progress", epoch=0, batch=1)
    story.tell(40, A, "left")
    history = history_of(story.events, now=LONG_AFTER)
    assert spans(history, A) == [("waiting", 100.0, 100.5), ("leading", 100.5, 100.5), ("training", 100.5, 100.5)]


def test_a_notice_without_a_preemption_is_no_exit() -> None:
    """A cloud may announce a preemption and cancel it."""
    story = Story()
    story.start(0, A)
    story.tell(10, A, "notice", remaining=5.0)
    story.tell(100, A, "notice", remaining=30.0)
    story.tell(101, A, "notice", remaining=30.0)
    story.tell(110, A, "preempted", saved=True, seconds=10.0)
    history = history_from(story)
    assert ("exiting", 100.0, 110.0) in spans(history, A)
    assert incarnation(history, A).noticed == START + 100


def test_without_the_oldest_lines_a_commit_shows_who_leads() -> None:
    story = Story()
    story.tell(0, A, "joined")
    story.commit(50, A, 7, Position(3), seconds=1.0)
    story.tell(60, A, "progress", epoch=3, batch=4)
    assert spans(history_from(story), A) == [("waiting", 0.0, 60.0), ("leading", 49.0, 60.0), ("training", 60.0, 60.0)]


def test_a_save_under_a_lost_term_is_no_new_leadership() -> None:
    """Without a coordinator, the last leader saves before its preemption."""
    story = Story()
    story.start(0, A)
    story.tell(1, A, "elected", term=1)
    story.tell(5, A, "lost", term=1, reason="not renewed")
    story.tell(6, A, "elected", term=4)
    story.tell(7, A, "lost", term=4, reason="not renewed")
    story.commit(7.5, A, 1, Position(0, 3))
    story.preempt(8, A, Position(0, 3), term=4)
    assert [(leadership.term, leadership.how) for leadership in history_from(story).leaderships] == [
        (1, "lost"),
        (4, "lost"),
    ]
    assert [(cost.kind, cost.worker_id, cost.term) for cost in costs_of(history_from(story))] == [
        ("lost", A, 1),
        ("lost", A, 4),
        ("preempted", A, None),
    ]


def test_a_span_longer_than_its_incarnation_begins_with_it() -> None:
    """The clock was set back, or the line of the notice is missing."""
    story = Story()
    story.start(100, A, after=0.0)
    story.commit(101, A, 1, Position(0, 3), seconds=60.0)
    story.tell(102, A, "preempted", saved=True, seconds=60.0)
    found = incarnation(history_from(story), A)
    assert [span.start - START for span in (*found.of("saving"), *found.of("exiting"))] == [100.0, 100.0]


def test_without_its_notice_a_preemption_has_its_own_duration() -> None:
    story = Story()
    story.start(0, A)
    story.tell(50, A, "preempted", saved=True, seconds=4.0)
    assert ("exiting", 46.0, 50.0) in spans(history_from(story), A)


def test_progress_goes_back_only_where_a_checkpoint_was_restored() -> None:
    """A commit is reported when it is durable. Training is ahead by then."""
    story = Story()
    story.start(0, A, position=Position(2))
    story.tell(1, A, "progress", epoch=2, batch=5)
    story.commit(2, A, 1, Position(2, 4))
    assert [position for _, position in incarnation(history_from(story), A).track] == [Position(2), Position(2, 5)]


# -------------------------------------------------------------------- lanes


@pytest.mark.parametrize(
    ("worker", "name"),
    [
        ("train-0-x7k2p-0123abcd", "train-0"),
        ("train-0-0123abcd", "train-0"),
        ("host-4711-0123abcd", "host-4711"),
        ("gpu-large-0123abcd", "gpu-large"),
        ("plain", "plain"),
        ("train-0-abcde-0123abcd", "train-0-abcde"),
        ("host-24578-0123abcd", "host-24578"),
    ],
)
def test_a_worker_is_called_by_what_its_incarnations_share(worker: str, name: str) -> None:
    assert lane_name(worker) == name


def test_incarnations_of_a_worker_share_a_lane_unless_they_overlap() -> None:
    story = Story()
    for start, end, worker in ((0, 10, "w-00000001"), (10, 20, "w-00000002"), (15, 30, "w-00000003")):
        story.start(start, worker)
        story.tell(end, worker, "left")
    lanes = [
        (lane.name, [incarnation.worker_id for incarnation in lane.incarnations]) for lane in history_from(story).lanes
    ]
    assert lanes == [("w", ["w-00000001", "w-00000002"]), ("w (2)", ["w-00000003"])]


def test_worker_2_comes_before_worker_10() -> None:
    story = Story()
    for name in ("w-10", "w-9", "v", "w-x"):
        story.start(0, f"{name}-0000000a")
    assert [lane.name for lane in history_from(story).lanes] == ["v", "w-9", "w-10", "w-x"]


def test_a_number_in_a_name_may_be_longer_than_python_parses() -> None:
    """Users choose the names. Python parses at most 4300 digits."""
    story = Story()
    for name in ("w-" + "9" * 5000, "w-1"):
        story.start(0, name)
    assert [len(lane.name) for lane in history_from(story).lanes] == [3, 5002]


# -------------------------------------------------------------------- running workers


def test_a_worker_with_a_recent_event_is_running() -> None:
    story = Story()
    story.start(0, A)
    story.tell(1, A, "elected", term=1)
    story.tell(20, A, "progress", epoch=0, batch=1)
    going = history_from(story, now=START + 79)
    assert (going.going_on, going.end - START, incarnation(going, A).ending) == (True, 79.0, "")
    assert [leadership.how for leadership in going.leaderships] == [""]
    assert ("training", 0.5, 79.0) in spans(going, A)
    assert "1 min 19 s so far: 1 worker" in summary(going, [])[0]
    assert document(going, [])["workers"][0]["lives"][0]["ending"] is None
    assert document(going, [])["leaders"][0]["how"] is None
    over = history_from(story, now=START + 81)
    assert (over.going_on, over.end - START, incarnation(over, A).ending) == (False, 20.0, "gone")


def test_a_worker_with_long_pauses_counts_as_running_for_longer() -> None:
    """A batch may take minutes."""
    story = Story()
    story.start(0, A)
    for at in (1000, 2000, 3000):
        story.tell(at, A, "progress", epoch=0, batch=at // 1000)
    assert history_from(story, now=START + 4999).going_on
    assert not history_from(story, now=START + 5001).going_on
    for at in range(3001, 3011):
        story.tell(at, A, "progress", epoch=0, batch=at)
    assert not history_from(story, now=START + 3080).going_on


def test_a_silent_standby_is_running_as_long_as_another_worker_is() -> None:
    story = Story()
    story.tell(0, B, "joined", standby=True)
    story.start(0, A)
    story.tell(5000, A, "progress", epoch=1, batch=0)
    assert incarnation(history_from(story, now=START + 5001), B).ending == ""
    assert incarnation(history_from(story, now=START + 50_001), B).ending == "gone"


def test_a_worker_that_started_again_ended_its_older_incarnation() -> None:
    story = Story()
    story.start(0, "w-0000000a")
    story.start(5, "w-0000000b")
    history = history_from(story, now=START + 6)
    assert [(incarnation.worker_id, incarnation.ending) for incarnation in history.incarnations] == [
        ("w-0000000a", "gone"),
        ("w-0000000b", ""),
    ]


def test_the_clock_of_the_reader_may_be_behind() -> None:
    story = Story()
    story.start(0, A)
    history = history_from(story, now=START - 100)
    assert (history.going_on, history.end - START) == (True, 0.5)
