"""A run's directory that a hostile user can write to: links to files outside, names that lead outside, escape codes."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest

from distributed_backup.checkpoints.format import checkpoint_name
from distributed_backup.checkpoints.journal_format import Link, segment_name
from distributed_backup.checkpoints.run_identity import RUN_FILE
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.cli.copy_run import copy_run
from distributed_backup.coordination.file import FileCoordinator
from distributed_backup.errors import BackupError, ConfigError, StoreError
from distributed_backup.observability.events import Event
from distributed_backup.position import Position
from distributed_backup.storage.local import LocalStorage
from tests.fuzz.corpus import header_with
from tests.support.cli_runs import assert_refused, call, commit
from tests.support.file_coordinators import beat, notice
from tests.support.segments import answer, write_journal, write_segment
from tests.support.stores import snapshot

ESCAPE = "\x1b[2J\x07\x9b31m\u202e"
OUTSIDE = b"not of the run\n"
PATHS = ("../outside", "/etc/passwd", "..", "a/../../outside", "..\\outside", "a\0b", "")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "outside"
    path.write_bytes(OUTSIDE)
    return path


# -------------------------------------------------------------------- links to files outside


def test_nothing_is_written_through_a_link(run: Path, outside: Path) -> None:
    """A commit, an append, a claim, a copy and the end of a run replace or refuse the link."""
    names = (checkpoint_name(3, Position(2)), segment_name(3, Position(2)), "0000000003.term", "events-x")
    for name in names:
        (run / name).symlink_to(outside)
    storage = LocalStorage(run)
    storage.put("events-x", [b"new"])
    with pytest.raises(StoreError, match="can't append to"):
        storage.append(names[1], b"new", at=3)
    assert not storage.create(names[2], b"new")
    store = CheckpointStore(run, run_id="job-42", keep=1)
    store.open_run()
    store.commit(snapshot(2), term=3, worker_id="w-1")
    assert outside.read_bytes() == OUTSIDE
    store.delete()
    assert outside.read_bytes() == OUTSIDE


def test_a_copy_writes_through_no_link_at_its_target(run: Path, tmp_path: Path, outside: Path) -> None:
    source = CheckpointStore(run, run_id="job-42")
    write_journal(source)
    target = tmp_path / "target"
    target.mkdir()
    for name in [*os.listdir(run), f"{max(source.names())[:10]}.term"]:
        (target / name).symlink_to(outside)
    with suppress(BackupError):
        copy_run(source, CheckpointStore(target, run_id="job-42"))
    assert outside.read_bytes() == OUTSIDE


def test_a_coordinator_writes_through_no_link(tmp_path: Path, outside: Path) -> None:
    """Its records are replaced, and its lock is no file of another."""
    root = tmp_path / "coordinator"
    coordinator = FileCoordinator(root)
    beat(coordinator, "a")
    coordinator.notify(notice("n"))
    coordinator.leave("a")
    files = [path for path in root.rglob("*") if path.is_file()]
    assert len(files) > 1
    for path in files:
        path.unlink()
        path.symlink_to(outside)
    for call_it in (
        lambda: beat(FileCoordinator(root), "a"),
        lambda: coordinator.notify(notice("n")),
        lambda: coordinator.leave("a"),
        coordinator.erase,
    ):
        with suppress(BackupError):
            call_it()
    assert outside.read_bytes() == OUTSIDE


def test_a_checkpoint_that_a_link_leads_to_is_of_its_own_name_and_run(run: Path, tmp_path: Path) -> None:
    """A link may lead to another disk. It can't make a checkpoint newer than it is."""
    older = next(path for path in sorted(run.iterdir()) if path.suffix == ".ckpt")
    moved = older.rename(tmp_path / "moved")
    older.symlink_to(moved)
    (run / checkpoint_name(9, Position(9))).symlink_to(moved)
    rows = {row.name: row.valid for row in CheckpointStore(run, run_id="job-42").list()}
    assert rows[older.name]
    assert not rows[checkpoint_name(9, Position(9))]


# -------------------------------------------------------------------- names that lead outside


@pytest.mark.parametrize("path", PATHS)
def test_no_name_leads_outside(run: Path, path: str) -> None:
    """Names come from listings, headers, links between segments, announcements, arguments and ids."""
    store = CheckpointStore(run, run_id="job-42")
    with pytest.raises(StoreError, match="is not the name of a checkpoint"):
        store.load(path)
    with pytest.raises(ConfigError, match="want the name of a segment"):
        Link(name=path, end=1)
    for kind in ("run_id", "worker_id"):
        with pytest.raises(ConfigError):
            CheckpointStore(run, run_id=path) if kind == "run_id" else beat(FileCoordinator(run), path)
    if "\0" not in path:
        assert_refused(call("checkpoints", "show", run, path or "x"), 2, "is not the name of a checkpoint")


def test_the_id_in_a_file_leads_nowhere(run: Path) -> None:
    (run / RUN_FILE).write_text('{"run_id":"../../x"}')
    with pytest.raises(StoreError, match="is damaged"):
        CheckpointStore(run).open_run()


# -------------------------------------------------------------------- escape codes


def hostile(run: Path) -> None:
    """Put escape codes into each text that commands print."""
    store = CheckpointStore(run, run_id="job-42", keep=9)
    raw = header_with(created_at=json.dumps(ESCAPE).encode(), worker_id=b'"w-1"')
    (run / checkpoint_name(2, Position(1, 3))).write_bytes(raw)
    commit(store, 3, Position(2), raw.partition(b"\n")[2][:-1])
    write_segment(
        store.storage, (3, Position(2)), [answer(1, b'{"text":"\x1b[2J"}')], digests={"random": ESCAPE, ESCAPE: "x"}
    )
    at = "2026-11-29T00:00:00+00:00"
    event = {"at": at, "worker": ESCAPE, "event": "lost", "term": 1, "reason": ESCAPE}
    assert Event.from_line(json.dumps(event).encode())
    (run / "events-20261129T000000Z-w.jsonl").write_text(json.dumps(event) + "\n")
    coordinator = FileCoordinator(run / "coordinator")
    beat(coordinator, "a", campaign=False, duration=1e6)
    members = run / "coordinator" / "members"
    record = json.loads((members / "a.json").read_bytes())
    for name in (f"w{ESCAPE}", "w\nx", os.fsdecode(b"w\xff")):
        (members / f"{name}.json").write_text(json.dumps({**record, "role": ESCAPE}))
    fields = {"worker_id": ESCAPE, "reason": ESCAPE, "wish": "save", "since": 0.0, "until": 1e12}
    (run / "coordinator" / "notices").mkdir(exist_ok=True)
    (run / "coordinator" / "notices" / "n.json").write_text(json.dumps(fields))
    for name in (f"{ESCAPE}.ckpt", "a\nb.journal", os.fsdecode(b"\xff.term")):
        (run / name).touch()


COMMANDS = (
    *(("status",), ("checkpoints", "list"), ("checkpoints", "verify"), ("checkpoints", "show")),
    *(("journal", "show"), ("journal", "show", "--answers"), ("journal", "verify"), ("events",)),
)


@pytest.mark.parametrize("as_json", [False, True], ids=["for people", "json"])
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_no_command_prints_an_escape_code(run: Path, words: tuple[str, ...], *, as_json: bool) -> None:
    """Codes could hide lines of a terminal, or write into it."""
    hostile(run)
    result = call(*words, run, *["--json"] * as_json)
    assert result.output
    odd = {letter for letter in result.output if not letter.isprintable() and letter != "\n"}
    assert odd == set()
    assert not as_json or json.loads(result.stdout) is not None
