"""The demonstration with real processes, signals, files and servers, and what it leaves behind: nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.coordination.base import Heartbeat
from distributed_backup.coordination.redis import RedisCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.demo import redis_server
from distributed_backup.demo.coordinator_setup import coordinator_for
from distributed_backup.demo.messages import Message, Plan
from distributed_backup.demo.process_table import ProcessTable
from distributed_backup.demo.redis_server import find_server, running_server
from distributed_backup.demo.scenario import DemoError, Recording, Scenario
from distributed_backup.demo.verdict import judge
from distributed_backup.errors import ConfigError
from tests.support.cli_runs import call
from tests.support.fork_server import start_server
from tests.support.servers import PATIENCE, RedisServer, wait_for

PROGRAM = (sys.executable, "-m", "distributed_backup.cli.app", "demo")


class Witness:
    """Records the messages. Raises `interruption` when a worker is elected."""

    def __init__(self, interruption: BaseException | None = None) -> None:
        self.interruption = interruption
        self.pids: set[int] = set()
        self.kinds: list[str] = []

    def step(self, text: str) -> None: ...

    def message(self, message: Message, table: ProcessTable) -> None:
        self.kinds.append(message.kind)
        self.pids |= {record.pid for records in table.records.values() for record in records}
        if message.kind == "elected" and self.interruption is not None:
            raise self.interruption


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # a zombie has ended, and waits for its parent


def run_scenario(plan: Plan, tmp_path: Path, witness: Witness, *, workers: int = 2) -> Recording:
    start_server()  # otherwise the scenario starts one of its own, for all tests that follow
    return Scenario(
        plan, workers=workers, backup_dir=tmp_path / "run", keep=True, logs=tmp_path, observer=witness
    ).run()


@pytest.fixture
def short_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose path is short enough for a socket in it."""
    return tmp_path_factory.mktemp("t")


@pytest.mark.parametrize("coordinator", ["file:", "embedded-redis"])
def test_the_demonstration_holds_what_is_promised(
    coordinator: str, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three workers, a SIGTERM, a SIGKILL, two restarts. Once as the command, with its output in a pipe.

    The other one is called here: then its workers need no import of synalinks, which takes 9 s of CPU.
    """
    words = ["--plain", "--json", "--coordinator", coordinator]
    if coordinator == "file:":
        environment = {**os.environ, "TMPDIR": str(short_path)}
        done = subprocess.run(
            [*PROGRAM, *words], capture_output=True, text=True, timeout=200, check=False, env=environment
        )
        code, output, progress = done.returncode, done.stdout, done.stderr
    else:
        start_server()
        monkeypatch.setattr("tempfile.tempdir", str(short_path))
        result = call("demo", *words)
        code, output, progress = result.exit_code, result.stdout, result.stderr
    assert code == 0, output + progress
    verdict = json.loads(output)
    assert_holds(verdict)
    assert verdict["coordinator"] == coordinator
    if coordinator == "file:":
        assert 0 < verdict["sigkill"]["next_leader_ms"] < 2_000
    else:
        # A leader has renewed its lease of 3 s within the last 2 s, so at least 1 s is left at the signal.
        assert 1_000 < verdict["sigkill"]["next_leader_ms"] < 3_500
    assert verdict["workers"] == 3
    assert verdict["backup_deleted"] is True
    assert list(short_path.iterdir()) == []
    lines = progress.splitlines()
    assert all(line.isprintable() for line in lines)
    for end in ("<== SIGTERM", "<== SIGKILL", "process ended with exit code 143", "process was killed"):
        assert sum(line.endswith(end) for line in lines) == 1, progress


def assert_holds(verdict: dict[str, Any]) -> None:
    assert verdict["problems"] == []
    assert (verdict["holds"], verdict["final_state_equal"], verdict["differences"]) == (True, True, [])
    # At least those at the ends of the epochs, and one after SIGTERM.
    assert verdict["checkpoints_written"] >= 5
    assert verdict["calls_uninterrupted"] == verdict["calls_paid"] == 4 * (6 * 8 + 4)
    assert (verdict["calls_repeated"], verdict["calls_missing"]) == (0, 0)
    # SIGKILL comes in a batch, so at most its 4 calls are under way. On a slow machine it may come between two calls.
    assert 0 <= verdict["calls_cut_off"] <= 4
    sigterm, sigkill = verdict["sigterm"], verdict["sigkill"]
    assert sigterm["last_boundary"] <= sigterm["on_disk"]
    assert sigterm["exit_code"] == 143
    assert 0 < sigterm["durable_ms"] < sigterm["in_flight_durable_ms"] < sigterm["gone_ms"] < 10_000
    assert 0 < sigterm["next_leader_ms"] < 10_000
    assert sigkill["worker"] != sigterm["worker"]


def test_a_grace_period_too_short_for_the_batch_in_flight_costs_only_the_calls_under_way(tmp_path: Path) -> None:
    """A batch takes three calls in a row, 1.2 s. The leader has 0.6 s, of which it keeps a part in reserve."""
    plan = Plan(epochs=3, latency=0.4, grace_period=0.6)
    witness = Witness()
    recording = run_scenario(plan, tmp_path, witness)
    verdict = judge(recording, plan, keep=True)
    assert verdict.problems == ()
    assert verdict.final_state_equal
    assert verdict.sigterm.in_flight_durable_ms is None
    assert (verdict.calls_repeated, verdict.calls_missing) == (0, 0)
    # Each signal cuts off at most 4 calls, because a batch has 4 samples.
    assert 0 < verdict.calls_cut_off <= 8
    assert CheckpointStore(tmp_path / "run").verify() == []
    assert not any(is_running(pid) for pid in witness.pids)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), RuntimeError("a bug in the screen")])
def test_an_interruption_leaves_no_process_behind(tmp_path: Path, interruption: BaseException) -> None:
    witness = Witness(interruption)
    with pytest.raises(type(interruption)):
        run_scenario(Plan(), tmp_path, witness)
    assert "elected" in witness.kinds
    assert len(witness.pids) == 3
    assert not any(is_running(pid) for pid in witness.pids)


@pytest.mark.parametrize("coordinator", ["file:", "embedded-redis"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ending_it_while_it_starts_tidies_up(
    coordinator: str, short_path: Path, number: signal.Signals, code: int
) -> None:
    """The fork server imports for many seconds at that time. It must not stay."""
    with subprocess.Popen(
        [*PROGRAM, "--plain", "--coordinator", coordinator],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(short_path)},
    ) as process:
        assert process.stdout is not None
        assert any("Starting" in line for line in process.stdout)
        wait_for(lambda: b"forkserver" in b"".join(descendants(process.pid).values()), "the server was started")
        begun = descendants(process.pid)
        assert any(b"redis.sock" in words for words in begun.values()) is (coordinator == "embedded-redis")
        process.send_signal(number)
        assert process.wait(PATIENCE) == code
        server = next(pid for pid, words in begun.items() if b"forkserver" in words)
        assert not is_running(server), "the import goes on"
        # The pipes end when the last process that inherited them has ended.
        _, errors = process.communicate(timeout=PATIENCE)
        assert "Traceback" not in errors
    assert list(short_path.iterdir()) == []
    wait_for(lambda: not any(is_running(pid) for pid in begun), "the end of all processes")


def descendants(pid: int) -> dict[int, bytes]:
    """Return the command lines of all descendants of a process."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        found = {child: Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    except FileNotFoundError:
        return {}
    return {**found, **{key: value for child in children for key, value in descendants(child).items()}}


# -------------------------------------------------------------------- the coordinator


def test_its_own_server_ends_with_the_block_and_leaves_no_socket(short_path: Path) -> None:
    place = bytes(short_path)
    with running_server(find_server(), short_path) as url:
        # Other tests of this process may have servers of their own.
        before = descendants(os.getpid())
        (pid,) = (pid for pid, words in before.items() if words.startswith(bytes(find_server())) and place in words)
        assert url == f"unix://{short_path}/redis.sock"
    assert not is_running(pid)
    assert [path.name for path in short_path.iterdir()] == ["server.log"]


def test_its_own_server_does_not_outlive_a_demonstration_that_is_killed(short_path: Path) -> None:
    program = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from distributed_backup.demo.redis_server import find_server, running_server\n"
        "with running_server(find_server(), Path(sys.argv[1])):\n"
        "    print(flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(short_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        begun = descendants(process.pid)
        assert any(words.startswith(bytes(find_server())) for words in begun.values())
        process.kill()
    wait_for(lambda: not any(is_running(pid) for pid in begun), "the end of the server and of what watches it")
    assert [path.name for path in short_path.iterdir()] == ["server.log"]


def test_a_worker_does_not_outlive_a_demonstration_that_is_killed() -> None:
    program = (
        "import multiprocessing, time\n"
        "from distributed_backup.demo.process import _exit_with_parent\n"
        "worker = multiprocessing.get_context('forkserver').Process(target=_exit_with_parent)\n"
        "worker.start()\n"
        "print(worker.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert is_running(pid)
        process.kill()
    wait_for(lambda: not is_running(pid), "the end of the worker")


def test_a_server_that_does_not_start_shows_the_last_line_of_its_log(short_path: Path) -> None:
    binary = short_path / "redis-server"
    binary.write_text("#!/bin/sh\necho first; echo 'no such luck'; exit 1\n")
    binary.chmod(0o700)
    with (
        pytest.raises(DemoError, match="did not start, the last line of its log: no such luck"),
        running_server(binary, short_path),
    ):
        pytest.fail("it ran")


def test_a_server_that_ignores_sigterm_is_killed(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server, "_STOP_TIMEOUT", 0.2)
    binary = short_path / "redis-server"
    binary.write_text(
        f"#!{sys.executable}\n"
        "import signal, socket, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "listener = socket.socket(socket.AF_UNIX)\n"
        "listener.bind(sys.argv[sys.argv.index('--unixsocket') + 1])\n"
        "listener.listen()\n"
        "signal.pause()\n"
    )
    binary.chmod(0o700)
    with running_server(binary, short_path):
        begun = [pid for pid, words in descendants(os.getpid()).items() if str(binary).encode() in words]
        assert len(begun) == 3  # the shell, what waits for the end of the pipe, and the server
    wait_for(lambda: not any(is_running(pid) for pid in begun), "the end of all three")


def test_records_of_a_run_on_a_server_are_listed_and_erased(short_path: Path) -> None:
    """It happens after an interruption, or with a kept backup. Other runs on the server stay."""
    with RedisServer(short_path) as server:
        other = RedisCoordinator(server.url)
        other.open("other", LeaseTimings())
        other.heartbeat(Heartbeat(worker_id="a", campaign=True, floor=0, duration=15.0))
        before = set(server.client().keys())
        with coordinator_for(server.url, Plan(), scratch=short_path) as setup:
            assert setup.leftovers() == ()
            assert set(server.client().keys()) == before
            mine = RedisCoordinator(server.url)
            mine.open(setup.coordination.run_id, LeaseTimings())
            mine.heartbeat(Heartbeat(worker_id="b", campaign=True, floor=0, duration=15.0))
            assert setup.leftovers() == ("term 1 on the server", "1 member(s)")
            mine.close()
        assert set(server.client().keys()) == before != set()
        other.close()


def test_a_wrong_password_is_an_error_before_any_process_starts(short_path: Path) -> None:
    with (
        RedisServer(short_path, port=0, config={"requirepass": "right"}) as server,
        pytest.raises(ConfigError, match="refused the user name or password") as caught,
        coordinator_for(server.url.replace("right", "wr0ng"), Plan(), scratch=short_path),
    ):
        pytest.fail("it began")
    assert "wr0ng" not in str(caught.value)
