"""Appends: failing steps and planted files in a directory, file servers, and how parts make up a file."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.registry import register_implementation

from distributed_backup.errors import StoreError
from distributed_backup.storage.base import PARTIAL, Storage
from distributed_backup.storage.local import LocalStorage
from distributed_backup.storage.object_store import ObjectStorage
from distributed_backup.storage.parts import Part, cut, length_of, part_name, parts_of, pieces_of, whole_names
from distributed_backup.storage.redis import RedisStorage
from tests.unit.test_storage_urls import FileServer

STEPS = ("_cut", "_write", "_sync", "_publish", "_sync_directory")

# -------------------------------------------------------------------- a directory


class Failing(LocalStorage):
    """Reports each step, and fails at one of them as a disk does. `failing` is its name and its errno."""

    def __init__(self, root: Path, failing: tuple[str, int] | None = None) -> None:
        super().__init__(root)
        self.failing = failing
        self.steps: list[str] = []

    def _note(self, step: str) -> None:
        self.steps.append(step)
        if self.failing is not None and self.failing[0] == step:
            raise OSError(self.failing[1], os.strerror(self.failing[1]))

    def _cut(self, descriptor: int, size: int) -> None:
        self._note("_cut")
        super()._cut(descriptor, size)

    def _write(self, descriptor: int, chunk: bytes | memoryview) -> None:
        if self.failing is not None and self.failing[0] == "_write":
            super()._write(descriptor, chunk[: len(chunk) // 2])
        self._note("_write")
        super()._write(descriptor, chunk)

    def _sync(self, descriptor: int) -> None:
        self._note("_sync")
        super()._sync(descriptor)

    def _publish(self, partial: Path, path: Path) -> None:
        self._note("_publish")
        super()._publish(partial, path)

    def _sync_directory(self) -> None:
        self._note("_sync_directory")
        super()._sync_directory()


def test_an_append_is_durable_when_it_returns(tmp_path: Path) -> None:
    """The bytes are synced after they are written, and the name of a new file after it is made."""
    storage = Failing(tmp_path)
    storage.append("a", b"one", at=0)
    assert storage.steps == ["_write", "_sync", "_publish", "_sync_directory"]
    storage.steps.clear()
    storage.append("a", b"two", at=3)
    assert storage.steps == ["_write", "_sync"]
    storage.steps.clear()
    storage.append("a", b"TWO", at=3)
    assert storage.steps == ["_cut", "_write", "_sync"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_failed_append_leaves_the_earlier_bytes_and_may_be_repeated(tmp_path: Path, step: str, number: int) -> None:
    """The error names path and reason."""
    failing, storage = Failing(tmp_path, (step, number)), LocalStorage(tmp_path)
    at = 0 if step in {"_publish", "_sync_directory"} else 3
    if at:
        storage.append("a", b"one", at=0)
        storage.append("a", b"a longer attempt that failed", at=3)
    with pytest.raises(StoreError, match=os.strerror(number)) as caught:
        failing.append("a", b"two", at=at)
    assert failing.steps[-1] == step
    assert caught.value.path == str(tmp_path / "a")
    if at:
        assert storage.read("a").startswith(b"one")
    assert all(not name.startswith(PARTIAL) for name in storage.names())
    failing.failing = None
    failing.append("a", b"two", at=at)
    assert storage.read("a") == b"one"[:at] + b"two"


def test_an_append_writes_nothing_through_a_planted_link(tmp_path: Path) -> None:
    """It would change a file elsewhere. A new file replaces the link, as `put` does."""
    target = tmp_path / "target"
    target.write_bytes(b"untouched")
    storage = LocalStorage(tmp_path / "run")
    storage.prepare()
    (tmp_path / "run" / "a").symlink_to(target)
    with pytest.raises(StoreError, match=r"can't append to .*/a: Too many levels of symbolic links"):
        storage.append("a", b"x", at=3)
    storage.append("a", b"new", at=0)
    storage.append("a", b"er", at=3)
    assert target.read_bytes() == b"untouched"
    assert storage.read("a") == b"newer"


def without_hanging(call: Callable[[], Any]) -> StoreError:
    """Return the error of a call that must not wait for the other end of a pipe."""
    errors: list[StoreError] = []

    def run() -> None:
        try:
            call()
        except StoreError as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30.0)
    assert errors, "the call hangs or succeeds"
    return errors[0]


def test_a_pipe_of_the_name_does_not_hang_a_worker(tmp_path: Path) -> None:
    """With and without another process at its end. A directory of the name is refused as well."""
    storage = LocalStorage(tmp_path)
    os.mkfifo(tmp_path / "a")
    uses: list[Callable[[], Any]] = [lambda: storage.append("a", b"x", at=1), lambda: storage.read_from("a", 0, 9)]
    for use in uses:
        without_hanging(use)
    end = os.open(tmp_path / "a", os.O_RDWR)
    try:
        for use in uses:
            assert "it is no regular file" in str(without_hanging(use))
        os.set_blocking(end, False)
        with pytest.raises(BlockingIOError):
            os.read(end, 1)
    finally:
        os.close(end)
    (tmp_path / "a").unlink()
    (tmp_path / "a").mkdir()
    for use in (*uses, lambda: storage.append("a", b"x", at=0)):
        assert "can't" in str(without_hanging(use))


def test_a_missing_directory_is_not_made_by_an_append(tmp_path: Path) -> None:
    """The last worker out has removed it, and the run must not begin again."""
    storage = LocalStorage(tmp_path / "run")
    storage.prepare()
    storage.append("a", b"one", at=0)
    (tmp_path / "run" / "a").unlink()
    (tmp_path / "run").rmdir()
    for at in (0, 3):
        with pytest.raises(StoreError, match="No such file or directory") as caught:
            storage.append("a", b"two", at=at)
        assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("mode", "wanted"), [(0o700, 0o600), (0o2770, 0o660)])
def test_an_appended_file_has_the_access_of_its_directory(tmp_path: Path, mode: int, wanted: int) -> None:
    """As the other files of the run."""
    tmp_path.chmod(mode)
    storage = LocalStorage(tmp_path)
    storage.append("a", b"one", at=0)
    storage.append("a", b"two", at=3)
    assert (tmp_path / "a").stat().st_mode & 0o777 == wanted


# -------------------------------------------------------------------- a file server


def test_an_append_to_a_file_server_that_is_cut_off_may_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clients write in place, so half of an append must not get a name that counts."""
    register_implementation("fileserver", FileServer, clobber=True)
    storage = ObjectStorage(f"fileserver://{tmp_path}/run", limit=5.0)
    storage.prepare()
    storage.append("a", b"one", at=0)
    monkeypatch.setattr(FileServer, "cut_off", True)
    with pytest.raises(StoreError, match=r"can't append to .*: connection lost"):
        storage.append("a", b"two", at=3)
    assert storage.read("a") == b"one"
    monkeypatch.setattr(FileServer, "cut_off", False)
    storage.append("a", b"two", at=3)
    other = ObjectStorage(f"fileserver://{tmp_path}/run", limit=5.0)
    assert (other.names(), other.read_from("a", 2, 2)) == (["a"], b"et")
    other.remove("a")
    assert list((tmp_path / "run").iterdir()) == []


def test_files_that_were_written_as_a_whole_do_not_grow_in_an_object_store() -> None:
    """The bytes would be lost without an error, because the whole file is the one that is read."""
    storage: Storage = ObjectStorage("memory://appends/whole", limit=5.0)
    storage.put("a", [b"whole"])
    for at in (0, 5):
        with pytest.raises(StoreError, match="can't append to memory://appends/whole/a: ") as caught:
            storage.append("a", b"x", at=at)
        assert isinstance(caught.value.__cause__, FileExistsError)
    assert (storage.names(), storage.read("a")) == (["a"], b"whole")


def test_a_file_that_gets_shorter_during_a_read_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was replaced after the listing. Bytes of two states must not be joined."""
    storage = ObjectStorage("memory://appends/shorter", limit=5.0)
    storage.append("a", b"one", at=0)
    pieces = storage._pieces("a")
    assert pieces is not None
    monkeypatch.setattr(storage, "_pieces", lambda _: [piece._replace(end=piece.end + 1) for piece in pieces])
    with pytest.raises(StoreError, match=r"can't read .*/a: a\.part-.* changed during the read") as caught:
        storage.read_from("a", 0, 10)
    assert caught.value.retryable


def test_appends_are_paced_where_each_is_billed() -> None:
    """The caller waits that many seconds between two."""
    assert (LocalStorage.append_interval, RedisStorage.append_interval) == (0.0, 0.0)
    assert ObjectStorage.append_interval == 1.0


# -------------------------------------------------------------------- parts


def content(parts: dict[str, bytes], name: str = "a") -> bytes | None:
    """Return the content of a file, as it follows from what is stored."""
    pieces = pieces_of(parts_of(name, {stored: len(data) for stored, data in parts.items()}))
    if pieces is None:
        return None
    assert all(piece.size >= 0 for piece in pieces)
    whole = b"".join(parts[piece.stored][piece.start : piece.end] for piece in pieces)
    assert length_of(pieces) == len(whole)
    for start in range(len(whole) + 1):
        chosen = cut(pieces, start, start + 5)
        assert all(piece.size > 0 for piece in chosen), "stores refuse a range of no bytes"
        assert b"".join(parts[each.stored][each.start : each.end] for each in chosen) == whole[start : start + 5]
    return whole


@pytest.mark.parametrize("seed", range(200))
def test_parts_make_the_file_of_the_appends_that_returned(seed: int) -> None:
    """Whatever becomes of those that failed: lost, stored, or stored after all that follow them."""
    chance = random.Random(seed)
    stored: dict[str, bytes] = {}
    late: dict[str, bytes] = {}
    wanted, floor = b"", 0
    for number in range(1, 12):
        at = 0 if number == 1 else chance.choice([floor, floor, chance.randint(0, floor)])
        data = bytes([number]) * chance.randint(0, 6)
        fate = "stored" if number in {1, 11} else chance.choice(["stored", "stored", "unanswered", "late", "lost"])
        if fate in {"stored", "unanswered"}:
            stored[part_name("a", number, at)] = data
        elif fate == "late":
            late[part_name("a", number, at)] = data
        floor = at
        if fate == "stored":
            wanted = wanted[:at] + data
            floor = len(wanted)
            assert content(stored) == wanted
            assert content({**late, **stored}) == wanted
        else:
            wanted = wanted[:at]
            found = content({**stored, **late})
            assert found is not None
            assert found.startswith(wanted)


def test_a_file_without_its_first_part_is_missing() -> None:
    """Its other parts are still listed, so that they can be removed."""
    parts = {part_name("a", 2, 3): b"two", part_name("a", 3, 0)[:-1]: b"x"}
    assert content(parts) is None
    assert whole_names(parts) == ["a", part_name("a", 3, 0)[:-1]]


def test_a_part_behind_the_end_does_not_count() -> None:
    """The part before it was removed, and its bytes would stand at a wrong offset."""
    parts = {part_name("a", 1, 0): b"one", part_name("a", 3, 6): b"three", part_name("a", 4, 11): b"four"}
    assert content(parts) == b"one"


def test_parts_are_sorted_by_numbers_of_any_length() -> None:
    """Also if a number or an offset has more digits than its name has room for."""
    parts = {
        part_name("a", 99_999_999, 0): b"one",
        part_name("a", 100_000_000, 0): b"two",
        part_name("b", 200_000_000, 0): b"other",
    }
    assert content(parts) == b"two"
    assert parts_of("a", {part_name("a", 1, 10**18): 5}) == [Part(1, 10**18, 5, f"a.part-00000001-{10**18}")]


def test_a_name_of_any_form_is_told_from_its_parts() -> None:
    """Also the name of a part."""
    for name in ("a", "a.part-1-2", "a\nb", ".partial-a", part_name("a", 1, 0)):
        assert whole_names([part_name(name, 7, 0), part_name(name, 8, 5)]) == [name]
    partial = f"{PARTIAL}{part_name('a', 1, 0)}-0123abcd"
    assert whole_names([partial, "run.json"]) == [partial, "run.json"]
