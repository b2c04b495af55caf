"""Test the requests of an operator, over a coordinator in memory.

The clock is fake. Each wait runs one step of a script, which plays the run, and returns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from distributed_backup.cli.operator_requests import (
    HandedOver,
    Saved,
    ask_for_save,
    ask_to_resign,
    poll,
)
from distributed_backup.coordination.base import Announcement, ClusterView, Heartbeat, Notice
from distributed_backup.coordination.file import FileCoordinator
from distributed_backup.coordination.memory import MemoryCoordinator
from distributed_backup.errors import BackupError, ConfigError, CoordinatorUnavailableError
from distributed_backup.position import Position
from tests.support.clocks import FakeClock

NAME = "0000000001-00000002-00000003.ckpt"


class Stage(FakeClock):
    """A clock that runs one step of a script at each wait, then advances."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Callable[[], object]] = []
        self.waits: list[float] = []

    def wait(self, event: threading.Event, timeout: float) -> bool:
        self.waits.append(timeout)
        if self.steps:
            self.steps.pop(0)()
        return super().wait(event, timeout)


class Run(MemoryCoordinator):
    """A coordinator that may be down and records the notices it gets."""

    def __init__(self, clock: Stage) -> None:
        super().__init__(clock)
        self.down = False
        self.noted: list[Notice] = []

    def beat(self, worker_id: str, *, campaign: bool = True) -> ClusterView:
        return self.heartbeat(Heartbeat(worker_id=worker_id, campaign=campaign, floor=0, duration=100.0))

    def answer(self, *acknowledged: str, checkpoint: str | None = NAME) -> None:
        view = self.view()
        assert view.holder is not None
        made = Announcement(
            term=view.term,
            worker_id=view.holder,
            position=Position(2, 3) if checkpoint else Position(0),
            checkpoint=checkpoint,
            acknowledged=acknowledged,
        )
        assert self.announce(made)

    def answer_all(self) -> None:
        self.answer(*(notice.notice_id for notice in self.view().notices))

    def view(self) -> ClusterView:
        if self.down:
            raise CoordinatorUnavailableError("no way to the server")
        return super().view()

    def leave(self, worker_id: str) -> None:
        self.view()
        super().leave(worker_id)

    def notify(self, notice: Notice) -> None:
        self.noted.append(notice)
        super().notify(notice)


@pytest.fixture
def clock() -> Stage:
    return Stage()


@pytest.fixture
def run(clock: Stage) -> Run:
    run = Run(clock)
    run.beat("a")
    run.beat("b")
    return run


# ---------------------------------------------------------------- a save


def test_a_save_is_reported_when_the_leader_has_announced_the_answer(run: Run, clock: Stage) -> None:
    clock.steps = [lambda: None, run.answer_all]
    saved = ask_for_save(run, timeout=30.0, clock=clock)
    assert saved == Saved(checkpoint=NAME, epoch=2, batch=3, leader="a", term=1, seconds=round(sum(clock.waits), 3))
    (notice,) = run.noted
    assert (notice.action, notice.reason, notice.remaining) == ("save", "operator", 30.0)
    assert notice.worker_id.startswith("operator-")
    assert run.view().notices == ()


def test_a_commit_that_does_not_answer_is_not_taken_for_one(run: Run, clock: Stage) -> None:
    """During the wait the leader makes scheduled commits and answers other notices."""
    clock.steps = [run.answer, lambda: run.answer("another"), run.answer_all]
    ask_for_save(run, timeout=30.0, clock=clock)
    assert len(clock.waits) == 3


def test_a_run_that_has_nothing_to_save_yet_says_so(run: Run, clock: Stage) -> None:
    clock.steps = [lambda: run.answer(run.noted[0].notice_id, checkpoint=None)]
    assert ask_for_save(run, timeout=30.0, clock=clock).checkpoint is None


def test_two_requests_are_told_apart(run: Run, clock: Stage) -> None:
    clock.steps = [run.answer_all]
    ask_for_save(run, timeout=30.0, clock=clock)
    with pytest.raises(BackupError, match="no save was reported"):
        ask_for_save(run, timeout=30.0, clock=clock)


def test_a_leader_that_does_not_answer_is_named(run: Run, clock: Stage) -> None:
    """The error has the leader's term and the age of its last heartbeat."""
    with pytest.raises(BackupError, match=r"within 30 s: a leads under term 1, last heartbeat 30\.0 s ago$"):
        ask_for_save(run, timeout=30.0, clock=clock)
    assert sum(clock.waits) == pytest.approx(30.0)
    assert run.view().notices == ()


def test_where_nobody_leads_the_next_leader_answers(run: Run, clock: Stage) -> None:
    """An election may be under way, so any worker is reason to wait."""
    run.resign("a")
    clock.steps = [lambda: run.beat("b"), run.answer_all]
    assert ask_for_save(run, timeout=30.0, clock=clock).leader == "b"


def test_where_nobody_comes_to_lead_it_is_said(run: Run, clock: Stage) -> None:
    run.resign("a")
    with pytest.raises(BackupError, match=r"within 30 s: the run has no leader$"):
        ask_for_save(run, timeout=30.0, clock=clock)


def test_where_nobody_takes_part_nobody_is_asked(clock: Stage) -> None:
    run = Run(clock)
    with pytest.raises(BackupError, match="the run has no workers"):
        ask_for_save(run, timeout=30.0, clock=clock)
    assert (run.noted, clock.waits) == ([], [])


def test_ctrl_c_takes_the_request_back(run: Run, clock: Stage) -> None:
    def interrupt() -> None:
        assert run.view().notices != ()
        raise KeyboardInterrupt

    clock.steps = [interrupt]
    with pytest.raises(KeyboardInterrupt):
        ask_for_save(run, timeout=30.0, clock=clock)
    assert run.view().notices == ()


def test_an_outage_meanwhile_is_waited_out(run: Run, clock: Stage) -> None:
    def down(state: bool) -> None:
        run.down = state

    clock.steps = [lambda: down(True), lambda: None, lambda: down(False), run.answer_all]
    assert ask_for_save(run, timeout=30.0, clock=clock).checkpoint == NAME


def test_an_outage_that_lasts_is_told(run: Run, clock: Stage) -> None:
    """The failed withdrawal of the request does not hide the outage."""

    def down() -> None:
        run.down = True

    clock.steps = [down]
    with pytest.raises(BackupError, match="no save was reported within 30 s: the coordinator does not respond: no way"):
        ask_for_save(run, timeout=30.0, clock=clock)


def test_an_outage_at_first_contact_is_not_waited_for(run: Run, clock: Stage) -> None:
    """A preStop hook must not use up the grace period on an outage."""
    run.down = True
    with pytest.raises(CoordinatorUnavailableError):
        ask_for_save(run, timeout=30.0, clock=clock)
    assert clock.waits == []


def test_a_request_that_the_coordinator_forgot_is_made_again(run: Run, clock: Stage) -> None:
    """The second notice expires with the first request."""

    def forget() -> None:
        run.erase()
        run.beat("a")

    clock.steps = [forget, run.answer_all]
    ask_for_save(run, timeout=30.0, clock=clock)
    first, second = run.noted
    assert second.notice_id == first.notice_id
    assert second.remaining == pytest.approx(30.0 - clock.waits[0])


# ---------------------------------------------------------------- another leader


def hand_over(run: Run) -> None:
    run.resign("a")
    run.beat("b")


def test_the_leader_is_asked_and_its_successor_reported(run: Run, clock: Stage) -> None:
    clock.steps = [lambda: None, lambda: run.resign("a"), lambda: run.beat("b")]
    done = ask_to_resign(run, timeout=20.0, clock=clock)
    assert done == HandedOver(leader="b", term=2, previous="a", seconds=round(sum(clock.waits), 3))
    asked = run.noted[0]
    assert (asked.action, asked.worker_id, asked.reason, asked.remaining) == ("resign", "a", "operator", 20.0)


def test_a_leader_that_leads_again_before_the_next_look_ends_the_wait(run: Run, clock: Stage) -> None:
    """A standby that is behind the newest checkpoint takes the lease and exits to be started again."""

    def hand_over_and_back() -> None:
        hand_over(run)
        run.resign("b")
        run.beat("a")

    clock.steps = [hand_over_and_back]
    with pytest.raises(
        BackupError, match="a handed over, and leads again under term 3: the worker that led in between"
    ):
        ask_to_resign(run, timeout=20.0, clock=clock)
    assert len(clock.waits) == 1


def test_a_leader_that_leads_again_because_no_other_did_has_not_handed_over(run: Run, clock: Stage) -> None:
    clock.steps = [lambda: run.resign("a"), lambda: run.beat("a")]
    with pytest.raises(BackupError, match="no other worker took over from a within 20 s"):
        ask_to_resign(run, timeout=20.0, clock=clock)


def test_the_request_ends_with_the_hand_over_and_the_former_leader_stays(run: Run, clock: Stage) -> None:
    """A request that lasted longer would make it resign again as soon as it leads."""
    clock.steps = [lambda: hand_over(run)]
    ask_to_resign(run, timeout=20.0, clock=clock)
    assert run.view().notices == ()
    assert [member.worker_id for member in run.members()] == ["a", "b"]


def test_the_request_ends_with_the_time_limit(run: Run, clock: Stage) -> None:
    with pytest.raises(BackupError, match="no other worker took over from a within 20 s: a leads under term 1"):
        ask_to_resign(run, timeout=20.0, clock=clock)
    assert run.view().notices == ()


def test_the_request_ends_with_ctrl_c(run: Run, clock: Stage) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    clock.steps = [interrupt]
    with pytest.raises(KeyboardInterrupt):
        ask_to_resign(run, timeout=20.0, clock=clock)
    assert run.view().notices == ()


def test_where_nobody_leads_nobody_can_resign(run: Run, clock: Stage) -> None:
    run.resign("a")
    with pytest.raises(BackupError, match="the run has no leader"):
        ask_to_resign(run, timeout=20.0, clock=clock)
    assert (run.noted, clock.waits) == ([], [])


def test_a_leader_that_is_alone_is_not_asked(run: Run, clock: Stage) -> None:
    """The run would have no leader until the request expires."""
    run.leave("b")
    with pytest.raises(BackupError, match="no other worker could take over from a"):
        ask_to_resign(run, timeout=20.0, clock=clock)
    assert (run.noted, clock.waits) == ([], [])


def test_a_run_that_ends_meanwhile_is_not_made_anew(tmp_path: Path, clock: Stage) -> None:
    """The last worker has deleted the directory. A late notice must not recreate it."""
    run = FileCoordinator(tmp_path / "run" / "coordinator")
    for worker_id in ("a", "b"):
        run.heartbeat(Heartbeat(worker_id=worker_id, campaign=True, floor=0, duration=100.0))

    def end() -> None:
        run.resign("a")
        run.erase()
        (tmp_path / "run").rmdir()

    for ask in (ask_to_resign, ask_for_save):
        (tmp_path / "run").mkdir(exist_ok=True)
        for worker_id in ("a", "b"):
            run.heartbeat(Heartbeat(worker_id=worker_id, campaign=True, floor=0, duration=100.0))
        clock.steps = [end]
        with pytest.raises(BackupError, match=r"the run has no leader$"):
            ask(run, timeout=20.0, clock=clock)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_limit_is_a_positive_number(run: Run, clock: Stage, timeout: float) -> None:
    for ask in (ask_for_save, ask_to_resign):
        with pytest.raises(ConfigError, match="--timeout"):
            ask(run, timeout=timeout, clock=clock)


# ---------------------------------------------------------------- looking again


def test_looking_again_goes_on_after_an_error(clock: Stage) -> None:
    """After an error the last value is repeated, once per period."""
    error = BackupError("just now")
    outcomes: list[int | BackupError] = [1, 2, error, 3]

    def look() -> int:
        outcome = outcomes.pop(0)
        if isinstance(outcome, BackupError):
            raise outcome
        return outcome

    found = list(islice(poll(look, period=1.0, clock=clock), 4))
    assert found == [(1, None), (2, None), (2, error), (3, None)]
    assert clock.waits == [1.0, 1.0, 1.0]


def test_the_first_look_must_succeed(clock: Stage) -> None:
    def look() -> int:
        raise ConfigError("no such run")

    with pytest.raises(ConfigError):
        next(poll(look, period=1.0, clock=clock))
