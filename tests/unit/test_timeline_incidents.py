"""The incidents of a run and their costs: time without a leader, time without training, batches to repeat."""

from __future__ import annotations

from typing import Any

from distributed_backup.position import Position
from distributed_backup.timeline.chart import draw
from distributed_backup.timeline.history import History
from distributed_backup.timeline.incidents import IncidentCost, costs_of, leader_gaps, total, training_gaps
from distributed_backup.timeline.json_report import document
from distributed_backup.timeline.labels import cells, summary
from tests.support.stories import START, A, B, C, Story, history_from, one_worker_five_preemptions, three_workers


def rows(history: History) -> list[tuple[Any, ...]]:
    return [
        (cost.kind, cost.worker_id, cost.term, cost.without_leader, cost.without_training, cost.batches)
        for cost in costs_of(history)
    ]


def only(story: Story, worker: str) -> IncidentCost:
    (cost,) = [cost for cost in costs_of(history_from(story)) if cost.worker_id == worker]
    return cost


def test_each_incident_of_three_workers_has_its_cost() -> None:
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
        "3 preempted, 1 stopped reporting",
        "In all: at most 1 min 2 s without a leader, 43 s without training, 0 batches to repeat",
    ]


def test_a_time_that_begins_with_the_last_event_of_a_killed_worker_is_an_upper_bound() -> None:
    """The second leader was killed, and may have led for ten seconds more. The first was preempted at an exact time."""
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
    assert "no leader for at most 18 s, counted from the last event of the leader" in draw(history, costs)
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


def test_a_worker_that_could_not_save_repeats_batches() -> None:
    history = history_from(one_worker_five_preemptions())
    costs = costs_of(history)
    assert [cost.batches for cost in costs] == [0, 6, 0, 6, 0]
    assert [cost.saved for cost in costs] == [True, False, True, False, True]
    assert [cost.term for cost in costs] == [1, 2, 3, 4, 5]
    assert cells(history, costs[1]) == (
        *("2", "21 min 30 s", "11-23 10:21:30", "solo-00000001", "preempted, led term 2, not saved"),
        *("2 min 1 s", "2 min 8 s", "6, back to epoch 5, batch 0"),
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
    """The size may be too low. Without one, the number is unknown. A checkpoint that is ahead costs nothing."""
    for reached, resumed, size, batches, text in (
        (Position(3, 2), Position(1, 4), 10, 18, "18 or more, back to epoch 1, batch 4"),
        (Position(1, 2), Position(0, 3), 4, 3, "3 or more, back to epoch 0, batch 3"),
        (Position(3, 2), Position(3, 1), 4, 1, "1, back to epoch 3, batch 1"),
        (Position(1), Position(0, 4), 4, 0, "0"),
        (Position(3), Position(1), 0, None, "?, back to epoch 1, batch 0"),
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


def test_time_after_a_finish_is_not_counted() -> None:
    """A pod that restarts after its run finished restores the final state. No leader was needed until then."""
    story = Story()
    story.start(0, A)
    story.tell(1, A, "elected", term=1)
    story.tell(60, A, "finished", epoch=4, batch=0)
    story.start(7260, B, position=Position(4))
    story.tell(7261, B, "elected", term=2)
    story.tell(7262, B, "finished", epoch=4, batch=0)
    history = history_from(story)
    assert (leader_gaps(history), training_gaps(history), costs_of(history)) == ([], [], [])


def test_a_worker_that_resigns_the_lease_trains_on() -> None:
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
    assert cells(history_from(story), cost)[4] == "resigned the lease, led term 1"


def test_the_next_leader_is_the_next_by_term_for_clocks_may_differ() -> None:
    """By their clocks, the second led while the first still did, and the fourth before the third."""
    story = Story()
    for worker in (A, B, C):
        story.start(0, worker)
    for term, worker, begin, end in ((1, A, 1, 30), (2, B, 25, 40), (3, A, 43, 50), (4, C, 41, 60)):
        story.tell(begin, worker, "elected", term=term)
        story.tell(end, worker, "lost", term=term, reason="lease lost")
    found = [(cost.term, cost.without_leader) for cost in costs_of(history_from(story)) if cost.kind == "lost"]
    assert found == [(1, 0.0), (2, 3.0), (3, 0.0), (4, None)]


def test_time_without_a_leader_is_time_that_no_leadership_covers() -> None:
    """Leaderships may overlap, by the workers' clocks."""
    story = Story()
    for worker in (A, B):
        story.start(0, worker)
    for term, worker, begin, end in ((1, A, 1, 50), (2, B, 10, 20), (3, B, 30, 40), (4, A, 55, 60)):
        story.tell(begin, worker, "elected", term=term)
        story.tell(end, worker, "lost", term=term, reason="lease lost")
    assert total(leader_gaps(history_from(story))) == 5.0


def test_a_cost_without_an_end_is_unknown() -> None:
    story = Story()
    story.start(0, A, position=Position(0, 3))
    story.tell(1, A, "elected", term=1)
    story.tell(9, A, "left")
    cost = only(story, A)
    assert (cost.kind, cost.without_leader, cost.without_training, cost.batches) == ("left", None, None, None)
    assert cells(history_from(story), cost)[-3:] == ("to the end", "to the end", "not resumed")


def test_a_gap_that_never_ended_counts_in_the_total() -> None:
    """The leader was killed. The other worker has neither led nor trained since, and stopped a minute later."""
    story = Story()
    story.start(0, A)
    story.tell(1, A, "elected", term=1)
    story.tell(20, A, "progress", epoch=0, batch=7)
    story.tell(10, B, "joined", standby=True)
    story.tell(80, B, "left")
    history = history_from(story)
    assert cells(history, only(story, A))[-3:-1] == ("to the end", "to the end")
    assert (total(leader_gaps(history)), total(training_gaps(history))) == (60.0, 60.0)
    assert "at most 1 min without a leader, at most 1 min without training" in summary(history, costs_of(history))[-1]
    assert "no leader for at most 1 min" in draw(history, costs_of(history))


def test_a_gap_that_never_ended_grows_while_the_run_goes_on() -> None:
    story = Story()
    story.start(0, A)
    story.start(0, B)
    story.tell(1, A, "elected", term=1)
    story.tell(20, A, "left")
    story.tell(50, B, "progress", epoch=0, batch=7)
    history = history_from(story, now=START + 70)
    assert (total(leader_gaps(history)), total(training_gaps(history))) == (50.0, 0.0)
    assert costs_of(history)[0].without_leader is None


def test_answers_that_a_replay_could_not_use_are_incidents() -> None:
    """They cost calls, and neither time nor batches. The answers that were replayed are counted over all workers."""
    story = Story()
    story.start(0, A)
    story.tell(1, A, "replayed", answers=40, epoch=1, batch=2)
    story.tell(2, A, "replayed", answers=2, epoch=1, batch=3)
    story.tell(3, A, "voided", answers=1, epoch=1, batch=3)
    story.start(4, B)
    story.tell(5, B, "replayed", answers=8, epoch=1, batch=3)
    story.tell(6, B, "diverged", reason="the state differs in random", epoch=1, batch=4)
    for worker in (A, B):
        story.tell(20, worker, "finished", epoch=2, batch=0)
    history = history_from(story)
    costs = costs_of(history)
    assert rows(history) == [("voided", A, None, 0.0, 0.0, 0), ("diverged", B, None, 0.0, 0.0, 0)]
    assert [cells(history, cost)[4] for cost in costs] == [
        "voided answers: 1 answer after epoch 1, batch 3",
        "diverged in a replay: the state differs in random, after epoch 1, batch 4",
    ]
    assert summary(history, costs)[:2] == [
        "2026-11-23 10:00:00 UTC, 20 s: 2 workers, 2 starts, 0 leaders, 0 terms, answers replayed: 50 (calls saved)",
        "1 voided answers, 1 diverged in a replay",
    ]
    report = document(history, costs)
    assert report["answers_replayed"] == 50
    assert [cost["what"] for cost in report["costs"]] == ["voided", "diverged"]


def test_a_standby_that_takes_over_resumes_for_the_worker_it_replaces() -> None:
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


def test_a_worker_killed_among_others_resumes_in_its_own_next_incarnation() -> None:
    story = Story()
    story.start(0, B)
    story.start(0, A)
    story.tell(10, A, "progress", epoch=0, batch=7)
    story.start(12, C, position=Position(0, 1))
    story.start(20, "a-0000000f", position=Position(0, 5))
    for worker in (B, C):
        story.tell(99, worker, "finished", epoch=1, batch=0)
    assert (only(story, A).batches, only(story, A).without_training) == (2, 0.0)


def test_a_worker_killed_before_it_trained_costs_nothing() -> None:
    story = Story()
    story.tell(0, A, "joined")
    assert rows(history_from(story)) == [("gone", A, None, 0.0, 0.0, 0)]


def test_a_worker_that_finishes_costs_nothing() -> None:
    story = Story()
    story.start(0, A)
    story.tell(0.1, A, "elected", term=1)
    story.tell(5, A, "finished", epoch=1, batch=0)
    history = history_from(story)
    assert rows(history) == []
    assert summary(history, [])[1] == "no incidents"
