"""The store under real kills, real full disks and real concurrent processes.

The children are forked from a small server process, which has one thread and no synalinks. So a fork takes 1 ms, and
is safe beside the threads of the test process. Run as a program, this module is that server.
"""

from __future__ import annotations

import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from distributed_backup.checkpoints.format import CheckpointHeader, Snapshot, checkpoint_name
from distributed_backup.checkpoints.run_identity import RUN_FILE
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.errors import StoreError
from distributed_backup.position import Position
from distributed_backup.storage.local import LocalStorage

Event = dict[str, Any]
Spec = dict[str, Any]
Outcome = dict[str, Any]

PATIENCE = 60.0
BODY = b'{"state":"' + b"x" * 4000 + b'"}'


def commit(store: CheckpointStore, epoch: int, *, term: int, body: bytes = BODY) -> CheckpointHeader:
    return store.commit(Snapshot(position=Position(epoch), body=body), term=term, worker_id="w")


# -------------------------------------------------------------------- in the children


class KillingStorage(LocalStorage):
    """A storage that kills its own process at one step.

    Args:
        spec: `root`, `fatal` (the number of the step, or None) and `when` (before, half or after).
        report: Is called with each step before it is made, and with the kill before it happens.
    """

    def __init__(self, spec: Spec, report: Callable[[Event], None]) -> None:
        super().__init__(spec["root"])
        self._fatal, self._when = spec.get("fatal"), spec.get("when")
        self._report = report
        self._steps = 0

    def _step(self, name: str, whole: Callable[[], None], half: Callable[[], None] | None = None) -> None:
        number, self._steps = self._steps, self._steps + 1
        self._report({"step": name})
        fatal = number == self._fatal
        if fatal and self._when == "before":
            self._kill(name)
        if fatal and self._when == "half" and half is not None:
            half()
            self._kill(name)
        whole()
        if fatal and self._when == "after":
            self._kill(name)

    def _kill(self, name: str) -> None:
        self._report({"killed": name, "when": self._when})
        os.kill(os.getpid(), signal.SIGKILL)

    def _write(self, descriptor: int, chunk: bytes | memoryview) -> None:
        write = super()._write
        self._step("write", lambda: write(descriptor, chunk), lambda: write(descriptor, chunk[: len(chunk) // 2]))

    def _sync(self, descriptor: int) -> None:
        sync = super()._sync
        self._step("sync", lambda: sync(descriptor))

    def _publish(self, partial: Path, path: Path) -> None:
        publish = super()._publish
        self._step("publish", lambda: publish(partial, path))

    def _sync_directory(self) -> None:
        self._step("sync directory", super()._sync_directory)

    def _unlink(self, path: Path) -> None:
        remove = super()._unlink
        self._step("remove", lambda: remove(path))


def act(spec: Spec, report: Callable[[Event], None]) -> None:
    """Run a child's task: open, delete, or commit `count` epochs (None: until it is killed)."""
    if "limit" in spec:
        # Otherwise the limit kills the process instead of failing the write.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (spec["limit"], spec["limit"]))
    storage = KillingStorage(spec, report) if "fatal" in spec else LocalStorage(spec["root"])
    store = CheckpointStore(storage, keep=spec.get("keep", 1), run_id=spec.get("run_id"))
    if spec["do"] == "open":
        report({"run_id": store.open_run()})
    elif spec["do"] == "delete":
        store.delete()
    else:
        epoch, last = spec["first"], spec.get("count")
        while last is None or epoch < spec["first"] + last:
            commit(store, epoch, term=spec["term"], body=BODY * spec.get("times", 1))
            report({"committed": [spec["term"], epoch]})
            epoch += 1


def child(spec: Spec, sender: int, gate: int) -> None:
    def report(event: Event) -> None:
        os.write(sender, json.dumps(event).encode() + b"\n")

    os.read(gate, 1)
    try:
        act(spec, report)
    except StoreError as error:
        report({"error": type(error).__name__, "message": str(error), "path": error.path})
    except BaseException as error:  # noqa: BLE001 - the test shows any error
        report({"error": type(error).__name__, "message": str(error), "path": ""})


def run(specs: list[Spec]) -> list[Outcome]:
    """Fork a child for each spec, let all start at once, kill those that are to be killed, wait for all."""
    gate, gate_end = os.pipe()
    children = []
    for spec in specs:
        receiver, sender = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(gate_end)
            os.close(receiver)
            try:
                child(spec, sender, gate)
            finally:
                os._exit(0)
        os.close(sender)
        children.append((spec, pid, receiver))
    os.close(gate)
    os.close(gate_end)
    return [follow(spec, pid, receiver) for spec, pid, receiver in children]


def follow(spec: Spec, pid: int, receiver: int) -> Outcome:
    """Read a child's reports until it ends. Kill it `delay` seconds after its `reports`-th commit."""
    raw, deadline = b"", time.monotonic() + PATIENCE
    if spec.get("reports") == 0:
        deadline = time.monotonic() + spec["delay"]
    armed = spec.get("reports") == 0
    while True:
        if select.select([receiver], [], [], max(0.0, deadline - time.monotonic()))[0]:
            chunk = os.read(receiver, 65536)
            raw += chunk
            if not chunk:
                break
            if not armed and "reports" in spec and raw.count(b"committed") >= spec["reports"]:
                armed, deadline = True, time.monotonic() + spec["delay"]
        if time.monotonic() >= deadline:
            os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + PATIENCE
    os.close(receiver)
    status = os.waitpid(pid, 0)[1]
    events = [json.loads(line) for line in raw.splitlines(keepends=True) if line.endswith(b"\n")]
    return {"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, "events": events}


def serve() -> None:
    """Answer each line of specs with a line of outcomes."""
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run(json.loads(line))) + "\n")
        sys.stdout.flush()


# -------------------------------------------------------------------- in the tests


class ForkServer:
    """The server that forks the children."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.test_store_crash"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            text=True,
        )

    def begin(self, *specs: Spec) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(specs, default=str) + "\n")
        self._server.stdin.flush()

    def is_done(self) -> bool:
        assert self._server.stdout is not None
        return bool(select.select([self._server.stdout], [], [], 0)[0])

    def end(self) -> list[Outcome]:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert line, "the server of the children has exited"
        outcomes: list[Outcome] = json.loads(line)
        return outcomes

    def run(self, *specs: Spec) -> list[Outcome]:
        self.begin(*specs)
        return self.end()

    def close(self) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with suppress(BrokenPipeError):
            self._server.stdin.close()
        self._server.wait(PATIENCE)
        self._server.stdout.close()


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    fork_server = ForkServer()
    yield fork_server
    fork_server.close()


def collect(outcome: Outcome, key: str) -> list[Any]:
    return [event[key] for event in outcome["events"] if key in event]


def newest(root: Path) -> tuple[int, int]:
    """Return (term, epoch) of the newest checkpoint that verifies, (0, 0) if there is none."""
    found = CheckpointStore(root).latest()
    return (0, 0) if found is None else (found.header.term, found.position.epoch)


def partials(root: Path) -> list[str]:
    return [name for name in os.listdir(root) if name.startswith(".partial-")]


def empty(root: Path) -> None:
    root.mkdir()


def with_history(root: Path) -> None:
    """Make a run with three checkpoints of two terms, and partial files of crashed writers."""
    store = CheckpointStore(root, run_id="run", keep=3)
    for term, epoch in ((1, 1), (1, 2), (2, 3)):
        commit(store, epoch, term=term)
    (root / f".partial-{checkpoint_name(1, Position(3))}-aaaa").write_bytes(b"torn")
    (root / ".partial-run.json-aaaa").write_bytes(b"torn")


def without_run_file(root: Path) -> None:
    """Make a run whose `run.json` is lost."""
    with_history(root)
    (root / RUN_FILE).unlink()


@pytest.mark.parametrize(
    ("prepare", "keep", "at_least"),
    [(empty, 1, 55), (with_history, 1, 50), (with_history, 2, 50), (without_run_file, 2, 60)],
)
def test_a_kill_at_any_step_of_a_commit_leaves_the_last_committed_checkpoint(
    tmp_path: Path, fork_server: ForkServer, prepare: Callable[[Path], None], keep: int, at_least: int
) -> None:
    """The kill comes before, after or in the middle of each step of three commits."""
    prepare(tmp_path / "template")
    before = newest(tmp_path / "template")
    spec: Spec = {"do": "commit", "keep": keep, "term": 2, "first": 4, "count": 3}
    shutil.copytree(tmp_path / "template", tmp_path / "rehearsal")
    (rehearsal,) = fork_server.run({**spec, "root": tmp_path / "rehearsal", "fatal": None})
    steps = collect(rehearsal, "step")
    assert (rehearsal["signal"], newest(tmp_path / "rehearsal")) == (0, (2, 6))
    assert set(steps) == {"write", "sync", "publish", "sync directory", "remove"}

    kills = [
        (number, when)
        for number, step in enumerate(steps)
        for when in (("before", "half", "after") if step == "write" else ("before", "after"))
    ]
    for number, when in kills:
        root = tmp_path / f"{number}-{when}"
        shutil.copytree(tmp_path / "template", root)
        (outcome,) = fork_server.run({**spec, "root": root, "fatal": number, "when": when})
        # The kill happened at this step.
        assert outcome["signal"] == signal.SIGKILL
        assert outcome["events"][-1] == {"killed": steps[number], "when": when}
        # Each commit that was reported or renamed is there.
        reported = max(map(tuple, collect(outcome, "committed")), default=before)
        renamed = steps[:number].count("publish") + (steps[number] == "publish" and when == "after")
        found = newest(root)
        assert found >= reported
        assert found == ((2, 3 + renamed) if renamed else before), (number, when)
        # The next incarnation commits, and removes the leftovers.
        store = CheckpointStore(root, keep=keep)
        commit(store, 9, term=3)
        assert newest(root) == (3, 9)
        assert len(store.names()) <= keep
        assert partials(root) == []
        assert store.verify() == []
        shutil.rmtree(root)
    assert len(kills) >= at_least


def test_a_kill_at_any_step_of_a_delete_leaves_a_run_that_can_be_resumed_or_none(
    tmp_path: Path, fork_server: ForkServer
) -> None:
    """The newest checkpoint stays as long as any does."""
    with_history(tmp_path / "template")
    for number in range(100):
        root = tmp_path / str(number)
        shutil.copytree(tmp_path / "template", root)
        (outcome,) = fork_server.run({"do": "delete", "root": root, "fatal": number, "when": "after"})
        if not outcome["signal"]:
            assert not root.exists()
            break
        assert outcome["signal"] == signal.SIGKILL
        assert newest(root) == ((2, 3) if number < 4 else (0, 0))
        assert CheckpointStore(root).open_run()
    assert number == 6  # two checkpoints, two partial files, the newest checkpoint, the run's id


@pytest.mark.parametrize("keep", [1, 2])
def test_a_kill_at_any_instant_leaves_the_last_committed_checkpoint(
    tmp_path: Path, fork_server: ForkServer, keep: int
) -> None:
    """Sixty incarnations of one run are killed in turn, each at a random instant of its commits."""
    chance = random.Random(keep)
    reached, midway = (0, 0), 0
    for term in range(1, 61):
        spec: Spec = {"do": "commit", "root": tmp_path, "keep": keep, "fatal": None, "term": term, "first": term}
        (outcome,) = fork_server.run(
            {**spec, "times": 20, "reports": chance.randrange(3), "delay": chance.uniform(0.0, 0.008)}
        )
        assert outcome["signal"] == signal.SIGKILL
        assert not collect(outcome, "error"), outcome["events"][-1]
        reached = max([reached, *map(tuple, collect(outcome, "committed"))])
        found = newest(tmp_path)
        assert found >= reached
        assert found <= (term, term + len(collect(outcome, "committed")))
        midway += bool(outcome["events"]) and "step" in outcome["events"][-1]
        reached = found
    # The kills hit commits, not pauses between them.
    assert midway >= 30
    assert len(CheckpointStore(tmp_path).names()) <= keep + 2


def test_a_deposed_writer_that_goes_on_never_wins(tmp_path: Path, fork_server: ForkServer) -> None:
    """Two processes commit under two terms. The newer is killed, and its last commit is the newest checkpoint."""
    chance = random.Random(0)
    for number in range(20):
        root = tmp_path / str(number)
        common: Spec = {"do": "commit", "root": root, "keep": 1, "fatal": None}
        new, old = fork_server.run(
            {**common, "term": 2, "first": 1, "reports": 2, "delay": chance.uniform(0.0, 0.01)},
            {**common, "term": 1, "first": 1000},
        )
        assert new["signal"] == signal.SIGKILL
        assert collect(old, "error") == ["StaleTermError"], old["events"][-1]
        found = newest(root)
        assert found >= max(map(tuple, collect(new, "committed")))
        assert found[0] == 2


def test_a_reader_beside_a_writer_always_finds_the_newest_checkpoint(tmp_path: Path, fork_server: ForkServer) -> None:
    """While another process commits and prunes, each read finds a checkpoint, and none older than the last."""
    commit(CheckpointStore(tmp_path), 1, term=1)
    reader = CheckpointStore(tmp_path)
    fork_server.begin({"do": "commit", "root": tmp_path, "term": 1, "first": 2, "count": 300})
    seen = [1]
    while not fork_server.is_done():
        found, header = reader.latest(), reader.newest_header()
        assert found is not None
        assert header is not None
        assert header.epoch >= found.position.epoch >= seen[-1]
        seen.append(header.epoch)
    (outcome,) = fork_server.end()
    assert len(collect(outcome, "committed")) == 300
    assert newest(tmp_path) == (1, 301)
    assert len(set(seen)) > 20


def test_many_processes_that_start_at_once_agree_on_the_run(tmp_path: Path, fork_server: ForkServer) -> None:
    """One of twelve processes makes the id, the others read it, in each of ten directories."""
    for number in range(10):
        root = tmp_path / "made" / str(number)
        outcomes = fork_server.run(*[{"do": "open", "root": root}] * 12)
        ids = [run_id for outcome in outcomes for run_id in collect(outcome, "run_id")]
        assert len(ids) == 12, outcomes
        assert set(ids) == {CheckpointStore(root).read_run_id()}
        assert os.listdir(root) == [RUN_FILE]


# -------------------------------------------------------------------- full and read-only disks


@pytest.mark.parametrize("limit", [0, 1, 100, 300, 4000, 4200])
def test_a_file_size_limit_fails_the_commit_and_nothing_else(
    tmp_path: Path, fork_server: ForkServer, limit: int
) -> None:
    """The kernel cuts the write short at 0 bytes, in the header, and in the body."""
    commit(CheckpointStore(tmp_path), 1, term=1)
    before = sorted(os.listdir(tmp_path))
    spec: Spec = {"do": "commit", "root": tmp_path, "term": 1, "first": 2, "count": 1}
    (outcome,) = fork_server.run({**spec, "limit": limit})
    (event,) = outcome["events"]
    assert (outcome["signal"], event["error"]) == (0, "StoreError")
    assert event["path"] == str(tmp_path / checkpoint_name(1, Position(2)))
    assert event["path"] in event["message"]
    assert "File too large" in event["message"]
    assert sorted(os.listdir(tmp_path)) == before
    assert newest(tmp_path) == (1, 1)
    (outcome,) = fork_server.run(spec)
    assert newest(tmp_path) == (1, 2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 256 kB."""
    root = tmp_path / "disk"
    root.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(root)]
    if not mounted or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no right to mount; the file size limit covers the full disk")
    yield root
    subprocess.run(["umount", str(root)], check=True)


def test_a_full_disk_fails_the_commit_and_nothing_else(small_disk: Path) -> None:
    """The previous checkpoint stays, the partial file is removed, the run opens, and with room it commits again."""
    root = small_disk / "backup"
    store = CheckpointStore(root)
    commit(store, 1, term=1)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    with pytest.raises(StoreError, match="No space left on device") as caught:
        commit(store, 2, term=1)
    assert caught.value.path == str(root / checkpoint_name(1, Position(2)))
    assert partials(root) == []
    again = CheckpointStore(root)
    assert again.open_run() == store.open_run()
    assert newest(root) == (1, 1)
    with pytest.raises(StoreError):
        commit(again, 2, term=1)
    filler.unlink()
    commit(store, 2, term=1)
    assert newest(root) == (1, 2)


def test_what_a_crashed_writer_left_makes_room_for_the_next(small_disk: Path) -> None:
    """If partial files fill the disk, the next commit removes them and succeeds."""
    store = CheckpointStore(small_disk)
    commit(store, 1, term=1)
    torn = small_disk / f".partial-{checkpoint_name(1, Position(2))}-aaaa"
    with torn.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    assert torn.exists()
    commit(store, 2, term=2)
    assert newest(small_disk) == (2, 2)
    assert partials(small_disk) == []


def test_a_read_only_disk_can_be_restored_from(small_disk: Path) -> None:
    """A commit fails and names the path. Opening the run and reading succeed."""
    commit(CheckpointStore(small_disk), 1, term=1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    store = CheckpointStore(small_disk)
    assert store.open_run()
    with pytest.raises(StoreError, match="Read-only file system") as caught:
        commit(store, 2, term=1)
    assert caught.value.path == str(small_disk / checkpoint_name(1, Position(2)))
    assert newest(small_disk) == (1, 1)
    with pytest.raises(StoreError, match="Read-only file system"):
        store.delete()
    with pytest.raises(StoreError, match="Read-only file system") as caught:
        CheckpointStore(small_disk / "new").open_run()
    assert caught.value.path == str(small_disk / "new")
    assert newest(small_disk) == (1, 1)


if __name__ == "__main__":
    serve()
