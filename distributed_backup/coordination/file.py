"""Leadership by a file lock, for the workers of one machine. No server is needed.

The leader holds a flock on `leader.lock`. The kernel frees it when the process dies. A process that is stopped
(SIGSTOP) keeps it without limit. flock excludes only processes of one machine, even on a network file system (flock(2),
NOTES): use Redis for the workers of several machines.

The lock says who leads. `file_records` keeps the rest beside it: terms, members and notices.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self, override
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from distributed_backup.atomic import follow, has_shared_group
from distributed_backup.checks import checked_name, checked_path
from distributed_backup.clock import Clock, SystemClock
from distributed_backup.coordination.base import Announcement, ClusterView, Coordinator, Heartbeat, Member, Notice
from distributed_backup.coordination.file_records import FileRecords
from distributed_backup.coordination.giving_way import is_ahead
from distributed_backup.coordination.record_files import UnreadableRecordError
from distributed_backup.errors import CoordinatorUnavailableError


@dataclass(slots=True)
class _Held:
    """A lock that one worker of this process holds."""

    lock: FileLock
    inode: tuple[int, int]
    term: int


class FileCoordinator(Coordinator):
    """A coordinator in a directory of the local machine.

    Making one touches no disk.

    A record of the newest term that can't be read does not name its holder. A campaign needs the lock and not the
    record, so it goes on: a free lock is taken under a higher term. While another process holds the lock, a worker that
    can't read the record gets `CoordinatorUnavailableError` with the file's name. It must not take a held lease for a
    free one. A holder that can't read its own record gives the lock back and claims a higher term at its next tick.

    Args:
        root: The directory. It is made at the first write.
        clock: The clock, which tests replace.

    Example:
        >>> import tempfile
        >>> from distributed_backup.coordination.base import Heartbeat
        >>> coordinator = FileCoordinator(tempfile.mkdtemp())
        >>> view = coordinator.heartbeat(Heartbeat(worker_id="a", campaign=True, floor=0, duration=15.0))
        >>> view.holder, view.term
        ('a', 1)
        >>> coordinator.resign("a")
    """

    # A tick takes a few system calls. A follower takes over at its first tick after the leader's death.
    heartbeat_interval = 0.1

    def __init__(self, root: str | os.PathLike[str], clock: Clock | None = None) -> None:
        self._root = checked_path("the coordinator's directory", root)
        self._records = FileRecords(self._root, clock or SystemClock())
        self._mutex = threading.RLock()
        self._held: dict[str, _Held] = {}

    @classmethod
    @override
    def from_url(cls, url: str, backup_dir: str | os.PathLike[str] | None) -> Self | None:
        try:
            parts = urlsplit(url)
        except ValueError:
            return None
        path = unquote(parts.path)
        if parts.netloc or parts.query or parts.fragment:
            return None
        if path.startswith("/"):
            return cls(Path(path))
        return None if path or backup_dir is None else cls(Path(backup_dir) / "coordinator")

    @property
    def root(self) -> Path:
        """The directory."""
        return self._root

    @override
    def heartbeat(self, beat: Heartbeat) -> ClusterView:
        worker_id = checked_name("worker_id", beat.worker_id)
        with self._mutex, self._translated():
            self._records.write_member(beat)
            reason = self._drop_if_lost(worker_id)
            gave_way = False
            if beat.campaign and worker_id not in self._held and not reason:
                gave_way = self._try_acquire(beat)
            # A failed campaign proves that the lock is held. Otherwise probe the lock.
            return self._view(reason, loser=worker_id if reason else None, probe=not beat.campaign or gave_way)

    @override
    def view(self) -> ClusterView:
        with self._mutex, self._translated():
            return self._view("", probe=True)

    @override
    def members(self) -> tuple[Member, ...]:
        with self._translated():
            return self._records.members()

    @override
    def announce(self, announcement: Announcement) -> bool:
        worker_id = announcement.worker_id
        with self._mutex, self._translated():
            held = self._held.get(worker_id)
            if held is None or held.term != announcement.term or self._why_lost(worker_id, held):
                return False
            self._records.write_term(held.term, worker_id, announcement)
            self._records.touch_member(worker_id)
            return True

    @override
    def notify(self, notice: Notice) -> None:
        checked_name("notice_id", notice.notice_id)
        with self._translated():
            self._records.write_notice(notice)

    @override
    def resign(self, worker_id: str) -> None:
        with self._mutex, self._translated():
            held = self._held.pop(worker_id, None)
            if held is not None:
                try:
                    if self._is_ours(held):
                        self._records.resign_term(held.term, worker_id)
                finally:
                    held.lock.release()

    @override
    def leave(self, worker_id: str) -> None:
        checked_name("worker_id", worker_id)
        with self._translated():
            self._records.remove_member(worker_id)

    @override
    def erase(self) -> None:
        with self._mutex, self._translated():
            self._records.erase()
            # The lock's file goes last. Its holder finds at its next tick that the file is missing.
            self._lock_path.unlink(missing_ok=True)
            with suppress(OSError):
                self._root.rmdir()

    # ---------------------------------------------------------------- the lock

    @property
    def _lock_path(self) -> Path:
        return self._root / "leader.lock"

    def _try_acquire(self, beat: Heartbeat) -> bool:
        """Take the lock if it is free, unless the sender gives way. Return whether it did."""
        lock, inode = self._try_lock()
        if lock is None:
            return False
        try:
            # With the lock: then the members are read in a vacancy only, and not at each tick.
            if beat.gives_way_to > 0 and any(is_ahead(member, beat) for member in self._records.members()):
                lock.release()
                return True
            self._held[beat.worker_id] = _Held(lock, inode, self._records.claim_term(beat.worker_id, beat.floor))
        except BaseException:
            lock.release()
            raise
        return False

    def _try_lock(self) -> tuple[FileLock | None, tuple[int, int]]:
        # thread_local would hide the lock from all threads but one. A soft lock would outlive its holder.
        inodes: list[tuple[int, int]] = []
        directory = self._root.stat()

        def opened(descriptor: int) -> None:
            follow(descriptor, directory)
            inodes.append(_inode(os.fstat(descriptor)))

        lock = FileLock(
            self._lock_path,
            mode=0o660 if has_shared_group(directory) else 0o600,
            thread_local=False,
            fallback_to_soft=False,
            preserve_lock_file=True,
            on_acquired=opened,
        )
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None, (0, 0)
        return lock, inodes[0]

    def _drop_if_lost(self, worker_id: str) -> str:
        """Release our lock if it no longer stands for the newest term, and return the reason or an empty string."""
        held = self._held.get(worker_id)
        reason = "" if held is None else self._why_lost(worker_id, held)
        if held is not None and reason:
            del self._held[worker_id]
            held.lock.release()
        return reason

    def _why_lost(self, worker_id: str, held: _Held) -> str:
        # The lock of a removed file excludes no other worker: the next one makes and locks a new file. If both claimed
        # a term then, the higher term counts. The holder of the lock must release it to claim again.
        if not self._is_ours(held):
            return f"the lock file {self._lock_path} was removed or replaced"
        newest = self._records.terms()[-1:]
        if newest != [held.term]:
            return f"term {newest[0]} was granted in its place" if newest else f"the terms of {self._root} were removed"
        try:
            record = self._records.term(held.term)
        except UnreadableRecordError as error:
            return f"the record of term {held.term} can't be read ({error})"
        if (record or {}).get("worker_id") != worker_id:
            return f"the record of term {held.term} was removed or changed"
        return ""

    def _is_ours(self, held: _Held) -> bool:
        # A forked child has a copy of our fields, and the lock stays with the parent.
        return held.lock.is_locked and _inode_at(self._lock_path) == held.inode

    def _is_free(self) -> bool:
        if self._held or not self._lock_path.exists():
            return not self._held
        lock, _ = self._try_lock()
        if lock is not None:
            lock.release()
        return lock is not None

    def _view(self, reason: str, *, loser: str | None = None, probe: bool = False) -> ClusterView:
        terms = self._records.terms()
        holder = self._holder(terms[-1], loser=loser, probe=probe) if terms else None
        return ClusterView(
            term=terms[-1] if terms else 0,
            holder=holder,
            holder_age=None if holder is None else self._records.age(holder),
            remaining=None,
            announcement=self._records.newest_announcement(terms),
            notices=self._records.notices(),
            reason=reason,
        )

    def _holder(self, term: int, *, loser: str | None, probe: bool) -> str | None:
        """Return the worker that leads under `term`, the newest one. None if the lock is free."""
        try:
            record = self._records.term(term)
        except UnreadableRecordError as error:
            if self._is_free():
                return None
            remedy = (
                "make the file readable for this user"
                if error.denied
                else "its leader replaces it at its next heartbeat. If it stays, remove the file: terms never go back"
            )
            raise CoordinatorUnavailableError(
                f"can't coordinate in {self._root}: the record of the newest term can't be read ({error}): {remedy}"
            ) from error
        if record is None or record["resigned"]:
            return None
        holder: str = record["worker_id"]
        return None if holder == loser or (probe and self._is_free()) else holder

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CoordinatorUnavailableError(
                f"can't coordinate in {self._root}: {error.strerror or error} ({error.filename or 'while writing'})"
            ) from error
        except (TypeError, ValueError) as error:
            # Of the encoder, such as a text that is no UTF-8.
            raise CoordinatorUnavailableError(
                f"can't coordinate in {self._root}: a record can't be written: {error}"
            ) from error


def _inode(status: os.stat_result) -> tuple[int, int]:
    return (status.st_dev, status.st_ino)


def _inode_at(path: Path) -> tuple[int, int] | None:
    try:
        return _inode(path.stat())
    except FileNotFoundError:
        return None
