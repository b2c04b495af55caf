"""Test `status`, `preempt` and `resign` as programs, over real servers and real workers.

The workers are real, and the tests hand them boundaries in place of training. No schedule commits, so every checkpoint
on disk was requested. Each run of the program is checked for the server's password.
"""

from __future__ import annotations

import json
import os
import pty
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from typer.testing import CliRunner

from distributed_backup.checkpoints.format import CheckpointHeader, Snapshot
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.cli.app import app
from distributed_backup.clock import SystemClock
from distributed_backup.coordination import coordinator_from_url
from distributed_backup.coordination.base import Coordinator
from distributed_backup.coordination.redis import RedisCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.observability.reporter import Reporter
from distributed_backup.position import Position
from distributed_backup.worker.options import WorkerOptions
from distributed_backup.worker.worker import Worker
from tests.support.internals import context_of, elector_of
from tests.support.servers import HOST, RedisServer, binaries, free_port, wait_for

PASSWORD = "open-sesame-7319"
PATIENCE = 60.0
# Long enough to keep every lease on a busy machine. No test here waits for an expiry.
TIMINGS = LeaseTimings(duration=30.0, renew_deadline=20.0, retry_period=1.0)
# Exit code, stdout, stderr.
type Outcome = tuple[int, str, str]


@pytest.fixture(scope="module", params=sorted(binaries()))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Start one server for all tests. Each test uses its own run ids."""
    config = {"requirepass": PASSWORD}
    directory = tmp_path_factory.mktemp("redis") / "server"
    with RedisServer(directory, binary=binaries()[request.param], port=0, config=config) as server:
        yield server


@pytest.fixture
def lone_server(tmp_path: Path) -> Iterator[RedisServer]:
    """Start a server for a test that counts its runs or stops it."""
    with RedisServer(tmp_path / "server", port=0, config={"requirepass": PASSWORD}) as server:
        yield server


class Gate(CheckpointStore):
    """A store that commits only while the gate is open."""

    def __init__(self, root: Path, *, run_id: str) -> None:
        super().__init__(root, run_id=run_id, keep=9)
        self.open = threading.Event()
        self.open.set()
        self.waiting = threading.Event()

    def commit(self, snapshot: Snapshot, *, term: int, worker_id: str) -> CheckpointHeader:
        self.waiting.set()
        assert self.open.wait(PATIENCE)
        return super().commit(snapshot, term=term, worker_id=worker_id)


class Crew:
    """The workers of one run, in a directory and over a coordinator."""

    def __init__(self, root: Path, coordinator: str, *, run_id: str | None = None) -> None:
        self.root = root
        self.coordinator = coordinator
        self.run_id = run_id or f"run-{secrets.token_hex(4)}"
        self.stores: dict[str, Gate] = {}
        self.workers: list[tuple[Worker, Coordinator]] = []

    @property
    def place(self) -> tuple[str, ...]:
        """Return the arguments that name the run by its directory."""
        return (str(self.root),) if self.coordinator == "file:" else (str(self.root), "--coordinator", self.coordinator)

    def join(self, worker_id: str) -> Worker:
        """Start a worker that trains. The first one leads."""
        coordinator = coordinator_from_url(self.coordinator, backup_dir=self.root)
        store = self.stores[worker_id] = Gate(self.root, run_id=self.run_id)
        worker = Worker(
            store=store,
            coordinator=coordinator,
            clock=SystemClock(),
            options=WorkerOptions(timings=TIMINGS, delete_checkpoint=False),
            report=Reporter(worker_id),
        )
        self.workers.append((worker, coordinator))
        worker.join()
        start = worker.await_start()
        worker.training_started(start.position or Position(0))
        return worker

    def names(self) -> list[str]:
        return CheckpointStore(self.root).names()

    def kept(self) -> list[tuple[int, Position]]:
        """Return term and position of each valid checkpoint, newest first."""
        return [(row.term, row.position) for row in CheckpointStore(self.root).list() if row.valid]

    def announced(self) -> str | None:
        """Return the name of the announced checkpoint."""
        made = self.workers[0][1].view().announcement
        return None if made is None else made.checkpoint

    def notices(self) -> list[Any]:
        return list(self.workers[0][1].view().notices)

    def end(self) -> None:
        for worker, coordinator in self.workers:
            worker.close(timeout=0.0)
            if isinstance(coordinator, RedisCoordinator):
                coordinator.close()


@contextmanager
def crew(root: Path, coordinator: str, *workers: str, run_id: str | None = None) -> Iterator[Crew]:
    made = Crew(root, coordinator, run_id=run_id)
    try:
        for worker_id in workers:
            made.join(worker_id)
        yield made
    finally:
        for store in made.stores.values():
            store.open.set()
        made.end()


def snapshot(epoch: int, batch: int = 0) -> Snapshot:
    return Snapshot(position=Position(epoch, batch), body=b'{"epoch":%d,"batch":%d}' % (epoch, batch))


@pytest.fixture(params=["file", *sorted(binaries())])
def team(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Crew]:
    """Start two workers over each kind of coordinator. The first one leads."""
    if request.param == "file":
        with crew(tmp_path / "run", "file:", "a", "b") as made:
            yield made
        return
    config = {"requirepass": PASSWORD}
    with (
        RedisServer(tmp_path / "server", binary=binaries()[request.param], port=0, config=config) as server,
        crew(tmp_path / "run", server.url, "a", "b") as made,
    ):
        yield made


# ---------------------------------------------------------------- the program


def begin(*words: str, terminal: int | None = None, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "distributed_backup.cli.app", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if terminal is None else terminal,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def outcome(process: subprocess.Popen[str]) -> Outcome:
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    out = out or ""
    assert PASSWORD not in out + err
    assert "Traceback" not in err
    return process.returncode, out, err


def program(*words: str, **environment: str) -> Outcome:
    return outcome(begin(*words, terminal=None, **environment))


def inside(*words: str, **environment: str) -> Outcome:
    """Run the program in this process. A new process takes 1 s for its imports."""
    result = CliRunner().invoke(app, words, env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert PASSWORD not in result.output
    return result.exit_code, result.stdout, result.stderr


def asked(*words: str, **environment: str) -> Any:
    """Return the JSON of a command that succeeds."""
    code, out, err = inside(*words, "--json", **environment)
    assert (code, err) == (0, ""), out + err
    return json.loads(out)


def assert_refused(result: Outcome, code: int, *words: str) -> None:
    """Check for one error line on stderr with these words, and an empty stdout."""
    assert (result[0], result[1]) == (code, ""), result
    assert result[2].startswith("error: ")
    assert result[2].count("\n") == 1
    for word in words:
        assert word in result[2]


# ---------------------------------------------------------------- status


def test_status_over_the_server_and_over_the_directory_have_one_shape(server: RedisServer, tmp_path: Path) -> None:
    """From the server alone, facts that only the file holds are null."""
    with crew(tmp_path / "run", server.url, "a", "b") as run:
        run.workers[0][0].boundary(snapshot(1, 2), due=True)
        wait_for(run.announced, "the commit is announced")
        near, far = asked("status", *run.place), asked("status", server.url, "--run", run.run_id)
        (name,) = run.names()
    near_row, far_row = near.pop("checkpoint"), far.pop("checkpoint")
    assert list(near_row) == list(far_row)
    known = {"name": name, "term": 1, "epoch": 1, "batch": 2, "worker_id": "a"}
    assert far_row == {**known, "bytes": None, "created_at": None, "valid": None, "answers_since": None}
    assert {key: near_row[key] for key in known} == known
    assert near_row["valid"] is True
    for found in (near, far):
        assert 0 < found.pop("lease_remaining") <= TIMINGS.duration
        ages = [member.pop("last_seen") for member in found["members"]]
        assert all(0 <= age < TIMINGS.duration for age in ages)
        assert found.pop("members")[0]["worker_id"] == "a"
    assert near == far == {"run_id": run.run_id, "leader": "a", "term": 1, "notices": []}


def test_status_for_people_shows_the_server_without_the_password(server: RedisServer, tmp_path: Path) -> None:
    with crew(tmp_path / "run", server.url, "a") as run:
        for words in (run.place, (server.url, "--run", run.run_id)):
            code, out, err = program("status", *words)
            assert (code, err) == (0, "")
            for word in (f"{run.run_id} in ", f"redis://{HOST}:{server.port}/0", "a, term 1, for ", "s unless renewed"):
                assert word in out


def test_a_restored_checkpoint_is_not_ascribed_to_who_restored_it(server: RedisServer, tmp_path: Path) -> None:
    """The server knows the worker that announced it under a later term. The writer is unknown."""
    run_id = f"run-{secrets.token_hex(4)}"
    store = CheckpointStore(tmp_path / "run", run_id=run_id)
    store.open_run()
    name = store.commit(snapshot(3), term=5, worker_id="earlier").name
    with crew(tmp_path / "run", server.url, "a", run_id=run_id):
        row = asked("status", server.url, "--run", run_id)["checkpoint"]
        assert (row["name"], row["term"], row["epoch"], row["worker_id"]) == (name, 5, 3, None)
        assert "as announced\n" in inside("status", server.url, "--run", run_id)[1]


def test_the_only_run_on_a_server_need_not_be_named(lone_server: RedisServer, tmp_path: Path) -> None:
    assert_refused(program("status", lone_server.url), 2, f"no run on redis://{HOST}:{lone_server.port}/0")
    with crew(tmp_path / "one", lone_server.url, "a", run_id="one"):
        assert asked("status", lone_server.url)["run_id"] == "one"
        with crew(tmp_path / "two", lone_server.url, "z", run_id="two"):
            for command in ("status", "preempt", "resign"):
                assert_refused(inside(command, lone_server.url), 2, "2 runs on", "--run", "one, two")
            assert asked("status", lone_server.url, "--run", "two")["leader"] == "z"
            # The option overrides the job's environment.
            assert asked("status", lone_server.url, DISTRIBUTED_BACKUP_RUN_ID="two")["leader"] == "z"
            by_option = asked("status", lone_server.url, "--run", "one", DISTRIBUTED_BACKUP_RUN_ID="two")
            assert by_option["leader"] == "a"
            assert_refused(inside("status", lone_server.url, "--run", "three"), 2, "no run three on")


def test_a_wrong_password_is_wrong_usage(server: RedisServer, tmp_path: Path) -> None:
    wrong = server.url.replace(PASSWORD, f"{PASSWORD}x")
    CheckpointStore(tmp_path, run_id="job-7").open_run()
    for command in ("status", "preempt", "resign"):
        for words in ((wrong,), (wrong, "--run", "job-7"), (str(tmp_path), "--coordinator", wrong)):
            assert_refused(inside(command, *words), 2, "refused the user name or password")
    assert_refused(program("preempt", wrong), 2, "refused the user name or password")


def test_a_password_that_needs_escapes_is_not_shown_either(tmp_path: Path) -> None:
    """This includes malformed URLs and unknown schemes."""
    for url in (
        f"redis://:{quote(PASSWORD + '/@?')}@{HOST}:1/0",
        f"redis://:{PASSWORD}/@{HOST}:1/0",
        f"redis://:{PASSWORD}@{HOST}:port/0",
        f"https://:{PASSWORD}@{HOST}/0",
    ):
        for words in ((url,), (str(tmp_path), "--coordinator", url)):
            code, out, err = inside("status", *words)
            assert code in {1, 2}
            assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize("command", ["status", "preempt", "resign"])
def test_a_server_that_is_down_is_a_problem_told_in_one_line(tmp_path: Path, command: str) -> None:
    url = f"redis://:{PASSWORD}@{HOST}:{free_port()}/0"
    CheckpointStore(tmp_path, run_id="job-7").open_run()
    for words in ((url,), (url, "--run", "job-7"), (str(tmp_path), "--coordinator", url)):
        assert_refused(inside(command, *words), 1, f"can't reach redis://{HOST}:")
    assert_refused(program(command, url), 1, f"can't reach redis://{HOST}:")


# ---------------------------------------------------------------- status --watch


def stopped(process: subprocess.Popen[str]) -> Outcome:
    process.send_signal(signal.SIGINT)
    return outcome(process)


def read_line(process: subprocess.Popen[str]) -> str:
    """Read the next line. After `PATIENCE` seconds without one, kill the process."""
    assert process.stdout is not None
    alarm = threading.Timer(PATIENCE, process.kill)
    alarm.start()
    try:
        return process.stdout.readline()
    finally:
        alarm.cancel()


def test_watching_prints_a_document_per_line_until_ctrl_c(server: RedisServer, tmp_path: Path) -> None:
    with crew(tmp_path / "run", server.url, "a") as run:
        process = begin("status", server.url, "--run", run.run_id, "--watch", "--json")
        first = json.loads(read_line(process))
        run.join("b")
        found = [first]
        while len(found[-1]["members"]) < 2:
            found.append(json.loads(read_line(process)))
        code, _, err = stopped(process)
    assert (code, err) == (0, "")
    assert [member["worker_id"] for member in first["members"]] == ["a"]
    assert [member["worker_id"] for member in found[-1]["members"]] == ["a", "b"]


def test_watching_without_a_terminal_prints_a_block_each_time(tmp_path: Path) -> None:
    with crew(tmp_path / "run", "file:", "a") as run:
        process = begin("status", *run.place, "--watch")
        blocks, lines = 0, []
        while blocks < 2:
            lines.append(read_line(process))
            blocks += lines[-1] == "\n"
        code, _, err = stopped(process)
    assert (code, err) == (0, "")
    assert sum(line.startswith(f"Run         {run.run_id}") for line in lines) == 2
    assert "\x1b" not in "".join(lines)


def test_watching_goes_on_while_the_server_is_away(lone_server: RedisServer, tmp_path: Path) -> None:
    with crew(tmp_path / "run", lone_server.url, "a") as run:
        process = begin("status", lone_server.url, "--watch", "--json")
        assert json.loads(read_line(process))["run_id"] == run.run_id
        lone_server.kill()
        assert process.stderr is not None
        alarm = threading.Timer(PATIENCE, process.kill)
        alarm.start()
        error = process.stderr.readline()
        alarm.cancel()
        assert error.startswith(f"error: can't reach redis://{HOST}:")
        lone_server.start()
        while json.loads(read_line(process))["leader"] != "a":
            pass
        code, _, err = stopped(process)
    assert code == 0
    assert all(line.startswith("error: ") for line in err.splitlines())


def test_watching_on_a_terminal_is_one_picture_that_changes(tmp_path: Path) -> None:
    with crew(tmp_path / "run", "file:", "a") as run:
        ours, theirs = pty.openpty()
        process = begin("status", *run.place, "--watch", terminal=theirs, TERM="xterm", COLUMNS="150")
        os.close(theirs)
        alarm = threading.Timer(PATIENCE, process.kill)
        alarm.start()
        seen = b""
        # EIO: the process has exited and closed the terminal.
        with suppress(OSError):
            while seen.count(b"Run         ") < 2:
                seen += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        drain = threading.Thread(target=read_all, args=(ours,))
        drain.start()
        code, _, err = outcome(process)
        alarm.cancel()
        drain.join()
        os.close(ours)
    assert (code, err) == (0, "")
    # The cursor moves up before the second frame.
    assert b"\x1b[1A" in seen


def read_all(descriptor: int) -> None:
    with suppress(OSError):
        while os.read(descriptor, 4096):
            pass


# ---------------------------------------------------------------- preempt


def test_preempt_makes_the_last_boundary_durable(team: Crew) -> None:
    """No worker stops, and the leader keeps its term."""
    leader, follower = (worker for worker, _ in team.workers)
    leader.boundary(snapshot(1, 2), due=False)
    follower.boundary(snapshot(1, 1), due=False)
    assert team.names() == []
    saved = asked("preempt", *team.place)
    (name,) = team.names()
    assert team.kept() == [(1, Position(1, 2))]
    assert 0 < saved.pop("seconds") < 30
    assert saved == {"checkpoint": name, "epoch": 1, "batch": 2, "leader": "a", "term": 1}
    assert team.notices() == []
    assert not leader.notice_given
    assert asked("status", *team.place)["leader"] == "a"
    leader.boundary(snapshot(1, 3), due=False)
    code, out, _ = program("preempt", *team.place)
    assert (code, team.kept()[0]) == (0, (1, Position(1, 3)))
    assert team.names()[0] in out
    assert "1 epoch(s) and 3 batch(es) done" in out


def test_preempt_returns_only_after_the_save(team: Crew) -> None:
    leader, store = team.workers[0][0], team.stores["a"]
    leader.boundary(snapshot(1, 2), due=False)
    store.open.clear()
    process = begin("preempt", *team.place)
    assert store.waiting.wait(PATIENCE)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)
    (notice,) = asked("status", *team.place)["notices"]
    assert (notice["reason"], notice["wish"]) == ("operator", "save")
    assert " asks for a save, request expires in " in inside("status", *team.place)[1]
    store.open.set()
    assert outcome(process)[0] == 0
    assert team.kept() == [(1, Position(1, 2))]


def test_preempt_says_who_did_not_save_in_time(team: Crew) -> None:
    leader, store = team.workers[0][0], team.stores["a"]
    leader.boundary(snapshot(1, 2), due=False)
    store.open.clear()
    result = program("preempt", *team.place, "--timeout", "0.5")
    assert_refused(result, 1, "no save was reported within 0.5 s: a leads under term 1, last heartbeat ")
    assert team.notices() == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_preempt_takes_its_request_back(team: Crew, number: signal.Signals, code: int) -> None:
    leader, store = team.workers[0][0], team.stores["a"]
    leader.boundary(snapshot(1, 2), due=False)
    store.open.clear()
    process = begin("preempt", *team.place)
    assert store.waiting.wait(PATIENCE)
    assert len(team.notices()) == 1
    process.send_signal(number)
    assert outcome(process)[0] == code
    assert team.notices() == []


def test_preempt_where_nobody_is_left_says_so_at_once(team: Crew) -> None:
    for worker, _ in team.workers:
        worker.close(timeout=0.0)
    for command, words in (("preempt", "the run has no workers"), ("resign", "the run has no leader")):
        assert_refused(program(command, *team.place), 1, words)


def test_preempt_before_the_first_boundary_has_nothing_to_save(team: Crew) -> None:
    assert asked("preempt", *team.place)["checkpoint"] is None
    code, out, _ = inside("preempt", *team.place)
    assert code == 0
    assert out.startswith("Nothing to save yet")


def test_a_hook_needs_no_more_than_the_environment_of_the_job(server: RedisServer, tmp_path: Path) -> None:
    """`preempt DIR` works in a worker's container. An option overrides the environment."""
    with crew(tmp_path / "run", server.url, "a") as run:
        run.workers[0][0].boundary(snapshot(2), due=False)
        job = {"DISTRIBUTED_BACKUP_COORDINATOR": server.url, "DISTRIBUTED_BACKUP_RUN_ID": run.run_id}
        nobody = inside("preempt", str(run.root), "--coordinator", "file:", **job)
        assert_refused(nobody, 1, "the run has no workers")
        assert run.names() == []
        assert asked("preempt", str(run.root), **job)["epoch"] == 2
        assert run.kept() == [(1, Position(2))]


def test_a_request_of_one_run_is_not_served_by_another(server: RedisServer, tmp_path: Path) -> None:
    with crew(tmp_path / "one", server.url, "a") as one, crew(tmp_path / "two", server.url, "z") as two:
        for run in (one, two):
            run.workers[0][0].boundary(snapshot(1), due=False)
        assert asked("preempt", server.url, "--run", two.run_id)["leader"] == "z"
        assert (one.kept(), two.kept()) == ([], [(1, Position(1))])


# ---------------------------------------------------------------- resign


def test_resign_saves_and_lets_another_worker_lead(team: Crew) -> None:
    """The former leader's last boundary is on disk, and it stays a member."""
    leader, follower = (worker for worker, _ in team.workers)
    leader.boundary(snapshot(1, 2), due=False)
    done = asked("resign", *team.place)
    assert 0 < done.pop("seconds") < 30
    assert done == {"leader": "b", "term": 2, "previous": "a"}
    assert team.kept() == [(1, Position(1, 2))]
    assert not leader.notice_given
    assert wait_for(lambda: elector_of(follower).is_leader, "b knows that it leads")
    found = asked("status", *team.place)
    assert (found["leader"], [member["worker_id"] for member in found["members"]]) == ("b", ["a", "b"])
    # The former leader may lead again.
    follower.boundary(snapshot(1, 4), due=False)
    code, out, _ = program("resign", *team.place)
    assert (code, out.startswith("a leads now, under term 3")) == (0, True)
    assert team.kept()[0] == (2, Position(1, 4))


def test_a_leader_that_can_not_save_does_not_hand_over(team: Crew) -> None:
    """A later save does not lead to a handover: the request ended with the wait."""
    leader, store = team.workers[0][0], team.stores["a"]
    leader.boundary(snapshot(1, 2), due=False)
    store.open.clear()
    result = inside("resign", *team.place, "--timeout", "0.5")
    assert_refused(result, 1, "no other worker took over from a within 0.5 s: a leads under term 1, last heartbeat ")
    state = context_of(leader).state
    wait_for(lambda: state.view is not None and not state.view.notices, "the leader knows that it is over")
    store.open.set()
    wait_for(team.kept, "the save comes late")
    assert asked("preempt", *team.place)["leader"] == "a"


def test_resign_where_nobody_else_is_leaves_the_leader_alone(tmp_path: Path) -> None:
    with crew(tmp_path / "run", "file:", "a") as run:
        assert_refused(inside("resign", *run.place), 1, "no other worker could take over from a")
        assert run.notices() == []
        assert elector_of(run.workers[0][0]).is_leader
