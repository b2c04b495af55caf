"""Files that are replaced in one step: what stays when a write fails."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distributed_backup.atomic import atomic_write, make_directory, replace_file, temporary
from distributed_backup.errors import StoreError


@contextmanager
def one_byte_per_file() -> Iterator[None]:
    """Let each write of this process end after one byte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_takes_the_place_of_another(tmp_path: Path) -> None:
    """The bytes of the earlier one go, and no partial file stays."""
    path = tmp_path / "x"
    for data in (b"longer", b"new"):
        atomic_write(path, data)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_ends_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    """The error names the path, and no partial file stays."""
    path = tmp_path / "x"
    path.write_bytes(b"before")
    with one_byte_per_file(), pytest.raises(StoreError) as caught:
        atomic_write(path, b"after")
    assert str(caught.value) == f"can't write {path}: File too large"
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"before", [path])


def test_a_rename_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    """A directory has the name."""
    path = tmp_path / "x"
    path.mkdir()
    with pytest.raises(StoreError) as caught:
        atomic_write(path, b"after")
    assert str(caught.value) == f"can't write {path}: Is a directory"
    assert list(tmp_path.iterdir()) == [path]
    assert path.is_dir()


def test_a_directory_that_is_missing_is_not_made(tmp_path: Path) -> None:
    """The path may be mistyped."""
    path = tmp_path / "nowhere" / "x"
    with pytest.raises(StoreError, match=f"can't write {path}: No such file or directory"):
        atomic_write(path, b"1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("directory", "file", "folder"),
    [
        (0o700, 0o600, 0o700),
        (0o755, 0o600, 0o700),
        (0o750, 0o600, 0o700),
        (0o770, 0o660, 0o770),
        (0o777, 0o660, 0o770),
        (0o2770, 0o660, 0o2770),
        (0o2750, 0o600, 0o2700),
    ],
)
@pytest.mark.parametrize("umask", [0, 0o077])
def test_files_and_folders_follow_their_directory(
    tmp_path: Path, directory: int, file: int, folder: int, umask: int
) -> None:
    """The group has access if it may read and write in the directory. Others have none. The umask does not count."""
    root = tmp_path / "run"
    root.mkdir()
    root.chmod(directory)
    before = os.umask(umask)
    try:
        make_directory(root / "notices")
        replace_file(root / "x", b"1", like=root.stat())
    finally:
        os.umask(before)
    assert stat.S_IMODE((root / "x").stat().st_mode) == file
    assert stat.S_IMODE((root / "notices").stat().st_mode) == folder


def test_a_directory_that_exists_stays_as_it_is(tmp_path: Path) -> None:
    """Its owner may have chosen its permissions."""
    tmp_path.chmod(0o770)
    (tmp_path / "x").mkdir(0o750)
    make_directory(tmp_path / "x")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o750


def test_a_temporary_file_is_removed_after_an_error_too(tmp_path: Path) -> None:
    """The error is the one that the block raised."""

    def fail() -> None:
        with temporary(tmp_path / "x") as path:
            path.write_bytes(b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []
