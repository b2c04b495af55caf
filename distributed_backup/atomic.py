"""Replace files in one step, and make files and directories with the access of the run's directory.

A reader finds the old bytes or the new ones: they are written to a file beside the target, which is then renamed.
Nothing here calls fsync, so a power cut may lose the new bytes. `storage.local` adds what a checkpoint needs.

`follow` is the rule of access for every file of a run. It opens nothing to others.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distributed_backup.errors import StoreError


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Yield `path`, and remove the file of that name after an error. On a full disk each try would else leave one."""
    try:
        yield path
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def replace_file(path: Path, data: bytes, *, like: os.stat_result | None = None) -> None:
    """Write `data` to `path` in one step, with the usual permissions, or with those of the directory `like`.

    Raises:
        OSError: The file can't be written. `path` is unchanged.
    """
    with temporary(path.with_name(f".{path.name}-{secrets.token_hex(4)}")) as partial:
        mode = 0o666 if like is None else 0o600
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:
            if like is not None:
                follow(descriptor, like)
            file.write(data)
        partial.replace(path)


def make_directories(path: Path) -> list[Path]:
    """Create a directory and its missing parents, and return those that were missing, `path` first.

    The umask decides about access, with one exception. A directory that passes its group on, such as a volume of
    Kubernetes with an `fsGroup`, has setgid and is writable for the group. A directory made in it follows it.

    Raises:
        OSError: It can't be made, or is a file.
    """
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for each in reversed(missing):
        above = each.parent.stat()
        if above.st_mode & stat.S_ISGID and has_shared_group(above):
            make_directory(each)
        else:
            each.mkdir(exist_ok=True)
    path.mkdir(exist_ok=True)
    return missing


def make_directory(path: Path) -> None:
    """Create a directory that follows its parent, see `follow`. Create missing parents with `make_directories`.

    Raises:
        OSError: It can't be made. An existing directory is no error, and stays as it is.
    """
    make_directories(path.parent)
    try:
        path.mkdir(0o700)
    except FileExistsError:
        return
    # By descriptor: root must not change what a link leads to.
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        follow(descriptor, path.parent.stat())
    finally:
        os.close(descriptor)


def follow(descriptor: int, directory: os.stat_result) -> None:
    """Give an open file the owner, the group and the access of `directory`, as far as this process may.

    So a file that root has made is readable for the owner of the directory. The group has access exactly if it may read
    and write in the directory. Others never have.
    """
    found = os.fstat(descriptor)
    # One after the other: a member of the group may change the group only.
    if found.st_gid != directory.st_gid:
        with suppress(OSError):
            os.fchown(descriptor, -1, directory.st_gid)
    if found.st_uid != directory.st_uid:
        with suppress(OSError):
            os.fchown(descriptor, directory.st_uid, -1)
    found = os.fstat(descriptor)
    shared = found.st_gid == directory.st_gid and has_shared_group(directory)
    mode = 0o660 if shared else 0o600
    if stat.S_ISDIR(found.st_mode):
        mode |= (mode & 0o440) >> 2 | directory.st_mode & stat.S_ISGID
    if stat.S_IMODE(found.st_mode) != mode:
        with suppress(OSError):  # a file system without modes
            os.fchmod(descriptor, mode)


def has_shared_group(directory: os.stat_result) -> bool:
    """Return whether the group of a directory may read and write in it."""
    return directory.st_mode & 0o060 == 0o060


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file that the user has named, in one step.

    Raises:
        StoreError: The file can't be written. `path` is unchanged.
    """
    try:
        replace_file(path, data)
    except OSError as error:
        raise StoreError(f"can't write {path}: {error.strerror or error}", path=str(path)) from error
