"""The terms, members and notices of one run, as small JSON files of the local machine.

Each file has one writer and is replaced in one step, see `record_files`:

    DIRECTORY/
      terms/0000000007.json  created exclusively by the leader of term 7, which alone rewrites it:
                             {"worker_id", "resigned", "announcement"}. The highest term counts.
      members/WORKER.json    rewritten by the worker at each tick: {"seen", "duration", "role", "position"}
      notices/NOTICE.json    {"worker_id", "reason", "wish", "since", "until"}, see `Notice.to_wish`

A late write by an earlier leader lands in the file of its own term. Instants are CLOCK_BOOTTIME, which all processes
of a machine share. An instant in the future was written before a reboot. Nothing is fsynced: the records describe
running processes, and none of those survives a power cut.

A record that can't be read is skipped with one warning:

- A notice counts as absent.
- A member counts as alive while its file is younger than `UNREADABLE_MEMBER_DURATION`, because a run may only be
  deleted without other members.
- A term counts by the name of its file, so terms never go back. Its announcement counts as absent.

The holder of the newest term is the exception: a worker that can't read it must not report a free lease. See
`FileCoordinator`.
"""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from distributed_backup.atomic import follow
from distributed_backup.clock import Clock
from distributed_backup.coordination.base import Announcement, Heartbeat, Member, Notice
from distributed_backup.coordination.record_files import RecordFiles, Shape, UnreadableRecordError, one_of
from distributed_backup.position import Position

UNREADABLE_MEMBER_DURATION: Final = 60.0
"""Seconds by the file's time. A live worker rewrites its record at each tick."""

_TERMS_KEPT: Final = 8
# A dead member's record is removed after this many times its duration. By then every worker counts it as expired.
_EXPIRIES_KEPT: Final = 10


class FileRecords:
    """The records in `root`. Making one touches no disk.

    All methods raise `OSError` where a file can't be used. Ids become names of files, so the caller checks them.
    """

    def __init__(self, root: Path, clock: Clock) -> None:
        self._root = root
        self._clock = clock
        self._terms = root / "terms"
        self._members = root / "members"
        self._notices = root / "notices"
        self._files = RecordFiles(root)

    def erase(self) -> None:
        """Remove all records and their folders. Other files stay."""
        for folder in (self._terms, self._members, self._notices):
            # A killed writer leaves the second kind, see `atomic.replace_file`.
            for path in (*folder.glob("*.json"), *folder.glob(".*.json-????????")):
                _remove(path)
            with suppress(OSError):
                folder.rmdir()

    # ---------------------------------------------------------------- terms

    def terms(self) -> list[int]:
        """Return the terms that have a record, in ascending order."""
        try:
            names = os.listdir(self._terms)
        except FileNotFoundError:
            return []
        return sorted(int(name[:-5]) for name in names if name[:-5].isdecimal() and name.endswith(".json"))

    def term(self, term: int) -> dict[str, Any] | None:
        """Return the record of a term. None if it is missing, torn, or created and still empty.

        Raises:
            UnreadableRecordError: It can't be read, or has another form.
        """
        return self._files.read(self._term_path(term), _TERM)

    def claim_term(self, worker_id: str, floor: int) -> int:
        """Create the record of a term higher than `floor` and all others, and return the term.

        O_EXCL makes the term unique even if the lock file was removed in the meantime.
        """
        self._files.make_folder(self._terms)
        term = floor
        while True:
            term = max(term, *self.terms(), 0) + 1
            try:
                descriptor = os.open(self._term_path(term), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                continue
            try:
                follow(descriptor, self._root.stat())
            finally:
                os.close(descriptor)
            # If a higher term exists by now, ours may have been used and cleaned up after the listing.
            if self.terms()[-1] == term:
                break
        self.write_term(term, worker_id)
        with suppress(OSError):
            self._clean_up()
        return term

    def write_term(
        self, term: int, worker_id: str, announcement: Announcement | None = None, *, resigned: bool = False
    ) -> None:
        """Write the record of a term that the caller holds."""
        fields = None if announcement is None else announcement.to_fields()
        record = {"worker_id": worker_id, "resigned": resigned, "announcement": fields}
        self._files.replace(self._term_path(term), record)

    def resign_term(self, term: int, worker_id: str) -> None:
        """Mark a term that the caller holds as resigned. Its announcement stays, if it can be read."""
        self.write_term(term, worker_id, self.newest_announcement([term]), resigned=True)

    def newest_announcement(self, terms: list[int]) -> Announcement | None:
        """Return the announcement of the highest of `terms` that has one."""
        for term in reversed(terms):
            path = self._term_path(term)
            record = self._files.read_or_skip(path, _TERM)
            if record is None or record["announcement"] is None:
                continue
            try:
                # Version 0.3 writes these two beside the announcement only.
                fields = {**record["announcement"], "term": term, "worker_id": record["worker_id"]}
                return Announcement.from_fields(fields)
            except (KeyError, TypeError, ValueError) as error:
                self._files.skip(UnreadableRecordError(path, error))
        return None

    def _clean_up(self) -> None:
        """Remove old terms, expired notices, and members that died long ago."""
        terms = self.terms()
        newest = self.newest_announcement(terms)
        for term in terms[:-_TERMS_KEPT]:
            if newest is None or term != newest.term:
                _remove(self._term_path(term))
        for path in self._members.glob("*.json"):
            try:
                fields = self._files.read(path, _MEMBER) or {"seen": 0.0, "duration": 0.0}
            except UnreadableRecordError:
                is_over = _age(path) > UNREADABLE_MEMBER_DURATION
            else:
                is_over = not 0 <= self._clock.now() - fields["seen"] < _EXPIRIES_KEPT * fields["duration"]
            if is_over:
                _remove(path)
        for path in self._notices.glob("*.json"):
            notice = self._files.read_or_skip(path, _NOTICE) or {"since": 0.0, "until": 0.0}
            if not notice["since"] <= self._clock.now() < notice["until"]:
                _remove(path)

    def _term_path(self, term: int) -> Path:
        return self._terms / f"{term:010d}.json"

    # ---------------------------------------------------------------- members

    def members(self) -> tuple[Member, ...]:
        """Return the members that have not expired, by id."""
        found = []
        for path in sorted(self._members.glob("*.json")):
            try:
                fields = self._files.read(path, _MEMBER)
            except UnreadableRecordError as error:
                self._files.skip(error)
                if (age := _age(path)) < UNREADABLE_MEMBER_DURATION:
                    found.append(Member(worker_id=path.stem, role="follower", position=None, age=age))
                continue
            # Read the clock after the file: a record written in between must not appear to be from the future.
            now = self._clock.now()
            if fields is not None and 0 <= now - fields["seen"] < fields["duration"]:
                found.append(_member(path.stem, fields, now))
        return tuple(found)

    def age(self, worker_id: str) -> float | None:
        """Return the seconds since the worker's last tick. None if they are unknown."""
        fields = self._files.read_or_skip(self._member_path(worker_id), _MEMBER)
        now = self._clock.now()
        return None if fields is None or fields["seen"] > now else now - fields["seen"]

    def write_member(self, beat: Heartbeat) -> None:
        """Record a tick."""
        fields = {
            "seen": self._clock.now(),
            "duration": beat.duration,
            "role": beat.role,
            "position": None if beat.position is None else beat.position.as_tuple,
        }
        self._files.replace(self._member_path(beat.worker_id), fields)

    def touch_member(self, worker_id: str) -> None:
        """Record that a member is alive, if it is one."""
        path = self._member_path(worker_id)
        if (fields := self._files.read_or_skip(path, _MEMBER)) is not None:
            position = fields["position"]
            tick = {"seen": self._clock.now(), "position": None if position is None else position.as_tuple}
            self._files.replace(path, {**fields, **tick})

    def remove_member(self, worker_id: str) -> None:
        """Remove a member and its notices."""
        _remove(self._member_path(worker_id))
        for path in self._notices.glob("*.json"):
            if (self._files.read_or_skip(path, _NOTICE) or {}).get("worker_id") == worker_id:
                _remove(path)

    def _member_path(self, worker_id: str) -> Path:
        return self._members / f"{worker_id}.json"

    # ---------------------------------------------------------------- notices

    def notices(self) -> tuple[Notice, ...]:
        """Return the notices that have not expired, by id."""
        found = []
        for path in sorted(self._notices.glob("*.json")):
            fields = self._files.read_or_skip(path, _NOTICE)
            now = self._clock.now()
            if fields is not None and fields["since"] <= now < fields["until"]:
                found.append(_notice(path.stem, fields, now))
        return tuple(found)

    def write_notice(self, notice: Notice) -> None:
        """Record a notice that expires after its `remaining` seconds."""
        now = self._clock.now()
        fields = {
            "worker_id": notice.worker_id,
            "reason": notice.reason,
            "wish": notice.to_wish(),
            "since": now,
            "until": now + notice.remaining,
        }
        self._files.replace(self._notices / f"{notice.notice_id}.json", fields)


def _member(worker_id: str, fields: dict[str, Any], now: float) -> Member:
    return Member(worker_id=worker_id, role=fields["role"], position=fields["position"], age=now - fields["seen"])


def _notice(notice_id: str, fields: dict[str, Any], now: float) -> Notice:
    action, position = fields["wish"]
    return Notice(
        notice_id=notice_id,
        worker_id=fields["worker_id"],
        reason=fields["reason"],
        remaining=fields["until"] - now,
        action=action,
        position=position,
    )


def _remove(path: Path) -> None:
    """Remove a record. A directory of its name stays, because no writer of ours has made it."""
    with suppress(IsADirectoryError):
        path.unlink(missing_ok=True)


def _age(path: Path) -> float:
    """Return the seconds since a file was written, by the machine's clock. Infinite if the file is missing."""
    try:
        return max(time.time() - path.stat().st_mtime, 0.0)
    except OSError:
        return math.inf


# -------------------------------------------------------------------- the fields of a record

_TERM: Final[Shape] = {
    "worker_id": one_of(str),
    "resigned": one_of(bool),
    "announcement": one_of(dict, type(None)),
}
_MEMBER: Final[Shape] = {
    "seen": one_of(int, float),
    "duration": one_of(int, float),
    "role": one_of(str),
    "position": lambda value: None if value is None else Position(*value),
}
_NOTICE: Final[Shape] = {
    "worker_id": one_of(str),
    "reason": one_of(str),
    "wish": lambda value: Notice.parse_wish(one_of(str)(value)),
    "since": one_of(int, float),
    "until": one_of(int, float),
}
