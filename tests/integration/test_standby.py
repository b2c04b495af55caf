"""Real fits with `standby=True` whose leader loses its lease: one training is paid for, and all end in one state.

Batches are held in the middle of their language-model calls until the test lets them go on. A call counts as paid for
once it goes on.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from distributed_backup.checkpoints.format import Snapshot
from distributed_backup.checkpoints.state_body import decode_state, encode_state
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.cli.operator_requests import ask_to_resign
from distributed_backup.clock import SystemClock
from distributed_backup.coordination.base import Announcement, Heartbeat, Notice
from distributed_backup.coordination.file import FileCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.position import Position
from tests.support.jobs import Job
from tests.support.processes import PATIENCE, Child
from tests.support.redis_fits import SCENARIOS, TRAIN_END, Run, Worker
from tests.support.servers import RedisServer, wait_for

type Start = Callable[..., Worker]

QUICK = LeaseTimings(duration=3.0, renew_deadline=2.0, retry_period=0.4)
STOPS = "so this one stops training and waits as a standby"


@pytest.fixture
def backup_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def start(tmp_path: Path, backup_dir: Path) -> Iterator[Start]:
    numbers = itertools.count(1)
    with ExitStack() as stack:

        def start(
            held: Sequence[tuple[int, int]] = (), *, slow: tuple[Any, ...] = (), epochs: int = 3, **arguments: Any
        ) -> Worker:
            gates = tmp_path / f"gates-{next(numbers)}"
            gates.mkdir()
            defaults = {"standby": True, "save_freq": 1, "delete_checkpoint": False, "coordinator": "file:"}
            job = Job(backup_dir=backup_dir, slow=slow, epochs=epochs, arguments=defaults | arguments)
            child = Child(f"{SCENARIOS}:train", job, gates, held, log=gates.with_suffix(".log"))
            return Worker(stack.enter_context(child), gates)

        yield start


def hand_over(
    start: Start, backup_dir: Path, held: Sequence[tuple[int, int]], *, at: tuple[int, int] = (1, 1), **arguments: Any
) -> list[Worker]:
    """Return a leader that was asked to resign in batch `at`, and its successor, which began there."""
    leader = start(held=[at], **arguments)
    leader.wait_held(*at)
    successor = start_successor(start, backup_dir, leader, held, **arguments)
    assert successor.start == Position(*at)
    return [leader, successor]


def start_successor(
    start: Start, backup_dir: Path, leader: Worker, held: Sequence[tuple[int, int]], **arguments: Any
) -> Worker:
    """Start another worker, and ask the leader to resign."""
    successor = start(held=held, **arguments)
    coordinator = FileCoordinator(backup_dir / "coordinator")
    wait_for(lambda: len(coordinator.members()) == 2, "two members", PATIENCE)
    ask_to_resign(coordinator, timeout=PATIENCE, clock=SystemClock())
    leader.wait_logged(STOPS)
    return successor


def newest_position(backup_dir: Path) -> Position | None:
    header = CheckpointStore(backup_dir).newest_header()
    return None if header is None else header.position


def hooks_after(worker: Worker, *hook: Any) -> list[str]:
    """Return the hooks of other callbacks that were called after this one."""
    hooks = [(name, value) for name, value in worker.child.seen if name not in {"held", "slow_call", "result"}]
    return [name for name, _ in hooks[hooks.index((hook[0], hook[1:])) + 1 :]]


@pytest.mark.parametrize(
    ("at", "held", "options"),
    [
        ((1, 1), (2, 1), {}),
        ((1, 1), (2, 1), {"delete_checkpoint": True}),
        ((1, 1), (2, 1), {"save_freq": False}),
        # The last batch of the fit.
        ((2, 2), (2, 2), {}),
    ],
)
def test_a_leader_that_resigns_stops_asking_and_returns_with_the_final_state(
    start: Start,
    backup_dir: Path,
    uninterrupted: dict[str, Any],
    at: tuple[int, int],
    held: tuple[int, int],
    options: dict[str, Any],
) -> None:
    """Both pay for one training together. Other callbacks of the former leader see the end and nothing else."""
    leader, successor = hand_over(start, backup_dir, [held], at=at, **options)
    successor.wait_held(*held)
    successor.go_on()
    results = [worker.child.result() for worker in (leader, successor)]
    assert results[1]["state"] == uninterrupted["state"]
    assert results[0]["state"]["variables"] == uninterrupted["state"]["variables"]
    assert sum(result["calls"] for result in results) == uninterrupted["calls"]
    assert hooks_after(leader, "batch_begin", *at) == ["train_end"]
    assert len(leader.log(STOPS)) == 1
    assert backup_dir.exists() is not options.get("delete_checkpoint", False)


def test_a_leader_that_resigns_in_a_validation_returns_with_the_final_state(
    start: Start, backup_dir: Path, uninterrupted: dict[str, Any]
) -> None:
    """The rest of the validation has no effect either."""
    hook = ("test_batch_begin", 1, 1)
    leader = start(slow=hook)
    leader.child.expect("slow_call")
    successor = start_successor(start, backup_dir, leader, [(2, 1)])
    successor.wait_held(2, 1)
    successor.go_on()
    results = [worker.child.result() for worker in (leader, successor)]
    assert results[1]["state"] == uninterrupted["state"]
    assert results[0]["state"]["variables"] == uninterrupted["state"]["variables"]
    assert hooks_after(leader, *hook) == ["train_end"]


@pytest.mark.parametrize("has_trained", [False, True])
def test_ctrl_c_ends_a_standby_that_waits(start: Start, backup_dir: Path, *, has_trained: bool) -> None:
    """The wait blocks the event loop, which would cancel the fit only after it. The leader trains on."""
    former, leader = hand_over(start, backup_dir, [(2, 1)])
    leader.wait_held(2, 1)
    standby = former if has_trained else start()
    if not has_trained:
        standby.wait_logged("joined")
    standby.child.kill(signal.SIGINT)
    assert standby.child.join() == 1
    assert "KeyboardInterrupt" in standby.child.output()
    leader.go_on()
    assert leader.child.result()["state"]


def test_a_leader_that_leads_again_goes_on_where_it_stopped(
    start: Start, backup_dir: Path, uninterrupted: dict[str, Any]
) -> None:
    """Its successor is killed before its first boundary. The batch that was cancelled is repeated, and no other."""
    leader, successor = hand_over(start, backup_dir, [(1, 1)])
    successor.wait_held(1, 1)
    leader.go_on()
    successor.child.kill(signal.SIGKILL)
    leader.wait_logged("leading again, training continues")
    wait_for(lambda: list(leader.gates.iterdir()), "the batch is repeated", PATIENCE)
    leader.go_on()
    result = leader.child.result()
    assert result["state"] == uninterrupted["state"]
    assert result["calls"] == uninterrupted["calls"]
    batches = [value for name, value in leader.child.seen if name == "batch_end"]
    assert batches == [(epoch, batch) for epoch in range(3) for batch in range(3)]


def test_a_leader_that_leads_again_behind_the_newest_checkpoint_exits_to_be_started_again(
    start: Start, backup_dir: Path, uninterrupted: dict[str, Any]
) -> None:
    """Its successor had come to epoch 2. The worker that is started again continues there, so nothing is paid twice."""
    leader, successor = hand_over(start, backup_dir, [(2, 1)])
    successor.wait_held(2, 1)
    wait_for(lambda: newest_position(backup_dir) == Position(2, 1), "(2, 1) is saved", PATIENCE)
    successor.child.kill(signal.SIGKILL)
    position, name, _, code = leader.child.expect("preempted")
    assert (position, code, leader.child.join()) == (Position(2, 1), 143, 143)
    assert CheckpointStore(backup_dir).names()[0] == name
    leader.wait_logged("but another worker has come further: exiting with code 143")
    again = start()
    result = again.child.result()
    assert again.start == Position(2, 1)
    assert result["state"] == uninterrupted["state"]


def test_a_signal_ends_the_wait_of_a_former_leader(start: Start, backup_dir: Path) -> None:
    """It exits at once, and its successor continues to lead."""
    leader, successor = hand_over(start, backup_dir, [(1, 1)], grace_period=5.0)
    successor.wait_held(1, 1)
    leader.child.kill(signal.SIGTERM)
    position, _, seconds, code = leader.child.expect("preempted")
    assert (position, code, leader.child.join()) == (Position(1, 1), 143, 143)
    assert seconds < 2.0
    assert successor.terms == [2]
    successor.child.kill(signal.SIGTERM)
    assert successor.child.join() == 143


def test_a_leader_that_was_stopped_past_its_lease_waits_when_it_wakes(
    start: Start, backup_dir: Path, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    """A lease on Redis expires while its holder is stopped."""
    with RedisServer(tmp_path / "server") as server:
        options = {"coordinator": server.url, "timings": QUICK}
        leader = start(held=[(1, 1)], **options)
        leader.wait_held(1, 1)
        run = Run(backup_dir, server.url)
        run.wait_saved(Position(1, 1))
        successor = start(held=[(2, 1)], **options)
        run.wait_members("leader", "standby")
        leader.child.kill(signal.SIGSTOP)
        successor.wait_held(2, 1)
        leader.child.kill(signal.SIGCONT)
        leader.wait_logged(STOPS)
        successor.go_on()
        results = [worker.child.result() for worker in (leader, successor)]
    assert results[0]["state"]["variables"] == results[1]["state"]["variables"]
    assert results[1]["state"] == uninterrupted["state"]
    assert sum(result["calls"] for result in results) == uninterrupted["calls"]
    assert hooks_after(leader, "batch_begin", 1, 1) == ["train_end"]


def test_a_leader_that_is_succeeded_while_its_fit_ends_returns_with_the_final_state_of_the_run(
    start: Start, backup_dir: Path, tmp_path: Path
) -> None:
    """Nothing was saved, so its successor has trained anew, and only 2 epochs."""
    with RedisServer(tmp_path / "server") as server:
        options = {"coordinator": server.url, "timings": QUICK, "save_freq": False}
        leader = start(held=[TRAIN_END], **options)
        leader.wait_held(*TRAIN_END)
        successor = start(held=[(1, 1)], epochs=2, **options)
        Run(backup_dir, server.url).wait_members("leader", "standby")
        leader.child.kill(signal.SIGSTOP)
        successor.wait_held(1, 1)
        leader.child.kill(signal.SIGCONT)
        leader.wait_logged(STOPS)
        leader.go_on()
        successor.go_on()
        results = [worker.child.result() for worker in (leader, successor)]
    assert CheckpointStore(backup_dir).names() == ["0000000002-00000002-00000000.final.ckpt"]
    assert results[0]["state"]["variables"] == results[1]["state"]["variables"]


def test_a_leader_that_is_succeeded_while_its_fit_ends_returns_with_the_last_boundary_if_no_final_state_was_saved(
    start: Start, backup_dir: Path
) -> None:
    """The disk has refused the final state of the successor, which this test plays."""
    leader = start(held=[TRAIN_END])
    leader.wait_held(*TRAIN_END)
    coordinator, store = FileCoordinator(backup_dir / "coordinator"), CheckpointStore(backup_dir)
    holder = coordinator.view().holder
    assert holder is not None
    coordinator.notify(Notice(notice_id="n", worker_id=holder, reason="test", remaining=PATIENCE, action="resign"))
    beat = Heartbeat(worker_id="successor", campaign=True, floor=1, duration=PATIENCE)
    wait_for(lambda: coordinator.heartbeat(beat).holder == "successor", "another leader", PATIENCE)
    leader.wait_logged(STOPS)

    newest = store.latest()
    assert newest is not None
    state = decode_state(newest.body)
    state["variables"]["trainable"][0]["instructions"] = "of the successor"
    position, body = newest.header.position, encode_state(state)
    last = store.commit(Snapshot(position=position, body=body, data=newest.header.data), term=2, worker_id="successor")
    coordinator.announce(
        Announcement(
            term=2, worker_id="successor", position=position, checkpoint=last.name, digest=last.digest, finished=True
        )
    )
    leader.go_on()
    assert leader.child.result()["state"]["variables"] == state["variables"]
