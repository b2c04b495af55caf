"""Leadership by a file lock, for the workers of one machine; no server.

The leader holds a flock for as long as it lives: the kernel frees it at once when the process dies, and a
process that is merely stopped (SIGSTOP) keeps it for ever. flock does not exclude between the machines of a
network file system (flock(2), NOTES); use Redis there.

Every file has one writer, so no reader ever waits for a lock:

    DIRECTORY/
      leader.lock            flock, held by the leader
      terms/0000000007.json  claimed exclusively by the leader of term 7, then rewritten by it alone:
                             {"worker_id", "resigned", "announcement"}; the greatest is the truth
      members/WORKER.json    rewritten by the worker at each tick: {"seen", "duration", "role", "position"}
      notices/NOTICE.json    {"worker_id", "reason", "wish", "since", "until"}

A late write of an earlier leader lands in its own term's file and so is never taken for news. Instants are
CLOCK_BOOTTIME, which all processes of the machine share.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from distributed_backup.checks import checked_name
from distributed_backup.clock import Clock, SystemClock
from distributed_backup.coordination.base import Announcement, ClusterView, Coordinator, Heartbeat, Member, Notice
from distributed_backup.coordination.file_records import identity_of, inode, read_record, replace_record
from distributed_backup.errors import CoordinatorUnavailableError
from distributed_backup.position import Position

_TERMS_KEPT: Final = 8
# How many times its duration a dead member's record stays: far beyond any doubt that somebody still counts it.
_EXPIRIES_KEPT: Final = 10


@dataclass(slots=True)
class _Held:
    """A lock that one worker of this process holds."""

    lock: FileLock
    identity: tuple[int, int]
    term: int


class FileCoordinator(Coordinator):
    """A coordinator in a directory of the local machine.

    Making one touches no disk.

    Args:
        root: The directory; made when first needed.
        clock: Where time comes from.

    Example:
        >>> import tempfile
        >>> coordinator = FileCoordinator(tempfile.mkdtemp())
        >>> view = coordinator.heartbeat(Heartbeat(worker_id="a", campaign=True, floor=0, duration=15.0))
        >>> view.holder, view.term
        ('a', 1)
        >>> coordinator.resign("a")
    """

    # A tick is a handful of system calls, and a follower takes over at its first tick after the leader's death.
    heartbeat_interval = 0.1

    def __init__(self, root: str | os.PathLike[str], clock: Clock | None = None) -> None:
        self._root = Path(root)
        self._clock = clock or SystemClock()
        self._mutex = threading.RLock()
        self._held: dict[str, _Held] = {}

    @property
    def root(self) -> Path:
        """The directory."""
        return self._root

    def heartbeat(self, beat: Heartbeat) -> ClusterView:
        """Refresh the membership; check or try to take the lock; tell what is."""
        worker_id = checked_name("worker_id", beat.worker_id)
        with self._mutex, self._translated():
            self._write_member(beat)
            reason = self._drop_if_lost(worker_id)
            if beat.campaign and worker_id not in self._held and not reason:
                self._try_acquire(worker_id, beat.floor)
            # Who campaigns in vain knows that the lock is held; who doesn't must try it to know.
            return self._view(reason, loser=worker_id if reason else None, probe=not beat.campaign)

    def view(self) -> ClusterView:
        """Tell what is; whether the lock is held is found out by trying it for a moment."""
        with self._mutex, self._translated():
            return self._view("", probe=True)

    def members(self) -> tuple[Member, ...]:
        """The workers whose membership has not expired, by id."""
        with self._translated():
            found = []
            for path in sorted((self._root / "members").glob("*.json")):
                fields = read_record(path)
                # The time after the read: what was written just now must not look like the future, for an
                # instant of the future is from before a reboot.
                now = self._clock.now()
                if fields is not None and 0 <= now - fields["seen"] < fields["duration"]:
                    found.append(_member(path.stem, fields, now))
            return tuple(found)

    def announce(self, announcement: Announcement) -> bool:
        """Write it into the file of its term; False if its worker no longer holds the lock under that term."""
        with self._mutex, self._translated():
            held = self._held.get(announcement.worker_id)
            if held is None or held.term != announcement.term or self._why_lost(announcement.worker_id, held):
                return False
            self._write_term(held.term, announcement.worker_id, announcement)
            member = self._member_path(announcement.worker_id)
            if (fields := read_record(member)) is not None:
                replace_record(member, {**fields, "seen": self._clock.now()})
            return True

    def notify(self, notice: Notice) -> None:
        """Tell all workers of `notice`."""
        name = checked_name("notice_id", notice.notice_id)
        with self._translated():
            now = self._clock.now()
            fields = {
                "worker_id": notice.worker_id,
                "reason": notice.reason,
                "wish": notice.action,
                "since": now,
                "until": now + notice.remaining,
            }
            replace_record(self._root / "notices" / f"{name}.json", fields)

    def resign(self, worker_id: str) -> None:
        """Mark the term as resigned and free the lock."""
        with self._mutex, self._translated():
            held = self._held.pop(worker_id, None)
            if held is not None:
                try:
                    if self._is_ours(held):
                        record = self._read_term(held.term) or {}
                        self._write_record(held.term, {**record, "resigned": True})
                finally:
                    held.lock.release()

    def leave(self, worker_id: str) -> None:
        """End a membership and take back its notices."""
        checked_name("worker_id", worker_id)
        with self._translated():
            self._member_path(worker_id).unlink(missing_ok=True)
            for path in (self._root / "notices").glob("*.json"):
                if (read_record(path) or {}).get("worker_id") == worker_id:
                    path.unlink(missing_ok=True)

    def erase(self) -> None:
        """Remove our files, and the directory if nothing else is in it.

        The lock's file goes last; whoever holds it then finds it gone at its next tick.
        """
        with self._mutex, self._translated():
            for folder in ("terms", "members", "notices"):
                for path in (self._root / folder).glob("*"):
                    path.unlink(missing_ok=True)
                with suppress(OSError):
                    (self._root / folder).rmdir()
            self._lock_path.unlink(missing_ok=True)
            with suppress(OSError):
                self._root.rmdir()

    # ---------------------------------------------------------------- the lock

    @property
    def _lock_path(self) -> Path:
        return self._root / "leader.lock"

    def _try_acquire(self, worker_id: str, floor: int) -> None:
        lock, identity = self._try_lock()
        if lock is None:
            return
        try:
            self._held[worker_id] = _Held(lock, identity, self._claim_term(worker_id, floor))
        except BaseException:
            lock.release()
            raise

    def _try_lock(self) -> tuple[FileLock | None, tuple[int, int]]:
        # thread_local would hide the lock from all threads but one; a soft lock would outlive its holder.
        identities: list[tuple[int, int]] = []
        lock = FileLock(
            self._lock_path,
            mode=0o600,
            thread_local=False,
            fallback_to_soft=False,
            preserve_lock_file=True,
            on_acquired=lambda descriptor: identities.append(inode(os.fstat(descriptor))),
        )
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None, (0, 0)
        return lock, identities[0]

    def _drop_if_lost(self, worker_id: str) -> str:
        """Free our lock if it no longer stands for the newest term; why, or an empty string."""
        held = self._held.get(worker_id)
        reason = "" if held is None else self._why_lost(worker_id, held)
        if held is not None and reason:
            del self._held[worker_id]
            held.lock.release()
        return reason

    def _why_lost(self, worker_id: str, held: _Held) -> str:
        # The lock of a removed file excludes nobody: the next to come makes and locks a new one. If two claimed
        # terms at that moment, the newer term counts, and whoever holds the lock must give it up to claim again.
        if not self._is_ours(held):
            return f"the lock file {self._lock_path} was removed or replaced"
        newest = self._terms()[-1:]
        if newest != [held.term]:
            return f"term {newest[0]} was granted in its place" if newest else f"the terms of {self._root} were removed"
        if (self._read_term(held.term) or {}).get("worker_id") != worker_id:
            return f"the record of term {held.term} was removed or changed"
        return ""

    def _is_ours(self, held: _Held) -> bool:
        # A forked child has a copy of our fields, and not the lock.
        return held.lock.is_locked and identity_of(self._lock_path) == held.identity

    # ---------------------------------------------------------------- the term

    def _claim_term(self, worker_id: str, floor: int) -> int:
        """Claim the next term. O_EXCL makes a term unique even if the lock file was removed in between."""
        (self._root / "terms").mkdir(parents=True, exist_ok=True)
        term = floor
        while True:
            term = max(term, *self._terms(), 0) + 1
            try:
                descriptor = os.open(self._term_path(term), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                continue
            os.close(descriptor)
            # If there is a newer one by now, ours may be one that was used and cleaned up since we looked.
            if self._terms()[-1] == term:
                break
        self._write_term(term, worker_id, None)
        with suppress(OSError, KeyError, TypeError, ValueError):
            self._clean_up()
        return term

    def _clean_up(self) -> None:
        """Remove terms that nobody asks for, and what workers that died left long ago."""
        terms = self._terms()
        newest = self._newest_announcement(terms)
        for term in terms[:-_TERMS_KEPT]:
            if newest is None or term != newest.term:
                self._term_path(term).unlink(missing_ok=True)
        for path in (self._root / "members").glob("*.json"):
            fields = read_record(path) or {"seen": 0.0, "duration": 0.0}
            if not 0 <= self._clock.now() - fields["seen"] < _EXPIRIES_KEPT * fields["duration"]:
                path.unlink(missing_ok=True)
        for path in (self._root / "notices").glob("*.json"):
            fields = read_record(path) or {"since": 0.0, "until": 0.0}
            if not fields["since"] <= self._clock.now() < fields["until"]:
                path.unlink(missing_ok=True)

    def _terms(self) -> list[int]:
        try:
            names = os.listdir(self._root / "terms")
        except FileNotFoundError:
            return []
        return sorted(int(name[:-5]) for name in names if name[:-5].isdecimal() and name.endswith(".json"))

    def _read_term(self, term: int) -> dict[str, Any] | None:
        return read_record(self._term_path(term))

    def _write_term(self, term: int, worker_id: str, announcement: Announcement | None) -> None:
        fields = None if announcement is None else announcement.to_fields()
        self._write_record(term, {"worker_id": worker_id, "resigned": False, "announcement": fields})

    def _write_record(self, term: int, record: dict[str, Any]) -> None:
        replace_record(self._term_path(term), record)

    def _term_path(self, term: int) -> Path:
        return self._root / "terms" / f"{term:010d}.json"

    # ---------------------------------------------------------------- the view

    def _view(self, reason: str, *, loser: str | None = None, probe: bool = False) -> ClusterView:
        terms = self._terms()
        record = self._read_term(terms[-1]) if terms else None
        holder = None
        if record is not None and not record["resigned"]:
            holder = record["worker_id"]
        if holder is not None and (holder == loser or (probe and self._is_free())):
            holder = None
        return ClusterView(
            term=terms[-1] if terms else 0,
            holder=holder,
            holder_age=None if holder is None else self._age(holder),
            remaining=None,
            announcement=self._newest_announcement(terms),
            notices=self._notices(),
            reason=reason,
        )

    def _is_free(self) -> bool:
        if self._held or not self._lock_path.exists():
            return not self._held
        lock, _ = self._try_lock()
        if lock is not None:
            lock.release()
        return lock is not None

    def _newest_announcement(self, terms: list[int]) -> Announcement | None:
        for term in reversed(terms):
            record = self._read_term(term) or {}
            fields = record.get("announcement")
            if fields is not None:
                # Version 0.3 writes both beside the announcement only.
                return Announcement.from_fields({**fields, "term": term, "worker_id": record["worker_id"]})
        return None

    def _notices(self) -> tuple[Notice, ...]:
        found = []
        for path in sorted((self._root / "notices").glob("*.json")):
            fields = read_record(path)
            now = self._clock.now()
            if fields is not None and fields["since"] <= now < fields["until"]:
                found.append(
                    Notice(
                        notice_id=path.stem,
                        worker_id=fields["worker_id"],
                        reason=fields["reason"],
                        remaining=fields["until"] - now,
                        action=fields["wish"],
                    )
                )
        return tuple(found)

    def _age(self, worker_id: str) -> float | None:
        fields = read_record(self._member_path(worker_id))
        now = self._clock.now()
        return None if fields is None or fields["seen"] > now else now - fields["seen"]

    def _member_path(self, worker_id: str) -> Path:
        return self._root / "members" / f"{worker_id}.json"

    def _write_member(self, beat: Heartbeat) -> None:
        fields = {
            "seen": self._clock.now(),
            "duration": beat.duration,
            "role": beat.role,
            "position": None if beat.position is None else beat.position.as_tuple,
        }
        replace_record(self._member_path(beat.worker_id), fields)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CoordinatorUnavailableError(
                f"can't coordinate in {self._root}: {error.strerror or error} ({error.filename or 'while writing'})"
            ) from error
        except (KeyError, TypeError, ValueError) as error:
            raise CoordinatorUnavailableError(
                f"can't coordinate in {self._root}: a record there is not as we write it ({error!r}); "
                "stop the run's workers and remove the directory"
            ) from error


def _member(worker_id: str, fields: dict[str, Any], now: float) -> Member:
    position = fields["position"]
    return Member(
        worker_id=worker_id,
        role=fields["role"],
        position=None if position is None else Position(*position),
        age=now - fields["seen"],
    )
