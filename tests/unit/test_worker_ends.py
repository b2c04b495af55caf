"""How a worker ends its part in a run: after a complete fit, and after one that an error has left."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace

import pytest

from distributed_backup.checkpoints.format import CheckpointHeader, Snapshot, checkpoint_name
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.errors import StoreError
from distributed_backup.position import Position
from distributed_backup.preemption.exit import Preempted
from tests.support.internals import context_of, elector_of
from tests.support.team import FaultyStore, Gone, Team, snapshot, soon


@pytest.mark.parametrize("gone", [True, False])
def test_a_fit_that_fails_saves_its_last_boundary_without_the_coordinator_too(team: Team, gone: bool) -> None:
    """The leader of a fit that an error leaves commits under its last term, with and without the coordinator."""
    coordinator = team.coordinator = Gone(team.clock)
    coordinator.gone = False
    worker = team.started("a")
    worker.boundary(snapshot(0, 3), due=False)
    coordinator.gone = gone
    team.until(lambda: elector_of(worker).is_leader is not gone)
    team.result(team.begin(lambda: worker.close(timeout=30.0, save_last=True)))
    assert team.positions() == [Position(0, 3)]


def test_a_follower_that_fails_leaves_the_saving_to_the_leader(team: Team) -> None:
    """A follower may not commit, so it leaves without a wait."""
    leader, follower = team.started("a"), team.started("b")
    leader.boundary(snapshot(0, 1), due=False)
    follower.boundary(snapshot(0, 3), due=False)
    team.result(team.begin(lambda: follower.close(timeout=30.0, save_last=True)), limit=1.0)
    assert team.positions() == []
    assert elector_of(leader).is_leader


@pytest.mark.parametrize("gone", [True, False])
def test_the_final_state_is_saved_without_the_coordinator_too(team: Team, gone: bool) -> None:
    """The last leader commits the final state under its last term, with and without the coordinator."""
    coordinator = team.coordinator = Gone(team.clock)
    coordinator.gone = False
    worker = team.started("a", delete_checkpoint=False)
    coordinator.gone = gone
    if gone:
        team.until(lambda: not elector_of(worker).is_leader)
    worker.boundary(snapshot(4), due=True)
    team.result(team.begin(worker.finish))
    assert team.positions() == [Position(4)]


def test_the_final_state_of_the_fit_is_what_the_last_worker_commits(team: Team) -> None:
    """It follows the last boundary, and a worker that joins then restores it."""
    worker = team.started("a", delete_checkpoint=False)
    worker.boundary(snapshot(4), due=True)
    final = replace(snapshot(4), body=b'{"epoch":4,"final":1}', final=True)
    team.result(team.begin(lambda: worker.finish(final)))
    start = team.result(team.begin(team.worker("b", delete_checkpoint=False).await_start))
    assert start.checkpoint is not None
    assert (start.checkpoint.body, start.checkpoint.header.final) == (final.body, True)


class SmallStore(FaultyStore):
    """Has no room for a final state."""

    def commit(self, snapshot: Snapshot, *, term: int, worker_id: str) -> CheckpointHeader:
        if snapshot.final:
            raise StoreError(f"can't write {self.location}: No space left on device", path=self.location)
        return super().commit(snapshot, term=term, worker_id=worker_id)


def test_the_last_boundary_is_committed_where_the_storage_refuses_the_final_state(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The final state is twice as large. The boundary was due, and its commit had failed or had not begun."""
    monkeypatch.setattr("distributed_backup.worker.shutdown._FINISH_LIMIT", 5.0)
    store = SmallStore(team.root)
    worker = team.started("a", store=store, delete_checkpoint=False)
    store.broken = True
    worker.boundary(snapshot(4), due=True)
    soon(lambda: worker._commits_fail)
    store.broken = False
    team.result(team.begin(lambda: worker.finish(replace(snapshot(4), final=True))))
    assert team.positions() == [Position(4)]


def test_a_final_state_that_can_not_be_saved_is_an_error_if_asked_for(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `on_save_error="raise"`, a final state that no leader could commit is an error."""
    monkeypatch.setattr("distributed_backup.worker.shutdown._FINISH_LIMIT", 5.0)
    worker = team.started("a", on_save_error="raise", delete_checkpoint=False)
    team.coordinator.resign("a")
    monkeypatch.setattr(elector_of(worker), "_retry_claim_at", 1e9)
    team.until(lambda: not elector_of(worker).is_leader)
    worker.boundary(snapshot(4), due=True)
    with pytest.raises(StoreError, match=r"the final state could not be saved in .* within 5 s. Make room"):
        team.result(team.begin(worker.finish))


def store_names(team: Team) -> list[str]:
    return CheckpointStore(team.root).names()


def final(epoch: int) -> Snapshot:
    return replace(snapshot(epoch), final=True)


def test_no_worker_finishes_before_the_final_state_is_durable(team: Team) -> None:
    """A job may end with its first worker that succeeds, and then kills the others, the leader among them."""
    leader, follower = (team.started(name, delete_checkpoint=False) for name in "ab")
    follower.boundary(snapshot(4), due=True)
    finished = team.begin(lambda: follower.finish(final(4)))
    team.until(lambda: context_of(follower).state.phase == "finishing")
    # The leader commits the last boundary, which is not yet the final state.
    leader.boundary(snapshot(4), due=True)
    team.until(lambda: team.announcement.position == Position(4))
    team.steps(60.0)
    assert not finished.done()
    team.result(team.begin(lambda: leader.finish(final(4))))
    team.result(finished)
    assert store_names(team)[0] == checkpoint_name(1, Position(4), final=True)


def test_a_finished_follower_commits_the_final_state_if_its_leader_dies(team: Team) -> None:
    """The time for its commits, in which it tries again, begins then."""
    store = FaultyStore(team.root, keep=10)
    leader = team.started("a", delete_checkpoint=False)
    follower = team.started("b", store=store, delete_checkpoint=False)
    follower.boundary(snapshot(4), due=True)
    finished = team.begin(lambda: follower.finish(final(4)))
    team.steps(60.0)
    store.broken = True
    elector_of(leader).stop()
    team.coordinator.resign("a")
    team.until(lambda: follower._commits_fail)
    store.broken = False
    team.result(finished)
    assert store_names(team) == [checkpoint_name(2, Position(4), final=True)]


def test_a_finished_follower_that_waits_is_preempted_like_one_that_trains(team: Team) -> None:
    """The leader commits its own boundary for the notice, and this worker leaves."""
    leader, follower = (team.started(name, delete_checkpoint=False) for name in "ab")
    follower.boundary(snapshot(4), due=True)
    finished = team.begin(lambda: follower.finish(final(4)))
    team.steps(10.0)
    leader.boundary(snapshot(4), due=False)
    follower.give_notice("SIGTERM")
    with pytest.raises(Preempted):
        team.result(finished)
    assert team.positions() == [Position(4)]


def test_an_older_final_state_does_not_count(team: Team) -> None:
    """The fit of an earlier start had two epochs, this one has four."""
    CheckpointStore(team.root, keep=10).commit(final(2), term=1, worker_id="earlier")
    team.started("a", delete_checkpoint=False)
    follower = team.started("b", delete_checkpoint=False)
    follower.boundary(snapshot(4), due=True)
    finished = team.begin(lambda: follower.finish(final(4)))
    team.steps(60.0)
    assert not finished.done()


def test_a_leader_that_was_cut_off_leaves_the_final_state_to_its_successor(team: Team) -> None:
    """It does not know of the successor, but its commit was refused. It would finish without a final state."""
    cut_off = Gone(team.clock)
    cut_off.gone = False
    first = team.started("a", coordinator=cut_off, delete_checkpoint=False)
    cut_off.gone = True
    second = team.started("b", delete_checkpoint=False)
    second.boundary(snapshot(3), due=True)
    team.until(lambda: team.positions() == [Position(3)])
    first.boundary(snapshot(4), due=True)
    finished = team.begin(lambda: first.finish(final(4)))
    team.steps(60.0)
    assert not finished.done()
    second.boundary(snapshot(4), due=True)
    team.result(team.begin(lambda: second.finish(final(4))))
    team.result(finished)
    assert store_names(team)[0] == checkpoint_name(2, Position(4), final=True)


def test_a_finished_follower_finds_the_final_state_without_the_coordinator(team: Team) -> None:
    """Its leader has committed under the last term, and can't announce it."""
    coordinator = team.coordinator = Gone(team.clock)
    coordinator.gone = False
    leader, follower = (team.started(name, delete_checkpoint=False) for name in "ab")
    coordinator.gone = True
    team.until(lambda: not elector_of(leader).is_leader)
    for worker in (leader, follower):
        worker.boundary(snapshot(4), due=True)
    finished = team.begin(lambda: follower.finish(final(4)))
    team.steps(60.0)
    assert not finished.done()
    team.result(team.begin(lambda: leader.finish(final(4))))
    team.result(finished)


def test_a_finished_follower_that_can_not_lead_tries_until_a_limit(
    team: Team, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk takes no term either, so no worker will ever commit the final state."""
    monkeypatch.setattr("distributed_backup.worker.shutdown._FINISH_LIMIT", 5.0)
    store = FaultyStore(team.root, keep=10)
    leader = team.started("a", delete_checkpoint=False)
    follower = team.started("b", store=store, delete_checkpoint=False)
    monkeypatch.setattr(store.terms, "claim_term", full)
    follower.boundary(snapshot(4), due=True)
    finished = team.begin(lambda: follower.finish(final(4)))
    elector_of(leader).stop()
    team.coordinator.resign("a")
    team.result(finished)
    assert "the final state could not be saved" in caplog.text


def full(_: int) -> bool:
    raise StoreError("No space left on device", path="")


def test_ctrl_c_ends_the_wait_of_a_finished_follower(team: Team) -> None:
    """The first Ctrl-C cancels the task, which the wait would not see: it blocks the event loop."""

    async def fit() -> None:
        follower = team.started("b", delete_checkpoint=False)
        follower.boundary(snapshot(4), due=True)
        signal.raise_signal(signal.SIGINT)
        follower.finish(final(4))

    team.started("a", delete_checkpoint=False)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(fit())
