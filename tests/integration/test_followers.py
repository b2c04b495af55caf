"""Test real fits of several workers with a journal, as users run them: killed, preempted, cut off, started again.

Batches are held in the middle of their language-model calls until the test lets them go on. A follower asks for
nothing, so only the leader is held. Every answer is paid for once, by whichever worker leads.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.coordination.base import Member
from distributed_backup.coordination.file import FileCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.position import Position
from tests.support.jobs import Job
from tests.support.processes import PATIENCE
from tests.support.redis_fits import SCENARIOS, ProxiedHosts, Run, Worker, calls_after, start_worker
from tests.support.servers import RedisServer, wait_for

OWN_SCENARIOS = "tests.integration.follower_scenarios"
QUICK = LeaseTimings(duration=3.0, renew_deadline=2.0, retry_period=0.3)
HELD = Position(1, 1)
"""The last boundary before the batch that most tests hold."""

type Start = Callable[..., Worker]


class Cluster(Run):
    """The workers of one run, elected over a file lock or over Redis."""

    def __init__(self, directory: Path, url: str) -> None:
        super().__init__(directory, url)
        self.url = url

    def members(self) -> tuple[Member, ...]:
        if self.url == "file:":
            return FileCoordinator(self.directory / "coordinator").members()
        with self.coordinator() as coordinator:
            return coordinator.members()

    def wait_followers(self, position: Position, count: int = 1) -> None:
        """Wait until `count` followers have come to `position`."""

        def have_come() -> bool:
            return [member.position for member in self.members() if member.role == "follower"].count(position) == count

        wait_for(have_come, f"{count} followers at {position}", PATIENCE)


@pytest.fixture(params=["file", "redis"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    if request.param == "file":
        yield Cluster(tmp_path / "run", "file:")
        return
    with RedisServer(tmp_path / "server") as server:
        yield Cluster(tmp_path / "run", server.url)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    numbers = itertools.count(1)
    with ExitStack() as stack:

        def start(
            run: Run,
            url: str,
            *,
            held: Sequence[tuple[int, int]] = (),
            how: str = f"{SCENARIOS}:train",
            steps_per_execution: int = 1,
            **arguments: Any,
        ) -> Worker:
            defaults = {"coordinator": url, "timings": QUICK, "delete_checkpoint": False}
            job = Job(backup_dir=run.directory, steps_per_execution=steps_per_execution, arguments=defaults | arguments)
            return start_worker(stack, tmp_path / f"gates-{next(numbers)}", job, how=how, held=held)

        yield start


def start_held(start: Start, run: Cluster, followers: int = 1, **options: Any) -> list[Worker]:
    """Start a leader that is held after `HELD`, and followers, which come as far as its answers lead them."""
    leader = start(run, run.url, held=[(1, 1)], **options)
    leader.wait_held(1, 1)
    others = [start(run, run.url, **options) for _ in range(followers)]
    run.wait_followers(HELD, followers)
    return [leader, *others]


def kill(worker: Worker) -> None:
    worker.child.kill(signal.SIGKILL)
    assert worker.child.join() == -signal.SIGKILL


def assert_ends(worker: Worker, uninterrupted: dict[str, Any], *, calls: int) -> None:
    """The worker ends in the state of the fit that nothing happened to, and has made so many calls."""
    result = worker.child.result()
    assert result["state"] == uninterrupted["state"]
    assert result["calls"] == calls


# ---------------------------------------------------------------- several workers


def test_a_follower_goes_on_from_memory_when_the_leader_is_killed(
    start: Start, run: Cluster, uninterrupted: dict[str, Any]
) -> None:
    """It starts from no checkpoint, and asks for what the leader had not been answered."""
    leader, first, second = start_held(start, run, followers=2)
    kill(leader)
    results = [worker.child.result() for worker in (first, second)]
    assert [result["state"] for result in results] == [uninterrupted["state"]] * 2
    assert sorted(result["calls"] for result in results) == [0, calls_after(HELD, uninterrupted)]
    assert min(first.terms + second.terms) == 2
    assert run.newest == Position(3)


def test_a_notice_to_a_follower_is_saved_by_the_leader(
    start: Start, run: Cluster, uninterrupted: dict[str, Any]
) -> None:
    """Only the follower leaves. It has paid for nothing, and the leader has paid for all."""
    leader, follower = start_held(start, run, save_freq="epoch")
    follower.child.kill(signal.SIGTERM)
    position, name, _, code = follower.child.expect("preempted")
    assert (position, code, follower.terms) == (HELD, 143, [])
    assert name in {info.name for info in run.store.list()}
    assert follower.child.join() == 143
    leader.go_on()
    assert_ends(leader, uninterrupted, calls=uninterrupted["calls"])


def test_a_preempted_leader_hands_over_with_all_its_answers(
    start: Start, run: Cluster, uninterrupted: dict[str, Any]
) -> None:
    """The batch in flight ends in the grace period. The follower replays its answers and asks for the rest."""
    leader, follower = start_held(start, run)
    leader.child.kill(signal.SIGTERM)
    run.wait_saved(HELD)
    leader.go_on()
    position, _, _, code = leader.child.expect("preempted")
    assert (position, code) == (Position(1, 2), 143)
    assert_ends(follower, uninterrupted, calls=calls_after(position, uninterrupted))
    assert follower.terms == [2]


def test_a_leader_whose_batch_is_cut_off_hands_over(start: Start, run: Cluster, uninterrupted: dict[str, Any]) -> None:
    """No call of the batch in flight was answered. The follower asks for all of it."""
    leader, follower = start_held(start, run, grace_period=2.0)
    leader.child.kill(signal.SIGTERM)
    position, _, _, code = leader.child.expect("preempted")
    assert (position, code) == (HELD, 143)
    assert_ends(follower, uninterrupted, calls=calls_after(HELD, uninterrupted))


def test_workers_that_are_all_preempted_go_on_where_they_were(
    start: Start, run: Cluster, uninterrupted: dict[str, Any]
) -> None:
    """The leader saves for all. After the restart, one worker asks for the rest, and the other for nothing."""
    workers = start_held(start, run)
    for worker in workers:
        worker.child.kill(signal.SIGTERM)
    run.wait_saved(HELD)
    workers[0].go_on()
    assert [worker.child.join() for worker in workers] == [143, 143]
    saved = run.newest
    assert saved in {HELD, Position(1, 2)}
    again = [start(run, run.url) for _ in range(2)]
    results = [worker.child.result() for worker in again]
    # The other one may join when the first has committed again.
    assert saved in [worker.start for worker in again]
    assert [result["state"] for result in results] == [uninterrupted["state"]] * 2
    assert sorted(result["calls"] for result in results) == [0, calls_after(saved, uninterrupted)]


def test_a_hint_of_the_leader_spares_a_follower_its_poll(
    start: Start, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    """The follower would look again after an hour, or when it leads. So it must come further while the leader lives."""
    with RedisServer(tmp_path / "server") as server:
        run = Cluster(tmp_path / "run", server.url)
        leader = start(run, run.url, held=[(1, 1), (2, 1)])
        leader.wait_held(1, 1)
        follower = start(run, run.url, how=f"{OWN_SCENARIOS}:train_without_polls")
        run.wait_followers(HELD)
        leader.go_on()
        leader.wait_held(2, 1)
        run.wait_followers(Position(2, 1))
        leader.go_on()
        assert_ends(follower, uninterrupted, calls=0)
        assert_ends(leader, uninterrupted, calls=uninterrupted["calls"])


def test_a_worker_that_starts_late_joins_and_asks_for_nothing(
    start: Start, run: Cluster, uninterrupted: dict[str, Any]
) -> None:
    """It starts from the newest checkpoint, and takes the answers since then from the journal."""
    leader = start(run, run.url, held=[(2, 1)])
    leader.wait_held(2, 1)
    late = start(run, run.url)
    run.wait_followers(Position(2, 1))
    assert late.start == Position(2)
    leader.go_on()
    assert_ends(late, uninterrupted, calls=0)
    assert_ends(leader, uninterrupted, calls=uninterrupted["calls"])


def test_a_standby_takes_over_by_replay(start: Start, run: Cluster, uninterrupted: dict[str, Any]) -> None:
    """It starts from the newest checkpoint and pays for nothing that the killed leader had been answered."""
    leader = start(run, run.url, held=[(1, 1)], standby=True)
    leader.wait_held(1, 1)
    standby = start(run, run.url, standby=True)
    wait_for(lambda: "standby" in {member.role for member in run.members()}, "the standby waits", PATIENCE)
    kill(leader)
    assert_ends(standby, uninterrupted, calls=calls_after(HELD, uninterrupted))
    assert (standby.start, standby.terms) == (Position(1), [2])


def test_a_leader_that_is_cut_off_follows_when_it_is_back(
    start: Start, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    """The other worker leads meanwhile. Both were asked for the batch in flight, and for nothing else twice."""
    with RedisServer(tmp_path / "server", port=0) as server, ExitStack() as stack:
        run = Cluster(tmp_path / "run", server.url)
        hosts = ProxiedHosts(server, start, run, stack)
        cut_off = hosts.start(held=[(1, 1)])
        cut_off.wait_held(1, 1)
        other = hosts.start(held=[(1, 1)])
        run.wait_followers(HELD)
        hosts.cut(cut_off)
        other.wait_held(1, 1)
        assert other.terms == [2]
        cut_off.wait_logged(" lost worker=")
        hosts.heal(cut_off)
        cut_off.wait_logged(" reachable worker=")
        run.wait_followers(HELD)
        for worker in (other, cut_off):
            worker.go_on()
        paid = calls_after(HELD, uninterrupted)
        assert_ends(other, uninterrupted, calls=paid)
        result = cut_off.child.result()
        assert result["state"] == uninterrupted["state"]
        in_flight = 2
        assert uninterrupted["calls"] - paid <= result["calls"] <= uninterrupted["calls"] - paid + in_flight
        assert run.terms == {2}


# ---------------------------------------------------------------- one worker


@pytest.fixture
def alone(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path / "run", "file:")


def test_a_fit_with_steps_of_several_batches_asks_for_nothing_twice(start: Start, alone: Cluster) -> None:
    """It is killed between two steps, and ends as the fit that nothing happened to."""
    options = {"steps_per_execution": 2}
    whole = start(Cluster(alone.directory.with_name("whole"), "file:"), "file:", **options).child.result()
    killed = start(alone, alone.url, held=[(1, 2)], **options)
    killed.wait_held(1, 2)
    kill(killed)
    again = start(alone, alone.url, **options)
    result = again.child.result()
    assert again.start == Position(1)
    assert result["state"] == whole["state"]
    before = 9 + 4  # an epoch, and the first step of the next one
    assert result["calls"] == whole["calls"] - before


def test_fits_in_a_loop_are_resumed_each_by_its_own_journal(
    start: Start, alone: Cluster, uninterrupted: dict[str, Any]
) -> None:
    """The process is killed in its second fit. Started again, it pays for nothing in the first."""
    how = f"{OWN_SCENARIOS}:train_in_a_loop"
    killed = start(alone, alone.url, held=[(1, 1)], how=how)
    killed.wait_held(1, 1)
    kill(killed)
    first, second = start(alone, alone.url, how=how).child.result()
    assert (first["calls"], second["calls"]) == (0, calls_after(HELD, uninterrupted))
    assert first["state"]["variables"] == second["state"]["variables"] == uninterrupted["state"]["variables"]


def test_a_process_that_forks_during_a_fit_keeps_its_journal(
    start: Start, alone: Cluster, uninterrupted: dict[str, Any]
) -> None:
    """A child that ends writes nothing and releases nothing. The parent is killed, and resumes exactly."""
    how = f"{OWN_SCENARIOS}:train_and_fork"
    killed = start(alone, alone.url, held=[(1, 1)], how=how)
    assert killed.child.expect("forked") == (7, 0)
    killed.wait_held(1, 1)
    assert CheckpointStore(alone.directory).newest_header() == alone.store.newest_header()
    assert alone.newest == Position(1)
    assert [member.role for member in alone.members()] == ["leader"]
    kill(killed)
    again = start(alone, alone.url)
    assert_ends(again, uninterrupted, calls=calls_after(HELD, uninterrupted))
