"""The contract of `coordination.base`, over every implementation.

The tests do not know which one they use. Abilities of a single implementation have tests of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from distributed_backup.coordination.base import (
    Action,
    Announcement,
    ClusterView,
    Coordinator,
    Heartbeat,
    Member,
    Notice,
)
from distributed_backup.position import Position
from tests.contract.harness import DURATION, Harness


def beat(
    coordinator: Coordinator,
    worker_id: str,
    *,
    campaign: bool = True,
    floor: int = 0,
    position: Position | None = None,
) -> ClusterView:
    return coordinator.heartbeat(
        Heartbeat(worker_id=worker_id, campaign=campaign, floor=floor, duration=DURATION, position=position)
    )


def announcement(term: int, worker_id: str, batch: int = 1) -> Announcement:
    return Announcement(
        term=term,
        worker_id=worker_id,
        position=Position(2, batch),
        checkpoint=f"{term:010d}-00000002-{batch:08d}.ckpt",
        digest="d" * 64,
        acknowledged=("notice-1",),
    )


def notice(worker_id: str, notice_id: str = "notice-1", remaining: float = 30.0) -> Notice:
    return Notice(notice_id=notice_id, worker_id=worker_id, reason="SIGTERM", remaining=remaining)


# ---------------------------------------------------------------- the lease


def test_a_free_lease_is_granted_to_the_first_who_campaigns(harness: Harness) -> None:
    """The first campaigner holds term 1. The view of a second one names it."""
    a, b = harness.connect(), harness.connect()
    first, second = beat(a, "a"), beat(b, "b")
    assert (first.holder, first.term) == ("a", 1)
    assert (second.holder, second.term) == ("a", 1)


def test_who_does_not_campaign_is_granted_nothing(harness: Harness) -> None:
    """A free lease stays free while no worker campaigns."""
    seen = beat(harness.connect(), "a", campaign=False)
    assert (seen.holder, seen.term) == (None, 0)


def test_a_holder_keeps_its_term_by_renewing_it(harness: Harness) -> None:
    """A renewal within the lease keeps holder and term, for many leases' time."""
    a, b = harness.connect(), harness.connect()
    beat(a, "a")
    for _ in range(10):
        harness.advance(DURATION / 2)
        assert (beat(a, "a").holder, beat(a, "a").term) == ("a", 1)
        assert beat(b, "b").holder == "a"


def test_a_renewal_counts_even_if_the_holder_does_not_campaign(harness: Harness) -> None:
    """A holder that can't read its store still holds, and no other worker gets the lease."""
    a, b = harness.connect(), harness.connect()
    beat(a, "a")
    for _ in range(3):
        harness.advance(DURATION / 2)
        assert beat(a, "a", campaign=False).holder == "a"
        assert beat(b, "b").holder == "a"


def test_a_renewal_is_not_disturbed_by_its_floor(harness: Harness) -> None:
    """The floor is for a new term only: the holder of term 1 keeps it although 9 is used by now."""
    a = harness.connect()
    beat(a, "a")
    assert beat(a, "a", floor=9).term == 1


def test_a_granted_term_is_above_the_floor(harness: Harness) -> None:
    """A coordinator without memory takes the caller's word for the terms that were used."""
    assert beat(harness.connect(), "a", floor=41).term == 42


def test_a_floor_below_the_newest_term_changes_nothing(harness: Harness) -> None:
    """A term is higher than every earlier one as well as than the floor."""
    a, b = harness.connect(), harness.connect()
    beat(a, "a", floor=41)
    a.resign("a")
    assert beat(b, "b", floor=3).term == 43


def test_terms_grow_at_each_change_of_holder_and_are_never_reused(harness: Harness) -> None:
    """Whether the holder resigned or crashed, the next one has a higher term."""
    granted = []
    for number in range(12):
        worker_id = f"w{number}"
        coordinator = harness.connect()
        granted.append(beat(coordinator, worker_id).term)
        if number % 2:
            coordinator.resign(worker_id)
        else:
            harness.crash(coordinator)
    assert granted == sorted(set(granted))
    assert len(granted) == 12


def test_a_worker_that_comes_back_after_a_loss_gets_a_new_term(harness: Harness) -> None:
    """Also the same worker never gets a term twice once it gave it up."""
    a = harness.connect()
    first = beat(a, "a").term
    a.resign("a")
    assert beat(a, "a").term > first


def test_resigning_hands_over_at_once(harness: Harness) -> None:
    """No time passes between the resignation and the next holder."""
    a, b = harness.connect(), harness.connect()
    beat(a, "a")
    beat(b, "b")
    a.resign("a")
    assert b.view().holder is None
    taken = beat(b, "b")
    assert (taken.holder, taken.term) == ("b", 2)
    assert beat(a, "a").holder == "b"


def test_resigning_somebody_elses_lease_does_nothing(harness: Harness) -> None:
    """Only the holder can give the lease back, and a late resignation never hits a successor."""
    a, b = harness.connect(), harness.connect()
    beat(a, "a")
    b.resign("b")
    assert beat(a, "a").term == 1
    a.resign("a")
    beat(b, "b")
    a.resign("a")
    assert (beat(b, "b").holder, beat(b, "b").term) == ("b", 2)


def test_leaving_is_not_resigning(harness: Harness) -> None:
    """A membership that ends leaves the lease where it is."""
    a = harness.connect()
    beat(a, "a")
    a.leave("a")
    assert harness.connect().view().holder == "a"


def test_the_lease_of_a_crashed_holder_is_free(harness: Harness) -> None:
    """A holder that is gone is succeeded under a new term."""
    a, b = harness.connect(), harness.connect()
    beat(a, "a")
    beat(b, "b")
    harness.crash(a)
    assert b.view().holder is None
    taken = beat(b, "b")
    assert (taken.holder, taken.term) == ("b", 2)


def test_who_does_not_campaign_sees_that_the_holder_crashed(harness: Harness) -> None:
    """The view of a worker that can't campaign does not name a dead leader."""
    a, b = harness.connect(), harness.connect()
    beat(a, "a")
    harness.crash(a)
    assert beat(b, "b", campaign=False).holder is None


def test_the_view_tells_when_the_holder_was_last_heard_of(harness: Harness) -> None:
    """The age of the holder is counted from its last heartbeat."""
    a, b = harness.connect(), harness.connect()
    assert b.view().holder_age is None
    beat(a, "a")
    harness.advance(4.0)
    assert harness.is_age(beat(b, "b").holder_age, 4.0)
    beat(a, "a")
    assert harness.is_age(b.view().holder_age, 0.0)


def test_who_announces_is_heard_of(harness: Harness) -> None:
    """Who waits for a sign of life of the leader that it joined need not wait for its next heartbeat."""
    a, b = harness.connect(), harness.connect()
    term = beat(a, "a").term
    harness.advance(DURATION - 5.0)
    assert a.announce(announcement(term, "a"))
    assert harness.is_age(b.view().holder_age, 0.0)


def test_the_time_left_is_told_where_the_lease_runs_out_by_time(harness: Harness) -> None:
    """It is at most the lease's duration, or None where the lease lives as long as its holder."""
    a = harness.connect()
    beat(a, "a")
    harness.advance(4.0)
    remaining = a.view().remaining
    assert remaining is None or harness.is_left(remaining, DURATION - 4.0)


def test_of_many_who_campaign_at_once_one_wins(harness: Harness) -> None:
    """Eight threads, each with a connection of its own, see one holder and one term."""
    connections = {f"w{number}": harness.connect() for number in range(8)}
    start, seen = threading.Barrier(8), []

    def campaign(worker_id: str) -> None:
        start.wait()
        for _ in range(5):
            mine = beat(connections[worker_id], worker_id)
            if mine.holder == worker_id:
                seen.append((worker_id, mine.term))

    threads = [threading.Thread(target=campaign, args=(worker_id,)) for worker_id in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == 1, seen


def test_one_connection_serves_several_workers(harness: Harness) -> None:
    """Two workers of one process elect one of them, and hand over."""
    shared = harness.connect()
    assert beat(shared, "a").holder == "a"
    assert beat(shared, "b").holder == "a"
    shared.resign("a")
    assert (beat(shared, "b").holder, beat(shared, "a").holder) == ("b", "b")


def test_a_lease_belongs_to_the_worker_and_not_to_the_thread_that_took_it(harness: Harness) -> None:
    """Taken by one thread, it is renewed, spoken for and given back by others."""
    a, b = harness.connect(), harness.connect()
    taking = threading.Thread(target=beat, args=(a, "a"))
    taking.start()
    taking.join()
    assert (beat(a, "a").holder, beat(a, "a").term) == ("a", 1)
    assert a.announce(announcement(1, "a"))
    a.resign("a")
    assert beat(b, "b").holder == "b"


# ---------------------------------------------------------------- announcements


def test_all_workers_see_what_the_holder_announced(harness: Harness) -> None:
    """An announcement arrives as it was made."""
    a, b = harness.connect(), harness.connect()
    made = announcement(beat(a, "a").term, "a")
    assert a.announce(made)
    assert b.view().announcement == made
    assert beat(b, "b").announcement == made


def test_a_fresh_start_is_announced_without_a_checkpoint(harness: Harness) -> None:
    """None stays None on its way."""
    a, b = harness.connect(), harness.connect()
    made = Announcement(term=beat(a, "a").term, worker_id="a", position=Position(0))
    assert a.announce(made)
    assert b.view().announcement == made


def test_the_announcement_of_a_finished_run_arrives_as_finished(harness: Harness) -> None:
    """Workers that wait learn from it that the run is complete."""
    a, b = harness.connect(), harness.connect()
    made = replace(announcement(beat(a, "a").term, "a"), finished=True)
    assert a.announce(made)
    assert b.view().announcement == made


def test_a_later_announcement_of_the_same_term_takes_the_place_of_the_earlier(harness: Harness) -> None:
    """The newest of the term is the one that counts."""
    a = harness.connect()
    term = beat(a, "a").term
    assert a.announce(announcement(term, "a", 1))
    assert a.announce(announcement(term, "a", 2))
    assert a.view().announcement == announcement(term, "a", 2)


def test_only_the_holder_announces(harness: Harness) -> None:
    """A follower, and a holder that names a term it never had, are refused."""
    a, b = harness.connect(), harness.connect()
    term = beat(a, "a").term
    beat(b, "b")
    assert not b.announce(announcement(term, "b"))
    assert not a.announce(announcement(term + 1, "a"))
    assert not a.announce(announcement(term - 1, "a"))
    assert a.view().announcement is None


@pytest.mark.parametrize("end", ["resigned", "crashed"])
def test_an_announcement_of_an_older_term_is_refused(harness: Harness, end: str) -> None:
    """A former holder's announcement is refused."""
    a, b = harness.connect(), harness.connect()
    old = beat(a, "a").term
    if end == "resigned":
        a.resign("a")
    else:
        harness.crash(a)
    new = beat(b, "b").term
    assert b.announce(announcement(new, "b"))
    assert not a.announce(announcement(old, "a", 9))
    assert not a.announce(announcement(new, "a", 9))
    assert b.view().announcement == announcement(new, "b")


def test_a_lease_that_is_over_announces_nothing_even_without_a_successor(harness: Harness) -> None:
    """Between two holders, all announcements are refused."""
    a = harness.connect()
    term = beat(a, "a").term
    a.resign("a")
    assert not a.announce(announcement(term, "a"))
    assert a.view().announcement is None


def test_a_worker_that_got_a_new_term_can_not_announce_under_its_old_one(harness: Harness) -> None:
    """The term counts, not only the worker."""
    a = harness.connect()
    old = beat(a, "a").term
    a.resign("a")
    new = beat(a, "a").term
    assert not a.announce(announcement(old, "a"))
    assert a.announce(announcement(new, "a"))


def test_the_newest_announcement_stays_while_later_terms_are_silent(harness: Harness) -> None:
    """A dozen leaders that died before they said anything don't make the run forget."""
    first = harness.connect()
    made = announcement(beat(first, "first").term, "first")
    assert first.announce(made)
    first.resign("first")
    for number in range(12):
        silent = harness.connect()
        assert beat(silent, f"w{number}").holder == f"w{number}"
        assert silent.view().announcement == made
        silent.resign(f"w{number}")
    assert harness.connect().view().announcement == made


# ---------------------------------------------------------------- members


def test_members_are_those_who_were_heard_of(harness: Harness) -> None:
    """Each with its role, its position and its age."""
    a, b = harness.connect(), harness.connect()
    beat(b, "b", position=Position(1, 2))
    harness.advance(3.0)
    beat(a, "a")
    first, second = a.members()
    assert (first.worker_id, first.position, first.role) == ("a", None, "follower")
    assert (second.worker_id, second.position, second.role) == ("b", Position(1, 2), "follower")
    assert harness.is_age(first.age, 0.0)
    assert harness.is_age(second.age, 3.0)


def test_a_membership_ends_when_its_duration_is_over(harness: Harness) -> None:
    """Just before it counts, just after it doesn't, and a heartbeat makes it count again."""
    a, b = harness.connect(), harness.connect()
    beat(a, "a")
    margin = max(0.5, harness.slack)
    harness.advance(DURATION - margin)
    assert [member.worker_id for member in b.members()] == ["a"]
    harness.advance(margin + 0.5)
    assert b.members() == ()
    beat(a, "a")
    assert [member.worker_id for member in b.members()] == ["a"]


def test_who_leaves_is_no_member(harness: Harness) -> None:
    """Others stay."""
    a, b = harness.connect(), harness.connect()
    beat(a, "a")
    beat(b, "b")
    a.leave("a")
    assert [member.worker_id for member in b.members()] == ["b"]


def test_leaving_without_having_come_is_harmless(harness: Harness) -> None:
    """A worker that failed early may leave what it never joined."""
    a = harness.connect()
    a.leave("a")
    a.resign("a")
    assert a.members() == ()


# ---------------------------------------------------------------- notices


@pytest.mark.parametrize("position", [None, Position(0), Position(12, 3)])
@pytest.mark.parametrize("action", ["save", "resign"])
def test_a_notice_tells_what_is_wished_for(harness: Harness, action: Action, position: Position | None) -> None:
    """And its reason arrives in full, whatever is in it."""
    a = harness.connect()
    made = Notice(
        notice_id="notice-1",
        worker_id="a",
        reason="the cloud's  word: 5 é %s \n",
        remaining=30.0,
        action=action,
        position=position,
    )
    a.notify(made)
    seen = harness.connect().view().notices
    assert [replace(entry, remaining=30.0) for entry in seen] == [made]


def test_a_notice_that_is_given_again_is_still_one(harness: Harness) -> None:
    """The later word counts. One without any time takes the request back at once."""
    a = harness.connect()
    a.notify(notice("a", remaining=30.0))
    a.notify(notice("a", remaining=20.0))
    (seen,) = a.view().notices
    assert harness.is_left(seen.remaining, 20.0)
    a.notify(notice("a", remaining=0.0))
    assert a.view().notices == ()


def test_a_notice_is_seen_by_all_until_it_is_over(harness: Harness) -> None:
    """Its time runs down on the coordinator's clock."""
    a, b = harness.connect(), harness.connect()
    beat(a, "a")
    b.notify(notice("b", remaining=30.0))
    harness.advance(10.0)
    # A heartbeat need tell them to the holder only.
    for seen in (a.view().notices, beat(a, "a").notices, b.view().notices):
        assert [(entry.notice_id, entry.worker_id, entry.reason) for entry in seen] == [("notice-1", "b", "SIGTERM")]
        assert harness.is_left(seen[0].remaining, 20.0)
    harness.advance(20.5)
    assert a.view().notices == ()


def test_leaving_takes_back_ones_own_notices_only(harness: Harness) -> None:
    """The notice of another stays."""
    a, b = harness.connect(), harness.connect()
    a.notify(notice("a", "notice-a"))
    b.notify(notice("b", "notice-b"))
    a.leave("a")
    assert [entry.notice_id for entry in b.view().notices] == ["notice-b"]


def test_a_notice_may_come_from_a_worker_that_is_no_member(harness: Harness) -> None:
    """A preemption can come before the first heartbeat."""
    a, b = harness.connect(), harness.connect()
    a.notify(notice("a"))
    assert len(b.view().notices) == 1


# ---------------------------------------------------------------- repetition, reading, forgetting


def state(harness: Harness) -> tuple[object, ...]:
    """Return all that is visible of the run. It is equal before and after a call without effect."""
    onlooker = harness.connect()
    return timeless(harness, onlooker.view()), *(timeless(harness, member) for member in onlooker.members())


def timeless(harness: Harness, seen: object) -> object:
    """The same without the time that has passed, where a real clock makes it pass."""
    if not harness.slack:
        return seen
    if isinstance(seen, ClusterView):
        notices = tuple(replace(notice, remaining=0.0) for notice in seen.notices)
        return replace(seen, holder_age=None, remaining=None, notices=notices)
    return replace(seen, age=0.0) if isinstance(seen, Member) else seen


def populated(harness: Harness) -> Coordinator:
    a, b = harness.connect(), harness.connect()
    term = beat(a, "a", position=Position(1)).term
    beat(b, "b")
    assert a.announce(announcement(term, "a"))
    b.notify(notice("b", "notice-b"))
    return a


OPERATIONS: dict[str, Callable[[Coordinator], object]] = {
    "heartbeat of the holder": lambda a: beat(a, "a", position=Position(1)),
    "heartbeat of a follower": lambda a: beat(a, "b"),
    "announce": lambda a: a.announce(announcement(1, "a", 2)),
    "notify": lambda a: a.notify(notice("b")),
    "resign": lambda a: a.resign("a"),
    "leave": lambda a: a.leave("b"),
    "erase": lambda a: a.erase(),
}


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_an_operation_repeated_after_a_lost_reply_changes_nothing(harness: Harness, operation: str) -> None:
    """Whatever was done once is as good as done twice, and gives the same answer."""
    a = populated(harness)
    first = OPERATIONS[operation](a)
    before = state(harness)
    assert timeless(harness, OPERATIONS[operation](a)) == timeless(harness, first)
    assert state(harness) == before


def test_an_acquiring_heartbeat_repeated_after_a_lost_reply_is_the_same_acquisition(harness: Harness) -> None:
    """The worker is not locked out by its own lease, and no term is spent."""
    a = harness.connect()
    assert timeless(harness, beat(a, "a")) == timeless(harness, beat(a, "a"))
    assert beat(a, "a").term == 1


@pytest.mark.parametrize("read", ["view", "members"])
def test_reading_changes_nothing(harness: Harness, read: str) -> None:
    """Onlookers become no members, take no lease and make no term."""
    onlooker = harness.connect()
    for _ in range(3):
        getattr(onlooker, read)()
    assert onlooker.members() == ()
    seen = onlooker.view()
    assert (seen.term, seen.holder, seen.announcement, seen.notices) == (0, None, None, ())
    a = populated(harness)
    before = state(harness)
    for _ in range(3):
        getattr(onlooker, read)()
    assert state(harness) == before
    assert beat(a, "a").term == 1


def test_reading_renews_nothing(harness: Harness) -> None:
    """A worker that only looks expires like one that is silent."""
    a = harness.connect()
    beat(a, "a")
    harness.advance(DURATION + 1)
    a.view()
    assert a.members() == ()


def test_an_erased_run_is_forgotten(harness: Harness) -> None:
    """Members, announcement, notices and terms are deleted. Only the floor sets the next term."""
    populated(harness).erase()
    other = harness.connect()
    seen = other.view()
    assert (seen.holder, seen.announcement, seen.notices, other.members()) == (None, None, (), ())
    assert replace(seen, reason="").term == 0
    assert beat(other, "c", floor=7).term == 8


def test_a_holder_learns_that_the_run_was_erased(harness: Harness) -> None:
    """It can't go on under its old term as if nothing had happened."""
    a, b = harness.connect(), harness.connect()
    old = beat(a, "a", floor=5).term
    b.erase()
    assert not a.announce(announcement(old, "a"))
    after = beat(a, "a", floor=old)
    assert after.holder is None or after.term > old
    assert beat(a, "a", floor=old).term > old


def test_erasing_nothing_is_harmless(harness: Harness) -> None:
    """The last one out may not be the only one who thinks so."""
    harness.connect().erase()
    harness.connect().erase()
