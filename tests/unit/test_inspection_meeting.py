"""Two processes that test a storage together find each fault of it. Two threads play the processes here."""

from __future__ import annotations

import fcntl
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, override

import pytest

from distributed_backup.coordination import file as file_coordinator
from distributed_backup.errors import StoreError
from distributed_backup.inspection import meeting, pairs, party
from distributed_backup.inspection.finding import Finding
from distributed_backup.inspection.meeting import Appends, Names, Replaces, exchange
from distributed_backup.inspection.other_process import OtherProcess
from distributed_backup.inspection.pairs import NotMetError, checks_with_machine, checks_with_process
from distributed_backup.inspection.party import Party, TalkError
from distributed_backup.storage.base import Chunks
from distributed_backup.storage.base import Names as ListedNames
from distributed_backup.storage.local import LocalStorage
from tests.support.check_names import OF_PAIRS

OF_TWO = [*OF_PAIRS, "file lock"]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other tests is no finding."""
    monkeypatch.setattr(meeting, "_SOON", 20.0)


def findings(first: LocalStorage, second: LocalStorage) -> dict[str, Finding]:
    """Perform all exercises in two threads. Both come to the same findings, except where one failed itself."""
    first.prepare()

    def side(storage: LocalStorage, first: bool) -> list[Finding]:
        return list(exchange(Party(storage, prefix="x.", first=first)))

    with ThreadPoolExecutor(2) as pool:
        found, other = pool.map(side, (first, second), (True, False))
    assert [each.name for each in found] == [each.name for each in other]
    assert [each.status for each in found] == [each.status for each in other]
    return {each.name: each for each in found}


def only_danger(found: dict[str, Finding]) -> Finding:
    """Return the one danger. It has an advice."""
    [danger] = [each for each in found.values() if each.status != "ok"]
    assert danger.status == "danger"
    assert danger.advice
    return danger


def test_a_sound_directory_passes_all_exercises(tmp_path: Path) -> None:
    found = findings(LocalStorage(tmp_path), LocalStorage(tmp_path))
    assert list(found) == OF_TWO
    assert {each.status for each in found.values()} == {"ok"}
    assert {each.advice for each in found.values()} == {""}


# -------------------------------------------------------------------- faults of a storage


class CreatesAlways(LocalStorage):
    """A store that ignores the condition of a create."""

    @override
    def create(self, name: str, data: bytes = b"") -> bool:
        self.put(name, [data])
        return True


def test_a_name_that_both_create_is_found(tmp_path: Path) -> None:
    danger = only_danger(findings(CreatesAlways(tmp_path), CreatesAlways(tmp_path)))
    assert danger.name == "exclusive create, two processes"
    assert danger.found == "50 of 50 names were created by both processes"


class OverwritesWhenRefused(LocalStorage):
    """A store that refuses a create and writes the bytes."""

    @override
    def create(self, name: str, data: bytes = b"") -> bool:
        made = super().create(name, data)
        if not made and data:
            self.put(name, [data])
        return made


def test_a_refused_create_that_writes_is_found(tmp_path: Path) -> None:
    danger = only_danger(findings(OverwritesWhenRefused(tmp_path), OverwritesWhenRefused(tmp_path)))
    assert danger.found == "of 50 names, some hold the bytes of the process that was refused"


class Reader(LocalStorage):
    """Notes that it has read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.has_read = threading.Event()

    @override
    def read(self, name: str) -> bytes:
        try:
            return super().read(name)
        finally:
            self.has_read.set()


class WritesInPlace(LocalStorage):
    """A storage whose replacement has two steps. Between them, the other process reads."""

    def __init__(self, root: Path, reader: Reader, *, removes: bool) -> None:
        super().__init__(root)
        self._reader = reader
        self._removes = removes

    @override
    def put(self, name: str, chunks: Chunks, *, new: bool = False, durable: bool = True) -> None:
        path = self.root / name
        if "replaced" not in name or not path.exists():
            super().put(name, chunks, durable=durable)
            return
        data = b"".join(chunks)
        if self._removes:
            path.unlink()
        else:
            path.write_bytes(data[: len(data) // 2])
        self._reader.has_read.clear()
        assert self._reader.has_read.wait(30.0)
        super().put(name, chunks, durable=durable)


@pytest.mark.parametrize(("removes", "said"), [(False, "had bytes of two versions"), (True, "found no file")])
def test_a_replacement_in_two_steps_is_found(tmp_path: Path, removes: bool, said: str) -> None:
    reader = Reader(tmp_path)
    danger = only_danger(findings(WritesInPlace(tmp_path, reader, removes=removes), reader))
    assert danger.name == "replace, seen by a reader"
    assert said in danger.found


class ReadsOld(LocalStorage):
    """A store that shows an earlier version now and then."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._first: bytes | None = None
        self._reads = itertools.count()

    @override
    def read(self, name: str) -> bytes:
        data = super().read(name)
        if "replaced" not in name:
            return data
        self._first = self._first or data
        return self._first if next(self._reads) % 2 else data


def test_an_older_version_after_a_newer_one_is_found(tmp_path: Path) -> None:
    danger = only_danger(findings(LocalStorage(tmp_path), ReadsOld(tmp_path)))
    assert "showed an older version than the read before" in danger.found


class ListsOnce(LocalStorage):
    """A client that keeps its first listing."""

    _listed: ListedNames | None = None

    @override
    def names(self) -> ListedNames:
        self._listed = self._listed if self._listed is not None else super().names()
        return self._listed


def test_a_listing_that_never_changes_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "_LATEST", 0.1)
    danger = only_danger(findings(LocalStorage(tmp_path), ListsOnce(tmp_path)))
    assert danger.name == "names are seen"
    assert danger.found.startswith("a file that was written was not seen so")


@pytest.mark.parametrize(
    ("waits", "status", "said"),
    [
        ([0.1, 0.2, 0.3], "ok", "after 300 ms at most"),
        ([31.0, 0.2, 0.3], "warning", "after 31 s at most: a file that was written"),
        ([0.1, None, 0.3], "danger", "a file that was replaced was not seen"),
    ],
)
def test_late_names_are_a_warning_and_missing_ones_a_danger(waits: list[Any], status: str, said: str) -> None:
    outcome = Names().judge({}, {"waits": waits})
    assert (outcome.status, said in outcome.found) == (status, True)


class HidesAppends(LocalStorage):
    """A storage that shows the first append of the other's log only, or zeros in place of it."""

    def __init__(self, root: Path, instead: bytes | None = None) -> None:
        super().__init__(root)
        self._instead = instead

    @override
    def read_from(self, name: str, offset: int, limit: int) -> bytes:
        data = super().read_from(name, offset, limit)
        return data if offset == 0 else (self._instead or b"")


@pytest.mark.parametrize(
    ("instead", "said"),
    [
        (None, "no bytes of the other process were seen within 0.5 s"),
        (b"\0\0\n", "other bytes than the other process appended were read"),
    ],
)
def test_appends_that_are_hidden_or_other_bytes_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instead: bytes | None, said: str
) -> None:
    monkeypatch.setattr(party, "_PATIENCE", 0.5)
    tmp_path.mkdir(exist_ok=True)
    found = findings(LocalStorage(tmp_path), HidesAppends(tmp_path, instead))
    assert list(found) == ["append is seen"]
    assert "bytes" in only_danger(found).found
    side = Party(HidesAppends(tmp_path, instead), prefix="y.", first=False)
    LocalStorage(tmp_path).append("y.a.log", b"{}\n", at=0)
    assert side.hear() == {}
    LocalStorage(tmp_path).append("y.a.log", b"{}\n", at=3)
    with pytest.raises(TalkError, match=said):
        side.hear()


@pytest.mark.parametrize(
    ("offset", "seconds", "status", "said"),
    [
        (0.5, 0.01, "ok", "after 10 ms"),
        (-3.0, 0.01, "warning", "the two clocks differ by 3.0 s or more"),
        (30.0, 29.5, "warning", "after 29.5 s"),
    ],
)
def test_clocks_that_differ_and_slow_appends_are_warnings(
    offset: float, seconds: float, status: str, said: str
) -> None:
    """A difference counts if it is larger than what the messages took."""
    outcome = Appends().judge({"seconds": seconds, "offset": offset, "doubt": seconds}, {})
    assert (outcome.status, said in outcome.found) == (status, True)


def test_an_error_of_one_ends_the_exercises_of_both(tmp_path: Path) -> None:
    """The other one need not wait until its patience ends."""

    class Refuses(LocalStorage):
        @override
        def create(self, name: str, data: bytes = b"") -> bool:
            raise StoreError("can't write it: Operation not permitted", path=name)

    found = findings(LocalStorage(tmp_path), Refuses(tmp_path))
    assert list(found) == OF_TWO[:2]
    assert only_danger(found).found == "can't write it: Operation not permitted"


def test_a_read_that_fails_while_a_file_is_replaced_is_a_warning(tmp_path: Path) -> None:
    """As on NFS, where another client may have a handle of the file that is gone."""

    class Stale(LocalStorage):
        _reads = 0

        @override
        def read(self, name: str) -> bytes:
            self._reads += "replaced" in name
            if self._reads == 2 and "replaced" in name:
                raise StoreError("can't read it: Stale file handle", path=name)
            return super().read(name)

    [warning] = [each for each in findings(LocalStorage(tmp_path), Stale(tmp_path)).values() if each.status != "ok"]
    assert (warning.status, warning.name) == ("warning", "replace, seen by a reader")
    assert "failed (can't read it: Stale file handle)" in warning.found


def test_a_writer_that_ends_early_ends_the_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine may have been switched off."""
    monkeypatch.setattr(party, "_PATIENCE", 0.2)

    class Bounded(LocalStorage):
        reads = itertools.count()

        @override
        def read(self, name: str) -> bytes:
            assert next(self.reads) < 100_000
            return super().read(name)

    storage = Bounded(tmp_path)
    writer, reader = (Party(storage, prefix="x.", first=first) for first in (True, False))
    storage.put("x.replaced", [meeting._version(0)])
    writer.say(there=True)
    with pytest.raises(TalkError, match="If its check was interrupted, repeat it"):
        Replaces().second(reader)


def test_another_machine_whose_check_was_interrupted_says_nothing_about_the_place(tmp_path: Path) -> None:
    """It has removed all files of the two."""
    storage = LocalStorage(tmp_path)
    one, other = (Party(storage, prefix="x.", first=first) for first in (True, False))
    one.say(ping=0)
    other.hear()
    one.tidy()
    [finding] = [each for each in exchange(other) if each.status != "ok"]
    assert (finding.status, "was interrupted" in finding.found) == ("unknown", True)


# -------------------------------------------------------------------- faults of locks


def test_a_lock_that_excludes_no_process_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    danger = only_danger(findings(LocalStorage(tmp_path), LocalStorage(tmp_path)))
    assert (danger.name, danger.found) == ("file lock", "two processes held one lock at the same time")


def test_a_lock_that_can_not_be_taken_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert only_danger(findings(LocalStorage(tmp_path), LocalStorage(tmp_path))).name == "file lock"


def test_a_file_whose_inode_changes_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some FUSE file systems number a file anew at each look."""
    numbers = itertools.count()
    monkeypatch.setattr(file_coordinator, "_inode_at", lambda _: (0, next(numbers)))
    danger = only_danger(findings(LocalStorage(tmp_path), LocalStorage(tmp_path)))
    assert "lost its lock while it held it" in danger.found


def test_a_lock_that_outlives_its_process_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process goes on here, in place of a kernel that keeps the lock."""
    monkeypatch.setattr(pairs, "_FREED_WITHIN", 0.2)
    kill, spared = OtherProcess.kill, []

    def spare(self: OtherProcess) -> None:
        spared.append(self)

    monkeypatch.setattr(OtherProcess, "kill", spare)
    checks = checks_with_process(LocalStorage(tmp_path), str(tmp_path))
    *others, last = itertools.islice(checks, len(OF_TWO) + 1)
    kill(spared[0])
    assert {each.status for each in others} == {"ok"}
    assert last.status == "danger"
    assert "still held 0.2 s after its holder was killed" in last.found


# -------------------------------------------------------------------- who takes part


def test_a_second_process_that_ends_says_nothing_about_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its program is missing here."""
    monkeypatch.setattr("sys.executable", "/bin/false")
    [finding] = checks_with_process(LocalStorage(tmp_path), str(tmp_path))
    assert (finding.status, finding.found) == ("unknown", "the second process of this test has ended early")


def test_the_second_process_takes_no_module_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "orjson.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    assert {each.status for each in checks_with_process(LocalStorage(tmp_path), str(tmp_path))} == {"ok"}


@pytest.fixture
def greeting(tmp_path: Path) -> Path:
    """A place where a killed process has left a greeting."""
    place = tmp_path / "meeting"
    place.mkdir()
    (place / "0123.greeting").write_text("killed")
    return place


def test_two_machines_meet_and_a_killed_one_is_not_met(greeting: Path) -> None:
    """Both have the same findings, with the other's name, and only the old greeting is left."""
    with ThreadPoolExecutor(2) as pool:
        sides = [pool.submit(lambda: list(checks_with_machine(LocalStorage(greeting), wait=30.0))) for _ in range(2)]
        one, other = (side.result() for side in sides)
    assert one == other
    assert [each.name.partition(", with ")[0] for each in one] == OF_TWO
    assert {each.status for each in one} == {"ok"}
    assert [path.name for path in greeting.iterdir()] == ["0123.greeting"]


def test_a_lock_that_excludes_no_other_machine_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is documented to exclude on one machine only, and most runs of several are led over a server."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    place = LocalStorage(tmp_path / "meeting")
    with ThreadPoolExecutor(2) as pool:
        sides = [pool.submit(lambda: list(checks_with_machine(place, wait=30.0))) for _ in range(2)]
        one, other = (side.result() for side in sides)
    assert one == other
    assert [each.status for each in one] == ["ok"] * 4 + ["warning"]
    assert "for the workers of one machine" in one[-1].advice


def test_who_meets_no_other_is_told_what_to_do(greeting: Path) -> None:
    with pytest.raises(NotMetError, match=r"no other machine was met in .* within 0.2 s: start this command on both"):
        list(checks_with_machine(LocalStorage(greeting), wait=0.2))
    assert [path.name for path in greeting.iterdir()] == ["0123.greeting"]


@pytest.mark.parametrize(("step", "written"), [("prepare", 1), ("put", 1), ("put", 2)])
def test_ctrl_c_right_after_a_step_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, written: int
) -> None:
    """The second file of a machine is its answer to a greeting."""
    place, real, left = LocalStorage(tmp_path / "meeting"), getattr(LocalStorage, step), itertools.count(1)
    if written == 2:
        place.prepare()
        place.put("0123.greeting", [b"other"])

    def interrupted(storage: LocalStorage, *arguments: Any, **named: Any) -> None:
        real(storage, *arguments, **named)
        if next(left) == written:
            raise KeyboardInterrupt

    monkeypatch.setattr(LocalStorage, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(checks_with_machine(place, wait=30.0))
    assert [path.name for path in tmp_path.rglob("*.*")] == ["0123.greeting"] * (written == 2)
    assert place.exists() == (written == 2)
