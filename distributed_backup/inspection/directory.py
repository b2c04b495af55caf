"""Check a directory: its file system, its files, and what two processes see of each other there.

All files are in a folder of the test alone, which is removed at the end. If the directory does not exist yet, the
folder is in the nearest directory above it that does.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final

from distributed_backup.errors import ConfigError, StoreError
from distributed_backup.inspection.files import file_checks, shows_no_use
from distributed_backup.inspection.finding import NOT_MADE, UNUSABLE, Finding, Outcome, count, ok, perform
from distributed_backup.inspection.mounts import mount_of, outcome_of
from distributed_backup.inspection.pairs import checks_with_machine, checks_with_process
from distributed_backup.storage.base import PROBE
from distributed_backup.storage.local import LocalStorage

MEETING: Final = f"{PROBE}0"
"""Name of the folder where two machines meet."""

# Bytes of the file that shows how fast a large state is saved.
_LARGE: Final = 8_000_000
# As long as the longest name that a run gives a file: a part of an event log, whose worker has 128 letters.
_LONG_NAME: Final = "n" * 200
# Bytes that must and should be free, and the number of files.
_LEAST_BYTES: Final = 50e6
_FEW_BYTES: Final = 1e9
_FEW_FILES: Final = 1000


def directory_checks(directory: Path, *, wait: float | None) -> Generator[Finding]:
    """Yield the findings about a directory, those with another machine if `wait` is given.

    Raises:
        ConfigError: It is a file.
        NotMetError: No other machine came within `wait` seconds.
    """
    base = _existing(directory)
    yield perform("file system", lambda: outcome_of(mount_of(base)), advice="")
    folder = LocalStorage(base / f"{PROBE}{secrets.token_hex(8)}")
    try:
        made = perform("directory", lambda: _prepared(folder, directory, base), advice=UNUSABLE)
        yield made
        if made.status == "danger":
            yield NOT_MADE
            return
        yield perform("space", lambda: _space(base), advice="")
        for finding in _checks_in(folder):
            yield finding
            if finding is NOT_MADE:
                return
    finally:
        shutil.rmtree(folder.root, ignore_errors=True)
    if wait is not None:
        yield from checks_with_machine(LocalStorage(base / MEETING), wait=wait)


def _existing(directory: Path) -> Path:
    for path in (directory, *directory.parents):
        if os.path.lexists(path):
            if path.is_symlink() and not os.path.exists(path):  # noqa: PTH110 - as below
                raise ConfigError(
                    f"{path} is a link to {path.readlink()}, where this user finds nothing: mount or make that "
                    "directory, or name another one"
                )
            if not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where access is denied
                raise ConfigError(f"{path} is not a directory: name one, or a path where one can be made")
            return path
    raise ConfigError(f"{directory} has no directory above it")


def _checks_in(folder: LocalStorage) -> Iterator[Finding]:
    for finding in file_checks(folder, large=_LARGE):
        yield finding
        if shows_no_use(finding):
            yield NOT_MADE
            return
    yield perform("access", lambda: _access(folder), advice="")
    yield perform("file names", lambda: _names(folder), advice="Event logs of workers with long names fail.")
    yield from checks_with_process(folder, str(folder.root))


def _prepared(folder: LocalStorage, directory: Path, base: Path) -> Outcome:
    folder.prepare()
    if base == directory:
        return _usable(LocalStorage(directory))
    found = f"{directory} does not exist yet and can be made in {base}"
    if base != directory.parent:
        return Outcome("warning", found, "Several directories are missing. Look whether a volume is not mounted.")
    return ok(found)


def _usable(storage: LocalStorage) -> Outcome:
    """Return whether what is there can be listed, read and replaced. The test's own folder shows none of it."""
    names = storage.names()
    for can, files in (
        ("read", [name for name in names if _is_unreadable(storage, name)]),
        ("replace", [name for name in names if _is_fixed(storage.root, name)]),
    ):
        if files:
            return Outcome(
                "warning",
                f"this user can't {can} {count(len(files), 'file')}, such as {min(files)}",
                f"A run of such files could not go on. Start all workers as one user, or let this user {can} them.",
            )
    return ok(f"{storage.root} is writable, and what is there can be read and replaced")


def _is_unreadable(storage: LocalStorage, name: str) -> bool:
    try:
        storage.read_from(name, 0, 1)
    except StoreError as error:
        return isinstance(error.__cause__, PermissionError)
    return False


def _is_fixed(directory: Path, name: str) -> bool:
    """Whether the sticky bit of a directory keeps this user from replacing a file of another one."""
    try:
        status, owner = directory.stat(), (directory / name).lstat().st_uid
    except FileNotFoundError:
        return False  # a worker has removed it since
    return bool(status.st_mode & stat.S_ISVTX) and os.geteuid() not in (0, owner, status.st_uid)


def _space(base: Path) -> Outcome:
    status = os.statvfs(base)
    free = status.f_bavail * status.f_frsize
    found = f"{free / 1e9:.3g} GB are free"
    advice = "A commit fails when the disk is full, and the run keeps its earlier checkpoints. Make room."
    if free < _LEAST_BYTES:
        return Outcome("danger", found, advice)
    if status.f_files and status.f_favail < _FEW_FILES:
        return Outcome("warning", f"{found}, and {status.f_favail} more files can be made", advice)
    return Outcome("warning", found, advice) if free < _FEW_BYTES else ok(found)


def _access(folder: LocalStorage) -> Outcome:
    folder.put("private", [b"1"])
    mode = (folder.root / "private").stat().st_mode & 0o777
    if mode & 0o007:
        return Outcome(
            "warning",
            f"a new file has mode {mode:04o}: this file system keeps no permissions",
            "Every user of the machine can read the answers of models in the journal. Use another file system.",
        )
    return ok(f"a new file has mode {mode:04o}, so other users can't read it")


def _names(folder: LocalStorage) -> Outcome:
    folder.put(_LONG_NAME, [b"1"])
    folder.create("name-in-Capitals")
    if not folder.create("name-in-capitals"):
        return Outcome(
            "warning",
            "names that differ in capitals only are one name here",
            "Give two runs directories that differ in more than that.",
        )
    return ok(f"{len(_LONG_NAME)} letters, and capitals differ from small letters")
