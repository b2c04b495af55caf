"""Files that are replaced in one step: what stays when a write fails."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distributed_backup.atomic import atomic_write, replace_file, temporary
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


def test_a_file_has_the_permissions_that_were_asked_for(tmp_path: Path) -> None:
    """A record is for its owner only."""
    replace_file(tmp_path / "x", b"1", mode=0o600)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600


def test_a_temporary_file_is_removed_after_an_error_too(tmp_path: Path) -> None:
    """The error is the one that the block raised."""

    def fail() -> None:
        with temporary(tmp_path / "x") as path:
            path.write_bytes(b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []
