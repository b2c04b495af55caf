"""What one process finds in a storage, each with a storage that breaks one promise."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, override

import pytest

from distributed_backup.errors import StoreError
from distributed_backup.inspection import directory, files
from distributed_backup.inspection.files import file_checks
from distributed_backup.inspection.finding import Finding
from distributed_backup.inspection.mounts import Mount, mount_of, outcome_of
from distributed_backup.storage.base import Chunks, Names
from distributed_backup.storage.local import LocalStorage
from tests.support.check_names import OF_ONE_PROCESS


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy disk of the machine that runs the tests is no finding."""
    monkeypatch.setattr(files, "_SLOW_COMMIT", 60.0)
    monkeypatch.setattr(files, "_SLOW_APPEND", 60.0)
    monkeypatch.setattr(files, "_SLOW_RATE", 0.0)


def checked(storage: LocalStorage) -> dict[str, Finding]:
    storage.prepare()
    return {each.name: each for each in file_checks(storage, large=1000)}


def test_a_sound_directory_passes_all_checks(tmp_path: Path) -> None:
    found = checked(LocalStorage(tmp_path))
    assert list(found) == OF_ONE_PROCESS
    assert {each.status for each in found.values()} == {"ok"}
    # `large write` has removed its own, and the place is removed as a whole.
    assert sorted(os.listdir(tmp_path)) == ["committed", "journal", "stamped"]


class ReadsOther(LocalStorage):
    @override
    def read(self, name: str) -> bytes:
        return super().read(name)[:-1]


class ListsNothing(LocalStorage):
    @override
    def names(self) -> Names:
        return []


class CreatesAlways(LocalStorage):
    @override
    def create(self, name: str, data: bytes = b"") -> bool:
        self.put(name, [data])
        return True


class CreatesEmptyAlways(LocalStorage):
    """O_EXCL is ignored, and hard links are not."""

    @override
    def create(self, name: str, data: bytes = b"") -> bool:
        return super().create(name, data) if data else True


class AppendsAtTheEnd(LocalStorage):
    """The rest of a failed attempt stays."""

    @override
    def append(self, name: str, data: bytes, *, at: int) -> None:
        super().append(name, data, at=self.size(name) or 0)


class RemovesNothing(LocalStorage):
    @override
    def remove(self, name: str) -> None:
        pass


class RemovesNamesOnly(LocalStorage):
    """A removed file is read from a cache."""

    @override
    def read(self, name: str) -> bytes:
        try:
            return super().read(name)
        except StoreError:
            return b"cached"


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        (ReadsOther, "write and read", "was read with 29999 bytes"),
        (ListsNothing, "write and read", "is missing in the listing"),
        (CreatesAlways, "exclusive create", "conditions are ignored"),
        (CreatesEmptyAlways, "exclusive create", "claimed-empty"),
        (AppendsAtTheEnd, "append", "in place of b'first.2nd.'"),
        (RemovesNothing, "delete", "are still there: claimed, claimed-empty, grown, written"),
        (RemovesNamesOnly, "delete", "are still there: written"),
    ],
)
def test_a_broken_promise_is_a_danger_with_an_advice(
    tmp_path: Path, kind: type[LocalStorage], name: str, said: str
) -> None:
    found = checked(kind(tmp_path))
    assert found[name].status == "danger"
    assert said in found[name].found
    assert found[name].advice.endswith(".")


def refuse(code: int) -> Callable[..., NoReturn]:
    def call(*_: object, **__: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize(
    ("call", "code", "name"),
    [
        ("link", errno.EPERM, "exclusive create"),
        ("rename", errno.EACCES, "write and read"),
        ("fsync", errno.EIO, "write and read"),
        ("ftruncate", errno.EOPNOTSUPP, "append"),
        ("unlink", errno.EACCES, "exclusive create"),
    ],
)
def test_a_system_call_that_is_refused_is_a_danger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, name: str
) -> None:
    """What fails first names the call's error."""
    monkeypatch.setattr(os, call, refuse(code))
    dangers = [each for each in checked(LocalStorage(tmp_path)).values() if each.status == "danger"]
    assert dangers[0].name == name
    assert os.strerror(code) in dangers[0].found


def test_a_place_where_nothing_can_be_written_is_one_danger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each further check would say the same."""
    monkeypatch.setattr(os, "write", refuse(errno.EROFS))
    assert list(checked(LocalStorage(tmp_path))) == ["write and read"]


class Full(LocalStorage):
    """Has room for small files."""

    @override
    def put(self, name: str, chunks: Chunks, *, new: bool = False, durable: bool = True) -> None:
        with self._translated("write", self.root / name):
            if name == "large":
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        super().put(name, chunks, new=new, durable=durable)


def test_a_quota_that_a_large_state_exceeds_is_a_danger(tmp_path: Path) -> None:
    found = checked(Full(tmp_path))
    assert found["large write"].status == "danger"
    assert "quota" in found["large write"].found.lower()


@pytest.mark.parametrize(
    ("limit", "value", "name"),
    [
        ("_SLOW_COMMIT", 0.0, "durable write"),
        ("_SLOW_APPEND", 0.0, "durable append"),
        ("_SLOW_RATE", 1e15, "large write"),
    ],
)
def test_a_slow_storage_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: float, name: str
) -> None:
    monkeypatch.setattr(files, limit, value)
    found = checked(LocalStorage(tmp_path))
    assert {each.name for each in found.values() if each.status == "warning"} == {name}
    assert found[name].advice


@pytest.mark.parametrize(
    ("ahead", "status", "said"),
    [
        (3600.0, "warning", "3600 s ahead of this machine's"),
        (-60.0, "warning", "60 s behind this machine's"),
        (-0.9, "ok", "agrees within 5 s"),
        (None, "unknown", "does not tell"),
    ],
)
def test_a_clock_that_is_wrong_is_a_warning(tmp_path: Path, ahead: float | None, status: str, said: str) -> None:
    class Elsewhere(LocalStorage):
        @override
        def written_at(self, name: str) -> float | None:
            return None if ahead is None else (super().written_at(name) or 0.0) + ahead

    found = checked(Elsewhere(tmp_path))["clock"]
    assert found.status == status
    assert said in found.found


# -------------------------------------------------------------------- directories


def with_status(**changes: Any) -> Callable[[object], SimpleNamespace]:
    usual = {"f_bavail": 10**9, "f_frsize": 4096, "f_files": 10**6, "f_favail": 10**6}
    return lambda _: SimpleNamespace(**(usual | changes))


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"f_bavail": 1000}, "danger", "0.0041 GB are free"),
        ({"f_bavail": 100_000}, "warning", "0.41 GB are free"),
        ({"f_favail": 10}, "warning", "and 10 more files can be made"),
        ({"f_files": 0, "f_favail": 0}, "ok", "4.1e+03 GB are free"),
    ],
)
def test_a_disk_that_is_almost_full_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int], status: str, said: str
) -> None:
    monkeypatch.setattr(os, "statvfs", with_status(**changes))
    outcome = directory._space(tmp_path)
    assert (outcome.status, outcome.found[-len(said) :]) == (status, said)


def test_a_file_system_without_modes_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = LocalStorage(tmp_path)
    monkeypatch.setattr(LocalStorage, "_make", lambda _, path: os.open(path, os.O_WRONLY | os.O_CREAT, 0o777))
    os.umask(os.umask(0))
    outcome = directory._access(folder)
    assert (outcome.status, "Every user" in outcome.advice) == ("warning", True)


def test_a_file_system_that_ignores_capitals_is_a_warning(tmp_path: Path) -> None:
    class Lower(LocalStorage):
        @override
        def create(self, name: str, data: bytes = b"") -> bool:
            return super().create(name.lower(), data)

    assert directory._names(Lower(tmp_path)).status == "warning"


# -------------------------------------------------------------------- file systems

TABLE = r"""22 1 8:1 / / rw,noatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /mnt rw - overlay overlay rw,lowerdir=/a
31 22 0:41 / /mnt/shared\040disk rw,relatime shared:2 - nfs4 server:/export rw,vers=4.1,hard
32 22 0:42 / /mnt/shared\040disk rw,relatime - nfs4 server:/other rw,vers=4.1,hard,acdirmax=1
33 22 0:43 / /mnt/short
"""


@pytest.mark.parametrize(
    ("path", "kind", "point"),
    [
        ("/", "ext4", "/"),
        ("/mnt/other", "overlay", "/mnt"),
        ("/mnt/shared disk/run-42", "nfs4", "/mnt/shared disk"),
        ("/mntshared", "ext4", "/"),
    ],
)
def test_the_mount_of_a_path_is_the_last_of_the_longest(path: str, kind: str, point: str) -> None:
    found = mount_of(Path(path), TABLE)
    assert found is not None
    assert (found.kind, found.point) == (kind, point)
    assert (kind == "nfs4") == found.options.endswith("acdirmax=1")


def test_a_machine_that_tells_nothing_is_unknown() -> None:
    assert mount_of(Path("/"), "") is None
    assert outcome_of(None).status == "unknown"


@pytest.mark.parametrize(
    ("kind", "options", "status", "said"),
    [
        ("ext4", "rw", "ok", "ext4 at /mnt"),
        ("tmpfs", "rw", "warning", "in memory"),
        ("overlay", "rw", "warning", "the container's own layer"),
        ("cifs", "rw", "warning", "SMB"),
        ("nfs4", "rw,hard", "warning", "remember a directory for up to 60 s"),
        ("nfs4", "rw,hard,acdirmax=30", "warning", "remember a directory"),
        ("nfs4", "rw,soft,acdirmax=1", "warning", "the option soft"),
        ("nfs4", "rw,softerr,acdirmax=1", "warning", "the option softerr"),
        ("nfs4", "rw,softreval,acdirmax=1", "ok", "nfs4 at /mnt"),
        ("nfs", "rw,hard,actimeo=1", "ok", "nfs at /mnt"),
        ("nfs4", "rw,hard,acregmin=1,acregmax=1,acdirmin=1,acdirmax=1", "ok", "nfs4 at /mnt"),
        ("nfs4", "rw,noac", "ok", "nfs4 at /mnt"),
    ],
)
def test_kinds_and_options_that_matter_are_warnings(kind: str, options: str, status: str, said: str) -> None:
    outcome = outcome_of(Mount(kind=kind, options=options, point="/mnt"))
    assert (outcome.status, bool(outcome.advice)) == (status, status != "ok")
    assert said in outcome.found
