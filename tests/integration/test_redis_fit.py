"""Real fits of several processes over a real server that is killed, stopped, emptied and cut off.

The processes share the directory of the run and nothing else. Signals, kills and outages are real. Batches are held in
the middle of their language-model calls until the test lets them go on, so that each fault falls where it is meant to.
"""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.observability.events import is_event_log
from distributed_backup.position import Position
from tests.support.jobs import Job
from tests.support.processes import PATIENCE
from tests.support.proxy import Proxy
from tests.support.redis_fits import HOSTS, PASSWORD, SCENARIOS, Run, Start, Worker, calls_after, start_worker
from tests.support.servers import RedisServer, free_port, wait_for

# STEADY leases outlast any delay of a process. QUICK leases run out within 3 s.
STEADY = LeaseTimings(duration=40.0, renew_deadline=30.0, retry_period=0.4)
QUICK = LeaseTimings(duration=3.0, renew_deadline=2.0, retry_period=0.4)
# UNHURRIED leases run out within 6 s, with ticks that leave the test time to act between two of them.
UNHURRIED = LeaseTimings(duration=6.0, renew_deadline=4.0, retry_period=2.0)

# Seconds between the signal and the kill, where the server does not answer.
GRACE = 5.0

# Generous for what takes 3 s, and less than a driver's own retries would take (10 of 5 s each).
SOON = 30.0
# Said by a worker whose leader has yet to save the final state.
COMPLETE = "training is complete, waiting"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "server") as server:
        yield server


@pytest.fixture
def run(tmp_path: Path, server: RedisServer) -> Run:
    return Run(tmp_path / "run", server.url)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    numbers = itertools.count(1)
    with ExitStack() as stack:

        def start(
            run: Run,
            url: str,
            *more: Any,
            held: Sequence[tuple[int, int]] = (),
            how: str = "train",
            **arguments: Any,
        ) -> Worker:
            # Without a journal, so that each worker asks for itself.
            defaults = {"coordinator": url, "timings": STEADY, "restore_timeout": PATIENCE}
            defaults |= {"delete_checkpoint": False, "journal": False}
            job = Job(backup_dir=run.directory, arguments=defaults | arguments)
            gates = tmp_path / f"gates-{next(numbers)}"
            return start_worker(stack, gates, job, *more, how=f"{SCENARIOS}:{how}", held=held)

        yield start


def assert_ends_exactly(worker: Worker, uninterrupted: dict[str, Any]) -> None:
    """It ends in the state of the fit that nothing happened to, and has paid once for what came after its start."""
    result = worker.child.result()
    assert result["state"] == uninterrupted["state"]
    assert result["calls"] == calls_after(worker.start or Position(0), uninterrupted)


def assert_all_end_exactly(held: Sequence[Worker], uninterrupted: dict[str, Any], *others: Worker) -> None:
    """Let all go on that are held, and then see that each ends exactly. A follower ends after its leader."""
    for worker in held:
        worker.go_on()
    for worker in (*held, *others):
        assert_ends_exactly(worker, uninterrupted)


def start_held(start: Start, run: Run, url: str, count: int, **arguments: Any) -> list[Worker]:
    """Start workers that are held in the middle of an epoch. The first one leads."""
    workers = []
    for _ in range(count):
        workers.append(start(run, url, **{"held": [(1, 1)], **arguments}))
        workers[-1].wait_held(1, 1)
    assert [worker.terms for worker in workers] == [[1], *[[]] * (count - 1)]
    return workers


def wait_elected(workers: Sequence[Worker], term: int) -> Worker:
    """Wait until one of them is elected for `term`, and return it."""

    def look() -> Worker | None:
        return next((worker for worker in workers if term in worker.terms), None)

    return wait_for(look, f"one is elected for term {term}", PATIENCE)


@contextmanager
def preempted(*workers: Worker) -> Iterator[None]:
    """They get the signal, and are killed when their grace period is over, as the agent of a node does it."""

    def kill() -> None:
        for worker in workers:
            with suppress(ProcessLookupError):
                worker.child.kill(signal.SIGKILL)

    agent = threading.Timer(GRACE, kill)
    for worker in workers:
        worker.child.kill(signal.SIGTERM)
    agent.start()
    try:
        yield
    finally:
        agent.cancel()
        agent.join()


# ---------------------------------------------------------------- as over the file lock


def test_a_preempted_leader_hands_over_and_comes_back_where_it_left(
    start: Start, run: Run, server: RedisServer, uninterrupted: dict[str, Any]
) -> None:
    """Saving before preemptions only: the boundary, then the batch in flight, another leads, all end exactly."""
    leader, *others = start_held(start, run, server.url, 3, save_freq=False)
    assert run.terms == set()
    leader.child.kill(signal.SIGTERM)
    run.wait_saved(Position(1, 1))
    leader.go_on()
    position, name, _, code = leader.child.expect("preempted")
    assert (position, code) == (Position(1, 2), 143)
    assert leader.child.join() == 143
    wait_elected(others, 2)
    again = start(run, server.url, save_freq=False)
    assert again.restored == name
    again.wait_logged(COMPLETE)
    assert (run.newest, run.terms) == (Position(1, 2), {1}), "no schedule and no further notice: no further checkpoint"
    assert_all_end_exactly(others, uninterrupted, again)
    assert (run.newest, run.terms) == (Position(3), {2}), "but the final state"


def test_a_run_whose_workers_are_all_preempted_at_once_goes_on_where_it_was(
    start: Start, run: Run, server: RedisServer, uninterrupted: dict[str, Any]
) -> None:
    """The followers leave once the leader has saved. The lease was given back, so the next worker leads at once."""
    leader, *followers = start_held(start, run, server.url, 3, save_freq=False)
    for worker in (leader, *followers):
        worker.child.kill(signal.SIGTERM)
    assert [follower.child.join() for follower in followers] == [143, 143]
    assert run.newest == Position(1, 1)
    leader.go_on()
    assert leader.child.join() == 143
    assert run.newest == Position(1, 2)
    assert run.terms == {1}
    assert run.view().holder is None
    # Held, so that neither finishes before the other one starts.
    workers = [start(run, server.url, save_freq=False, held=[(2, 1)]) for _ in range(2)]
    for worker in workers:
        worker.wait_held(2, 1)
        assert worker.start == Position(1, 2)
    assert_all_end_exactly(workers, uninterrupted)


def test_a_killed_leader_is_replaced_when_its_lease_is_over(
    start: Start, run: Run, server: RedisServer, uninterrupted: dict[str, Any]
) -> None:
    """It leads no earlier, by the server's clock. What the follower trained itself counts."""
    leader, follower = start_held(start, run, server.url, 2, timings=QUICK)
    leader.child.kill(signal.SIGKILL)
    assert leader.child.join() == -signal.SIGKILL
    client, key = server.client(), f"distributed-backup:{{{run.store.read_run_id()}}}:lease"

    def lease(term: str) -> Any:
        found: Any = client.hgetall(key)
        return found if found["term"] == term else None

    ends = int(lease("1")["until"])
    assert int(wait_for(lambda: lease("2"), "another lease is granted")["heard"]) >= ends
    wait_elected([follower], 2)
    follower.go_on()
    assert_ends_exactly(follower, uninterrupted)
    assert [(info.term, info.position) for info in run.store.list()] == [(2, Position(3, 0))]


def test_a_restarted_worker_leaves_the_lead_to_replicas_that_are_epochs_ahead(
    start: Start, run: Run, server: RedisServer, uninterrupted: dict[str, Any]
) -> None:
    """The replicas are stopped while the lease runs out, so that the restarted worker is the first to see it free."""
    [leader] = start_held(start, run, server.url, 1, timings=UNHURRIED)
    replicas = [start(run, server.url, held=[(2, 1)], timings=UNHURRIED) for _ in range(2)]
    for replica in replicas:
        replica.wait_held(2, 1)
    restarted = start(run, server.url, held=[(1, 1)], timings=UNHURRIED)
    restarted.wait_held(1, 1)
    leader.child.kill(signal.SIGKILL)
    wait_for(lambda: (run.view().remaining or 0.0) < 1.0, "the lease is about to run out", PATIENCE)
    for replica in replicas:
        replica.child.kill(signal.SIGSTOP)
    run.wait_heartbeat(Position(1, 1), after=time.monotonic() + (run.view().remaining or 0.0))
    assert run.view().holder is None
    for replica in replicas:
        replica.child.kill(signal.SIGCONT)
    wait_elected(replicas, 2)
    restarted.go_on()
    restarted.wait_logged(COMPLETE)
    assert (restarted.start, restarted.terms) == (Position(1), [])
    assert_all_end_exactly(replicas, uninterrupted, restarted)


def test_a_preempted_follower_that_is_epochs_ahead_saves_its_own_boundary(
    start: Start, run: Run, server: RedisServer, uninterrupted: dict[str, Any]
) -> None:
    """The leader gives way, leads again, and commits nothing before it has passed what the follower saved."""
    [leader] = start_held(start, run, server.url, 1)
    follower = start(run, server.url, held=[(2, 1)])
    follower.wait_held(2, 1)
    follower.child.kill(signal.SIGTERM)
    run.wait_saved(Position(2, 1))
    follower.go_on()
    position, name, _, code = follower.child.expect("preempted")
    assert (position, code, follower.terms) == (Position(2, 2), 143, [2])
    wait_elected([leader], 3)
    again = start(run, server.url)
    assert again.restored == name
    again.wait_logged(COMPLETE)
    assert_all_end_exactly([leader], uninterrupted, again)
    assert [(info.term, info.position) for info in run.store.list()] == [(3, Position(3))]


def test_a_standby_spends_no_call_and_takes_over_from_a_killed_leader(
    start: Start, run: Run, server: RedisServer, uninterrupted: dict[str, Any]
) -> None:
    """It starts from the newest checkpoint. The other standby returns with the final state and has made no call."""
    options = {"standby": True, "save_freq": 1, "timings": QUICK}
    [leader] = start_held(start, run, server.url, 1, **options)
    run.wait_saved(Position(1, 1))
    standbys = [start(run, server.url, **options) for _ in range(2)]
    run.wait_members("leader", "standby", "standby")
    leader.child.kill(signal.SIGKILL)
    results = [standby.child.result() for standby in standbys]
    assert sorted(result["calls"] for result in results) == [0, calls_after(Position(1, 1), uninterrupted)]
    assert all(result["state"]["variables"] == uninterrupted["state"]["variables"] for result in results)
    assert uninterrupted["state"] in [result["state"] for result in results]


def test_a_restarted_job_never_follows_what_its_earlier_incarnation_announced(
    start: Start, run: Run, server: RedisServer, uninterrupted: dict[str, Any]
) -> None:
    """All are killed, the leader between a commit and its announcement. Lease and old announcement stay on the server.

    The checkpoint that it names still exists. All start where the new leader does, and a late worker at the newest.
    """
    options = {"save_freq": 1, "double_checkpoint": True, "timings": QUICK}
    workers = start_held(start, run, server.url, 2, held=[(1, 1), (1, 2)], **options)
    older = run.wait_announced(Position(1, 1))
    client, key = server.client(), f"distributed-backup:{{{run.store.read_run_id()}}}:announcement"
    stale: Any = client.get(key)
    workers[0].go_on()
    newer = run.wait_announced(Position(1, 2))
    for worker in workers:
        worker.child.kill(signal.SIGKILL)
    assert [worker.child.join() for worker in workers] == [-signal.SIGKILL] * 2
    client.set(key, stale)
    assert sorted(info.name for info in run.store.list()) == [older, newer]

    workers = [start(run, server.url, held=[(1, 2), (2, 1)], **options) for _ in range(2)]
    for worker in workers:
        worker.wait_held(1, 2)
    assert [worker.restored for worker in workers] == [newer, newer]
    assert sorted(worker.terms for worker in workers) == [[], [2]]
    for worker in workers:
        worker.go_on()
        worker.wait_held(2, 1)
    announced = run.wait_announced(Position(2, 1))
    late = start(run, server.url, **options)
    assert late.restored == announced
    late.wait_logged(COMPLETE)
    assert_all_end_exactly(workers, uninterrupted, late)


def test_two_jobs_on_one_server_do_not_see_each_other(
    start: Start, tmp_path: Path, server: RedisServer, uninterrupted: dict[str, Any]
) -> None:
    """Each job has its leader, its members and its notices. Both end exactly."""
    runs = [Run(tmp_path / name, server.url) for name in ("one", "other")]
    (one,), (other,) = [start_held(start, run, server.url, 1, save_freq=False) for run in runs]
    for run in runs:
        run.wait_members("leader")
    one.child.kill(signal.SIGTERM)
    runs[0].wait_saved(Position(1, 1))
    one.go_on()
    assert one.child.join() == 143
    other.go_on()
    assert_ends_exactly(other, uninterrupted)
    commits = [path.read_text().count('"committed"') for path in runs[1].directory.glob("events-*")]
    assert (commits, runs[1].newest) == ([1], Position(3)), "the notice was the other job's: only the final state"
    again = start(runs[0], server.url)
    assert_ends_exactly(again, uninterrupted)
    assert again.start == Position(1, 2)


def test_an_existing_client_and_the_environment_name_the_server_too(
    start: Start, run: Run, server: RedisServer, uninterrupted: dict[str, Any]
) -> None:
    """The two workers meet on one server."""
    workers = [
        start(run, "file:", server.url, held=[(1, 1)], how=how)
        for how in ("train_with_client", "train_with_environment")
    ]
    for worker in workers:
        worker.wait_held(1, 1)
    run.wait_members("follower", "leader")
    assert_all_end_exactly(workers, uninterrupted)


# ---------------------------------------------------------------- no server at the start


def test_workers_wait_for_a_server_that_is_not_there_yet(
    start: Start, run: Run, server: RedisServer, uninterrupted: dict[str, Any]
) -> None:
    """They log it, and go on when it appears. A worker that is preempted meanwhile leaves and has written nothing."""
    server.kill()
    patient, leaving = workers = [start(run, server.url, grace_period=GRACE) for _ in range(2)]
    for worker in workers:
        worker.wait_logged(f"WARNING .* unreachable worker=.*{server.url}")
    with preempted(leaving):
        assert leaving.child.join() == 143
    assert leaving.log("preempted .* saved=null checkpoint=null")
    assert leaving.log("leaving the process now") == [], "the wait is ended by the notice, not by the last resort"
    assert [path.name for path in run.directory.iterdir() if not is_event_log(path.name)] == ["run.json"]
    assert patient.log(" restored worker=") == []
    server.start()
    assert_ends_exactly(patient, uninterrupted)
    assert run.newest == Position(3, 0)


def test_a_server_that_never_appears_ends_the_fit_with_an_error_that_names_it(start: Start, tmp_path: Path) -> None:
    """One line, without the password."""
    place = f"127.0.0.1:{free_port()}"
    run = Run(tmp_path / "run", "")
    url = f"redis://user:{PASSWORD}@{place}/0"
    worker = start(run, url, how="train_and_tell_the_error", restore_timeout=1.0)
    name, message = worker.child.result()
    assert name == "RestoreTimeoutError"
    assert f"redis://{place}/0" in message
    assert "\n" not in message
    assert PASSWORD not in message + worker.child.output()
    assert run.store.list() == []


def test_a_wrong_password_ends_the_fit_at_once(start: Start, tmp_path: Path) -> None:
    """Waiting would not help."""
    with RedisServer(tmp_path / "server", port=0, config={"requirepass": "another"}) as server:
        run = Run(tmp_path / "run", server.url)
        url = server.url.replace("another", PASSWORD)
        worker = start(run, url, how="train_and_tell_the_error")
        name, message = worker.child.result()
    assert name == "ConfigError"
    assert message.startswith(f"redis://127.0.0.1:{server.port}/0 refused the user name or password")
    assert "\n" not in message
    assert PASSWORD not in message + worker.child.output()
    assert run.store.list() == []


# ---------------------------------------------------------------- the server goes in the middle


@pytest.mark.parametrize("fault", ["killed", "stopped", "cut off"])
def test_a_save_before_a_preemption_needs_no_server(
    fault: str, start: Start, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    """The last holder commits its last boundary. All workers exit before the kill would come.

    Where the server is stopped, the lease still counts when the signal comes. In the other cases it is lost by then.
    """
    with RedisServer(tmp_path / "server", port=0) as server, Proxy(server.address) as proxy:
        run = Run(tmp_path / "run", server.url)
        workers = start_held(start, run, proxy.url(), 2, save_freq=False, grace_period=GRACE, timings=QUICK)
        {"killed": server.kill, "stopped": server.pause, "cut off": proxy.black_hole}[fault]()
        if fault != "stopped":
            workers[0].wait_logged(" lost worker=", SOON)
        assert run.newest is None
        with preempted(*workers):
            assert [worker.child.join() for worker in workers] == [143, 143]
        assert [(info.term, info.position) for info in run.store.list()] == [(1, Position(1, 1))]
        {"killed": server.start, "stopped": server.resume, "cut off": proxy.heal}[fault]()
        again = start(run, proxy.url())
        assert_ends_exactly(again, uninterrupted)
        assert again.start == Position(1, 1)


def test_training_goes_on_without_the_server_and_saving_when_it_is_back(
    start: Start, run: Run, server: RedisServer, uninterrupted: dict[str, Any]
) -> None:
    """No scheduled commit is made without a leader. The server comes back empty, and no call is repeated."""
    workers = start_held(start, run, server.url, 2, held=[(1, 1), (2, 1)], save_freq=1, timings=QUICK)
    run.wait_saved(Position(1, 1))
    server.kill()
    workers[0].wait_logged(" lost worker=", SOON)
    for worker in workers:
        worker.go_on()
        worker.wait_held(2, 1)
    assert run.newest == Position(1, 1)
    server.start()
    wait_elected(workers, 2)
    run.wait_saved(Position(2, 1))
    assert_all_end_exactly(workers, uninterrupted)
    assert run.terms == {2}
    between = (
        workers[0].child.output().split(" lost worker=")[1].split(" elected worker=")[0].split(" reachable worker=")[0]
    )
    assert " committed " not in between


def test_an_emptied_server_costs_an_election_and_nothing_else(
    start: Start, run: Run, server: RedisServer, uninterrupted: dict[str, Any]
) -> None:
    """The term grows, the announcement is made again, a worker that comes late joins, all end exactly."""
    workers = start_held(start, run, server.url, 2, save_freq=1)
    announced = run.wait_announced(Position(1, 1))
    server.ask("FLUSHALL")
    wait_elected(workers, 2)
    assert run.wait_announced(Position(1, 1)) == announced
    late = start(run, server.url, save_freq=1)
    assert late.restored == announced
    late.wait_logged(COMPLETE)
    assert_all_end_exactly(workers, uninterrupted, late)
    assert run.terms == {2}


# ---------------------------------------------------------------- a host is cut off


@pytest.mark.parametrize("hosts", HOSTS)
def test_a_leader_whose_host_is_cut_off_stands_down_and_another_leads(
    hosts: str, start: Start, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    """It trains on and commits nothing. The other's commits count. Back in the network it follows, and ends exactly."""
    config = {"bind": "0.0.0.0", "protected-mode": "no"} if hosts == "namespaces" else {}
    with RedisServer(tmp_path / "server", port=0, config=config) as server, ExitStack() as stack:
        run = Run(tmp_path / "run", server.url)
        network = HOSTS[hosts](server, start, run, stack)
        options = {"held": [(1, 1), (2, 1)], "save_freq": 1, "timings": QUICK}
        workers = []
        for _ in range(2):
            workers.append(network.start(**options))
            workers[-1].wait_held(1, 1)
        cut_off, other = workers
        assert (cut_off.terms, other.terms) == ([1], [])
        run.wait_saved(Position(1, 1))
        network.cut(cut_off)
        wait_elected([other], 2)
        cut_off.wait_logged(" lost worker=", SOON)
        cut_off.go_on()
        cut_off.wait_held(2, 1)
        assert run.newest == Position(1, 1)
        other.go_on()
        other.wait_held(2, 1)
        run.wait_saved(Position(2, 1))
        assert run.terms == {2}
        network.heal(cut_off)
        cut_off.wait_logged(" reachable worker=")
        cut_off.go_on()
        cut_off.wait_logged(COMPLETE)
        assert (cut_off.terms, other.terms) == ([1], [2])
        assert_all_end_exactly([other], uninterrupted, cut_off)
        assert run.terms == {2}
        assert " committed " not in cut_off.child.output().split(" lost worker=")[1]
