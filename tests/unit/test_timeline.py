"""What is concluded from the events of a run: who did what when, who led, and what each preemption cost."""

from __future__ import annotations

import math
from typing import Any, override

import pytest

from distributed_backup.errors import StoreError
from distributed_backup.observability.events import KINDS, Event
from distributed_backup.position import Position
from distributed_backup.storage.base import Storage
from distributed_backup.storage.local import LocalStorage
from distributed_backup.timeline.chart import draw
from distributed_backup.timeline.history import History, history_of
from distributed_backup.timeline.incarnations import Incarnation, lane_name
from distributed_backup.timeline.incidents import IncidentCost, costs_of, leader_gaps, total, training_gaps
from distributed_backup.timeline.json_report import document
from distributed_backup.timeline.labels import cells, describe, summary
from distributed_backup.timeline.log_reader import parse_events, read_events
from distributed_backup.timeline.time_scale import TimeScale, clock_time, date, duration
from tests.support.stories import START, Story, one_worker_five_preemptions, three_workers

LONG_AFTER = START + 10**7
A, B, C = "a-00000001", "b-00000002", "c-00000003"


def history_from(story: Story, *, now: float = LONG_AFTER) -> History:
    return history_of(story.in_order, now=now)


def incarnation(history: History, worker: str) -> Incarnation:
    return next(incarnation for incarnation in history.incarnations if incarnation.worker_id == worker)


def spans(history: History, worker: str) -> list[tuple[str, float, float]]:
    """What a worker did, from when to when, in seconds after the beginning; saves aside."""
    return [
        (span.kind, round(span.start - START, 3), round(span.end - START, 3))
        for span in sorted(incarnation(history, worker).spans, key=lambda span: (span.start, span.kind))
        if span.kind != "saving"
    ]


# -------------------------------------------------------------------- reading


def test_what_is_no_event_is_passed_over_and_counted() -> None:
    """A torn line, a kind of a newer version, another program's line, a time that can't be shown: the rest stays."""
    story = Story()
    story.start(0, A)
    good = [event.line() for event in story.events]
    bad = [
        good[0][:40],
        b'{"at":"2026-11-23T10:00:00Z","worker":"w","event":"teleported"}\n',
        b'{"at":"2026-11-23T10:00:00","worker":"w","event":"left"}\n',
        b'{"at":"9999-12-31T23:59:59Z","worker":"w","event":"left"}\n',
        b'{"at":"2026-11-23T10:00:00Z","worker":7,"event":"left"}\n',
        b"\xff\x00 ELF",
        b"",
        b"[" * 100_000,
    ]
    events, passed_over = parse_events([good[0], *bad, good[1]])
    assert events == story.events
    assert passed_over == len(bad)


def test_events_are_merged_by_time_and_stay_in_the_order_of_each_worker() -> None:
    """A clock that goes backwards does not reorder what one worker said."""
    story = Story()
    story.tell(5, A, "joined")
    story.tell(2, A, "elected", term=1)
    story.tell(9, A, "left")
    story.tell(3, B, "joined")
    story.tell(7, B, "left")
    events, _ = parse_events(event.line() for event in story.events)
    assert [(event.worker, event.kind) for event in events] == [
        (B, "joined"),
        (A, "joined"),
        (A, "elected"),
        (B, "left"),
        (A, "left"),
    ]


class Disappearing(LocalStorage):
    """Lists logs that can't be read, for a reason."""

    reason: type[OSError] = FileNotFoundError

    @override
    def names(self) -> list[str]:
        return [*super().names(), "events-0-gone.jsonl"]

    @override
    def read(self, name: str) -> bytes:
        try:
            return super().read(name)
        except StoreError as error:
            raise StoreError("can't be read", path=name) from self.reason(error)


@pytest.fixture
def storage(tmp_path: Any) -> Storage:
    story = Story()
    story.tell(0, A, "joined")
    (tmp_path / "events-1-a.jsonl").write_bytes(story.events[0].line())
    (tmp_path / "other.jsonl").write_bytes(b"?")
    return Disappearing(tmp_path)


def test_only_event_logs_are_read_and_one_that_vanishes_is_passed_over(storage: Storage) -> None:
    events, passed_over = read_events(storage)
    assert ([event.kind for event in events], passed_over) == (["joined"], 0)


def test_a_place_that_can_not_be_read_is_an_error(storage: Disappearing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a run would look as if nothing had happened to it."""
    monkeypatch.setattr(Disappearing, "reason", PermissionError)
    with pytest.raises(StoreError, match="can't be read"):
        read_events(storage)


# -------------------------------------------------------------------- lives


def test_a_preempted_leader_waits_trains_leads_and_leaves() -> None:
    history = history_from(three_workers())
    assert spans(history, "train-0-aaaa0000") == [
        ("waiting", 0.0, 2.0),
        ("leading", 1.0, 105.0),
        ("training", 2.0, 105.0),
        ("leaving", 101.0, 105.0),
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


def test_who_says_nothing_more_is_gone_since_its_last_word() -> None:
    found = incarnation(history_from(three_workers()), "train-1-aaaa0001")
    assert (found.ending, found.end - START) == ("gone", 182.0)
    assert [leadership.how for leadership in found.leaderships] == ["gone"]


def test_what_follows_a_farewell_is_not_life() -> None:
    """A worker gives the lease back after it."""
    story = Story()
    story.start(0, A)
    story.tell(0.1, A, "elected", term=1)
    story.tell(5, A, "finished", epoch=1, batch=0)
    story.tell(6, A, "resigned", term=1)
    found = incarnation(history_from(story), A)
    assert (found.ending, found.end - START) == ("finished", 5.0)
    assert [(leadership.how, leadership.end - START) for leadership in found.leaderships] == [("finished", 5.0)]


def test_a_lead_that_was_lost_has_a_reason_and_the_worker_goes_on() -> None:
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
    assert [cost[0] for cost in rows(found)] == ["lost", "resigned", "gone"]
    assert ("unreachable", 4.0, 7.0) in spans(found, A)
    assert [mark.kind for mark in incarnation(found, A).marks] == ["restore", "failure", "failure"]


def test_a_clock_that_goes_backwards_makes_no_negative_span() -> None:
    story = Story()
    story.start(100, A)
    story.events.append(Event(at=story.events[0].at, worker=A, kind="elected", fields={"term": 1}))
    story.tell(50, A, "progress", epoch=0, batch=1)
    story.tell(40, A, "left")
    history = history_of(story.events, now=LONG_AFTER)
    assert spans(history, A) == [("waiting", 100.0, 100.5), ("leading", 100.5, 100.5), ("training", 100.5, 100.5)]


def test_a_notice_that_came_to_nothing_is_no_leaving() -> None:
    """A cloud may announce what it then does not do."""
    story = Story()
    story.start(0, A)
    story.tell(10, A, "notice", remaining=5.0)
    story.tell(100, A, "notice", remaining=30.0)
    story.tell(101, A, "notice", remaining=30.0)
    story.tell(110, A, "preempted", saved=True, seconds=10.0)
    history = history_from(story)
    assert ("leaving", 100.0, 110.0) in spans(history, A)
    assert incarnation(history, A).noticed == START + 100


def test_where_the_oldest_lines_are_gone_a_commit_tells_who_leads() -> None:
    story = Story()
    story.tell(0, A, "joined")
    story.commit(50, A, 7, Position(3), seconds=1.0)
    story.tell(60, A, "progress", epoch=3, batch=4)
    assert spans(history_from(story), A) == [("waiting", 0.0, 60.0), ("leading", 49.0, 60.0), ("training", 60.0, 60.0)]


def test_a_save_under_a_term_that_was_lost_is_no_new_lead() -> None:
    """Where the coordinator is gone, the last leader saves before its preemption."""
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
    assert [cost[:3] for cost in rows(history_from(story))] == [("lost", A, 1), ("lost", A, 4), ("preempted", A, None)]


def test_what_lasted_longer_than_its_worker_lived_began_with_it() -> None:
    """As the clock was set back meanwhile, or the line of the notice is gone."""
    story = Story()
    story.start(100, A, after=0.0)
    story.commit(101, A, 1, Position(0, 3), seconds=60.0)
    story.tell(102, A, "preempted", saved=True, seconds=60.0)
    found = incarnation(history_from(story), A)
    assert [span.start - START for span in (*found.of("saving"), *found.of("leaving"))] == [100.0, 100.0]


def test_where_the_notice_is_missing_a_preemption_tells_how_long_it_took() -> None:
    story = Story()
    story.start(0, A)
    story.tell(50, A, "preempted", saved=True, seconds=4.0)
    assert ("leaving", 46.0, 50.0) in spans(history_from(story), A)


def test_progress_goes_back_only_where_a_checkpoint_was_restored() -> None:
    """A commit is told when it is durable, and training is ahead of it by then."""
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


def test_the_lives_of_a_worker_share_a_lane_unless_they_overlap() -> None:
    story = Story()
    for start, end, worker in ((0, 10, "w-00000001"), (10, 20, "w-00000002"), (15, 30, "w-00000003")):
        story.start(start, worker)
        story.tell(end, worker, "left")
    lanes = [
        (lane.name, [incarnation.worker_id for incarnation in lane.incarnations]) for lane in history_from(story).lanes
    ]
    assert lanes == [("w", ["w-00000001", "w-00000002"]), ("w (2)", ["w-00000003"])]


def test_lanes_are_in_the_order_in_which_people_count() -> None:
    story = Story()
    for name in ("w-10", "w-9", "v", "w-x"):
        story.start(0, f"{name}-0000000a")
    assert [lane.name for lane in history_from(story).lanes] == ["v", "w-9", "w-10", "w-x"]


def test_a_number_may_be_longer_than_python_reads() -> None:
    """Ids are others' to choose."""
    story = Story()
    for name in ("w-" + "9" * 5000, "w-1"):
        story.start(0, name)
    assert [len(lane.name) for lane in history_from(story).lanes] == [3, 5002]


# -------------------------------------------------------------------- who is still there


def test_who_was_heard_of_recently_is_still_there() -> None:
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


def test_who_is_quiet_for_long_is_waited_for_longer() -> None:
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


def test_a_standby_worker_says_nothing_and_is_there_as_long_as_somebody_is() -> None:
    story = Story()
    story.tell(0, B, "joined", standby=True)
    story.start(0, A)
    story.tell(5000, A, "progress", epoch=1, batch=0)
    assert incarnation(history_from(story, now=START + 5001), B).ending == ""
    assert incarnation(history_from(story, now=START + 50_001), B).ending == "gone"


def test_who_has_started_again_is_no_longer_there_as_before() -> None:
    story = Story()
    story.start(0, "w-0000000a")
    story.start(5, "w-0000000b")
    history = history_from(story, now=START + 6)
    assert [(incarnation.worker_id, incarnation.ending) for incarnation in history.incarnations] == [
        ("w-0000000a", "gone"),
        ("w-0000000b", ""),
    ]


def test_the_clock_of_who_looks_may_be_behind() -> None:
    story = Story()
    story.start(0, A)
    history = history_from(story, now=START - 100)
    assert (history.going_on, history.end - START) == (True, 0.5)


# -------------------------------------------------------------------- costs


def rows(history: History) -> list[tuple[Any, ...]]:
    return [
        (cost.kind, cost.worker_id, cost.term, cost.without_leader, cost.without_training, cost.batches)
        for cost in costs_of(history)
    ]


def only(story: Story, worker: str) -> IncidentCost:
    (cost,) = [cost for cost in costs_of(history_from(story)) if cost.worker_id == worker]
    return cost


def test_what_each_blow_to_three_workers_cost() -> None:
    history = history_from(three_workers())
    assert rows(history) == [
        ("preempted", "train-0-aaaa0000", 1, 2.0, 0.0, 0),
        ("gone", "train-1-aaaa0001", 2, 18.0, 0.0, 0),
        ("preempted", "train-2-aaaa0002", 3, 42.0, 0.0, 0),
        ("preempted", "train-0-bbbb0000", None, 0.0, 43.0, 0),
    ]
    assert [cost.number for cost in costs_of(history)] == [1, 2, 3, 4]
    assert [cost.at - START for cost in costs_of(history)] == [101.0, 182.0, 247.0, 247.5]
    assert (total(leader_gaps(history)), total(training_gaps(history))) == (62.0, 43.0)
    assert summary(history, costs_of(history)) == [
        "2026-11-23 10:00:00 UTC, 6 min 44 s: 3 workers, 7 starts, 3 leaders, 4 terms",
        "3 preempted, 1 gone without a word: in all at most 1 min 2 s without a leader, 43 s without training, "
        "0 batches to repeat",
    ]


def test_a_time_that_begins_with_the_last_event_of_a_killed_worker_is_an_upper_bound() -> None:
    """The second leader was killed: it may have led for up to ten seconds longer. The first resigned: that is exact."""
    history = history_from(three_workers())
    costs = costs_of(history)
    assert [cells(history, cost)[-3] for cost in costs] == ["2 s", "at most 18 s", "42 s", "0 s"]
    report = document(history, costs)
    assert [(cost["without_leader"], cost["without_leader_is_upper_bound"]) for cost in report["costs"]] == [
        (2.0, False),
        (18.0, True),
        (42.0, False),
        (0.0, False),
    ]
    assert (report["without_leader"], report["without_leader_is_upper_bound"]) == (62.0, True)
    assert (report["without_training"], report["without_training_is_upper_bound"]) == (43.0, False)
    assert "no leader for at most 18 s: last event to next election" in draw(history, costs)
    assert "no leader for 42 s<" in draw(history, costs)


def test_a_time_without_training_is_an_upper_bound_after_a_kill_only() -> None:
    for killed in (True, False):
        story = Story()
        story.start(0, A)
        story.tell(20, A, "progress", epoch=0, batch=3)
        if not killed:
            story.tell(20, A, "left")
        story.start(80, "a-0000000f", after=0.0)
        story.tell(90, "a-0000000f", "finished", epoch=1, batch=0)
        history = history_from(story)
        (cost,) = document(history, costs_of(history))["costs"]
        assert (cost["without_training"], cost["without_training_is_upper_bound"]) == (60.0, killed)
        assert cells(history, only(story, A))[-2] == ("at most 1 min" if killed else "1 min")
        assert document(history, [])["without_training_is_upper_bound"] is killed


def test_a_killed_worker_that_did_not_lead_costs_exactly_no_time_without_a_leader() -> None:
    story = Story()
    story.start(0, A)
    story.start(0, B)
    story.tell(9, A, "progress", epoch=0, batch=3)
    story.tell(99, B, "finished", epoch=1, batch=0)
    history = history_from(story)
    (cost,) = document(history, costs_of(history))["costs"]
    assert (cost["without_leader"], cost["without_leader_is_upper_bound"]) == (0.0, False)
    assert cells(history, only(story, A))[-3:-1] == ("0 s", "0 s")


def test_who_could_not_save_repeats_batches() -> None:
    history = history_from(one_worker_five_preemptions())
    costs = costs_of(history)
    assert [cost.batches for cost in costs] == [0, 6, 0, 6, 0]
    assert [cost.saved for cost in costs] == [True, False, True, False, True]
    assert [cost.term for cost in costs] == [1, 2, 3, 4, 5]
    assert cells(history, costs[1]) == (
        *("2", "21 min 30 s", "11-23 10:21:30", "solo-00000001", "preempted, led term 2, not saved"),
        *("2 min 1 s", "2 min 8 s", "6, back to epoch 5"),
    )


def killed(reached: Position, resumed: Position, *, size: int) -> History:
    story = Story(size=size)
    story.start(0, "w-0000000a")
    for batch in range(1, size + 1):
        story.tell(batch, "w-0000000a", "progress", epoch=0, batch=batch)
    story.tell(50, "w-0000000a", "progress", epoch=reached.epoch, batch=reached.batch)
    story.start(60, "w-0000000b", position=resumed)
    return history_from(story)


def test_batches_are_counted_across_epochs_by_the_size_that_was_seen() -> None:
    """Which may be too few. Where none was, that is not known; where the checkpoint is ahead, nothing is lost."""
    for reached, resumed, size, batches, text in (
        (Position(3, 2), Position(1, 4), 10, 18, "18 or more, back to epoch 1, batch 4"),
        (Position(1, 2), Position(0, 3), 4, 3, "3 or more, back to epoch 0, batch 3"),
        (Position(3, 2), Position(3, 1), 4, 1, "1, back to epoch 3, batch 1"),
        (Position(1), Position(0, 4), 4, 0, "0"),
        (Position(3), Position(1), 0, None, "?, back to epoch 1"),
        (Position(3, 2), Position(4), 10, 0, "0"),
    ):
        history = killed(reached, resumed, size=size)
        cost = costs_of(history)[0]
        assert (cost.batches, cells(history, cost)[-1]) == (batches, text)
        assert (
            ("at least" in summary(history, [cost])[-1])
            == ("more" in text)
            == document(history, [cost])["costs"][0]["more"]
        )


def test_what_follows_a_finish_is_not_missed() -> None:
    """A pod that is started again when its run is complete finds the final state; until then nobody had to be there."""
    story = Story()
    story.start(0, A)
    story.tell(1, A, "elected", term=1)
    story.tell(60, A, "finished", epoch=4, batch=0)
    story.start(7260, B, position=Position(4))
    story.tell(7261, B, "elected", term=2)
    story.tell(7262, B, "finished", epoch=4, batch=0)
    history = history_from(story)
    assert (leader_gaps(history), training_gaps(history), costs_of(history)) == ([], [], [])


def test_logs_of_another_run_in_the_place_are_left_out(tmp_path: Any) -> None:
    """One that was being written when its run was deleted, into a bucket, may arrive later."""
    for worker, run in ((A, "one"), (B, "two")):
        story = Story()
        story.tell(0, worker, "joined", run=run)
        story.tell(1, worker, "left")
        (tmp_path / f"events-1-{worker}.jsonl").write_bytes(b"".join(event.line() for event in story.events))
    (tmp_path / "events-1-torn.jsonl").write_bytes(b"{")
    events, passed_over = read_events(LocalStorage(tmp_path), "two")
    assert [(event.worker, event.kind) for event in events] == [(B, "joined"), (B, "left")]
    assert passed_over == 1
    assert len(read_events(LocalStorage(tmp_path))[0]) == 4


def test_who_hands_over_goes_on_training() -> None:
    story = Story()
    for worker in (A, B):
        story.start(0, worker)
    story.tell(1, A, "elected", term=1)
    story.tell(10, A, "resigned", term=1, reason="asked to let another worker lead")
    story.tell(10.5, B, "elected", term=2)
    for worker in (A, B):
        story.tell(20, worker, "finished", epoch=1, batch=0)
    cost = only(story, A)
    assert (cost.kind, cost.without_leader, cost.without_training, cost.batches) == ("resigned", 0.5, 0.0, 0)
    assert cells(history_from(story), cost)[4] == "gave the lead back, led term 1"


def test_the_next_leader_is_the_next_by_term_for_clocks_may_differ() -> None:
    """The second seems to have led while the first still did, the fourth before the third."""
    story = Story()
    for worker in (A, B, C):
        story.start(0, worker)
    for term, worker, begin, end in ((1, A, 1, 30), (2, B, 25, 40), (3, A, 43, 50), (4, C, 41, 60)):
        story.tell(begin, worker, "elected", term=term)
        story.tell(end, worker, "lost", term=term, reason="lease lost")
    found = [(cost.term, cost.without_leader) for cost in costs_of(history_from(story)) if cost.kind == "lost"]
    assert found == [(1, 0.0), (2, 3.0), (3, 0.0), (4, None)]


def test_time_without_a_leader_is_what_no_lead_covers() -> None:
    """However the leads overlap, as the clocks tell it."""
    story = Story()
    for worker in (A, B):
        story.start(0, worker)
    for term, worker, begin, end in ((1, A, 1, 50), (2, B, 10, 20), (3, B, 30, 40), (4, A, 55, 60)):
        story.tell(begin, worker, "elected", term=term)
        story.tell(end, worker, "lost", term=term, reason="lease lost")
    assert total(leader_gaps(history_from(story))) == 5.0


def test_what_nobody_has_made_good_yet_is_not_known() -> None:
    story = Story()
    story.start(0, A, position=Position(0, 3))
    story.tell(1, A, "elected", term=1)
    story.tell(9, A, "left")
    cost = only(story, A)
    assert (cost.kind, cost.without_leader, cost.without_training, cost.batches) == ("left", None, None, None)
    assert cells(history_from(story), cost)[-3:] == ("to the end", "to the end", "not resumed")


def test_who_takes_over_from_standby_resumes_in_the_other_s_stead() -> None:
    story = Story()
    story.start(0, A)
    story.tell(0, B, "joined", standby=True)
    story.tell(0.5, A, "elected", term=1)
    story.tell(20, A, "progress", epoch=0, batch=7)
    story.tell(30, B, "elected", term=2)
    story.tell(31, B, "restored", epoch=0, batch=4)
    story.start(90, "a-0000000f", position=Position(5))
    cost = only(story, A)
    assert (cost.without_leader, cost.without_training, cost.batches) == (10.0, 11.0, 3)
    assert cost.resumed_at == START + 31


def test_who_dies_among_others_resumes_in_its_own_next_life() -> None:
    story = Story()
    story.start(0, B)
    story.start(0, A)
    story.tell(10, A, "progress", epoch=0, batch=7)
    story.start(12, C, position=Position(0, 1))
    story.start(20, "a-0000000f", position=Position(0, 5))
    for worker in (B, C):
        story.tell(99, worker, "finished", epoch=1, batch=0)
    assert (only(story, A).batches, only(story, A).without_training) == (2, 0.0)


def test_who_dies_before_it_trained_costs_nothing() -> None:
    story = Story()
    story.tell(0, A, "joined")
    assert rows(history_from(story)) == [("gone", A, None, 0.0, 0.0, 0)]


def test_who_finishes_costs_nothing() -> None:
    story = Story()
    story.start(0, A)
    story.tell(0.1, A, "elected", term=1)
    story.tell(5, A, "finished", epoch=1, batch=0)
    history = history_from(story)
    assert rows(history) == []
    assert summary(history, [])[1] == "nothing was preempted or lost"


# -------------------------------------------------------------------- what others wrote


@pytest.mark.parametrize("value", [None, -1, "x", 10**12, 1e300, True, ["<"], {}], ids=repr)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_fields_that_are_not_as_agreed_are_taken_as_not_told(kind: Any, value: Any) -> None:
    """Nothing that stands in a log makes a drawing fail, or the story untold."""
    story = Story()
    story.start(0, A)
    story.tell(1, A, kind, **dict.fromkeys(KINDS[kind], value))
    story.tell(2, A, "progress", epoch=0, batch=1)
    events, passed_over = parse_events(event.line() for event in story.events)
    history = history_of(events, now=LONG_AFTER)
    assert "</svg>" in draw(history, costs_of(history))
    assert all(START <= span.start <= span.end for span in incarnation(history, A).spans)
    assert passed_over == 0
    assert all("\n" not in describe(event) for event in events)


def test_events_are_told_in_words() -> None:
    story = Story()
    story.start(0, A, position=Position(1, 2))
    story.tell(0, B, "joined", standby=True)
    story.start(0, C)
    story.tell(1, A, "elected", term=3)
    story.commit(2, A, 3, Position(1, 3), seconds=0.02)
    story.tell(2, A, "lost", term=3, reason="lease lost")
    story.tell(2, A, "commit_failed", reason="disk full")
    story.tell(2, A, "commit_recovered")
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
        "0000000003-00000001-00000003.ckpt, epoch 1, batch 3, 30 kB in 20 ms",
        "term 3: lease lost",
        "disk full",
        "",
        "SIGTERM, 30 s left",
        "nothing to save; 1.5 s after the notice",
        "not saved; 1.5 s after the notice",
        "saved x.ckpt, epoch 1, batch 3; 1.5 s after the notice",
    ]


@pytest.mark.parametrize(
    ("count", "seconds", "text"),
    [
        (17205, 0.010021, "17 kB in 10 ms"),
        (1234, 0.00123, "1.2 kB in 1.2 ms"),
        (999, 0, "999 bytes in 0 s"),
        (1000, 0.0000123, "1 kB in 0.012 ms"),
        (999_999, 0.9996, "1 MB in 1 s"),
        (2_500_000, 83.4, "2.5 MB in 1 min 23 s"),
        (10**9, 1.0, "1 GB in 1 s"),
        (None, "x", "None bytes in x s"),
        (-5, -1.5, "-5 bytes in -1.5 s"),
        (10**18 - 1, math.inf, "1 EB in inf s"),
    ],
)
def test_a_commit_is_told_as_people_say_it(count: Any, seconds: Any, text: str) -> None:
    story = Story()
    story.tell(0, A, "committed", checkpoint="x", epoch=1, batch=2, bytes=count, seconds=seconds)
    assert describe(story.events[0]) == f"x, epoch 1, batch 2, {text}"


# -------------------------------------------------------------------- scale


@pytest.mark.parametrize(
    ("length", "step", "count"),
    [(0.0, 0.001, 2), (1.0, 0.2, 6), (3.0, 0.5, 7), (59.0, 10.0, 6), (3600.0, 600.0, 7), (3 * 86400.0, 43200.0, 7)],
)
def test_ticks_are_round_durations_after_the_start(length: float, step: float, count: int) -> None:
    scale = TimeScale(start=START, end=START + length, left=0, right=100)
    assert scale.step == pytest.approx(step)
    assert [tick - START for tick in scale.ticks()] == pytest.approx(
        [number * step for number in range(count)], abs=1e-6
    )


@pytest.mark.parametrize("length", [10.0**power for power in range(-3, 11)])
def test_there_are_some_ticks_and_not_many(length: float) -> None:
    assert 2 <= len(TimeScale(start=0.0, end=length, left=0, right=1).ticks()) <= 9


def test_what_lies_outside_is_drawn_at_the_edge() -> None:
    scale = TimeScale(start=10.0, end=20.0, left=100, right=200)
    assert [scale.x(instant) for instant in (0.0, 10.0, 15.0, 20.0, 30.0)] == [100, 100, 150, 200, 200]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.0123, "0.0123 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min"),
        (83.4, "1 min 23 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h"),
        (86399.0, "1 d"),
        (100_000.0, "1 d 4 h"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_time_of_day_is_as_fine_as_the_ticks() -> None:
    assert [clock_time(START + 0.25, step=step) for step in (0.1, 1.0, 3600.0)] == ["10:00:00.250", "10:00:00", "10:00"]
    assert date(START) == "2026-11-23"
