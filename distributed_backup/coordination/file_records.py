"""The terms, members and notices of one run, as small JSON files of the local machine.

Each file has one writer and is replaced in one step, so readers need no lock:

    DIRECTORY/
      terms/0000000007.json  created exclusively by the leader of term 7, which alone rewrites it:
                             {"worker_id", "resigned", "announcement"}. The highest term counts.
      members/WORKER.json    rewritten by the worker at each tick: {"seen", "duration", "role", "position"}
      notices/NOTICE.json    {"worker_id", "reason", "wish", "since", "until"}

A late write by an earlier leader lands in the file of its own term. Instants are CLOCK_BOOTTIME, which all processes
of a machine share. An instant in the future was written before a reboot. Nothing is fsynced: the records describe
running processes, and none of those survives a power cut.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import orjson

from distributed_backup.atomic import replace_file
from distributed_backup.clock import Clock
from distributed_backup.coordination.base import Announcement, Heartbeat, Member, Notice
from distributed_backup.position import Position

_TERMS_KEPT: Final = 8
# A dead member's record is removed after this many times its duration. By then every worker counts it as expired.
_EXPIRIES_KEPT: Final = 10


class FileRecords:
    """The records in `root`. Making one touches no disk.

    All methods raise `OSError` where a file can't be used, and `KeyError`, `TypeError` or `ValueError` where a record
    has another form. Ids become names of files, so the caller checks them.
    """

    def __init__(self, root: Path, clock: Clock) -> None:
        self._clock = clock
        self._terms = root / "terms"
        self._members = root / "members"
        self._notices = root / "notices"

    def erase(self) -> None:
        """Remove all records and their folders. Files in other folders stay."""
        for folder in (self._terms, self._members, self._notices):
            for path in folder.glob("*"):
                path.unlink(missing_ok=True)
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
        """Return the record of a term. None if it is missing, torn, or created and still empty."""
        return read_record(self._term_path(term))

    def claim_term(self, worker_id: str, floor: int) -> int:
        """Create the record of a term higher than `floor` and all others, and return the term.

        O_EXCL makes the term unique even if the lock file was removed in the meantime.
        """
        self._terms.mkdir(parents=True, exist_ok=True)
        term = floor
        while True:
            term = max(term, *self.terms(), 0) + 1
            try:
                descriptor = os.open(self._term_path(term), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                continue
            os.close(descriptor)
            # If a higher term exists by now, ours may have been used and cleaned up after the listing.
            if self.terms()[-1] == term:
                break
        self.write_term(term, worker_id)
        with suppress(OSError, KeyError, TypeError, ValueError):
            self._clean_up()
        return term

    def write_term(self, term: int, worker_id: str, announcement: Announcement | None = None) -> None:
        """Write the record of a term that the caller holds."""
        fields = None if announcement is None else announcement.to_fields()
        record = {"worker_id": worker_id, "resigned": False, "announcement": fields}
        replace_record(self._term_path(term), record)

    def resign_term(self, term: int) -> None:
        """Mark a term as resigned."""
        replace_record(self._term_path(term), {**(self.term(term) or {}), "resigned": True})

    def newest_announcement(self, terms: list[int]) -> Announcement | None:
        """Return the announcement of the highest of `terms` that has one."""
        for term in reversed(terms):
            record = self.term(term) or {}
            fields = record.get("announcement")
            if fields is not None:
                # Version 0.3 writes these two beside the announcement only.
                return Announcement.from_fields({**fields, "term": term, "worker_id": record["worker_id"]})
        return None

    def _clean_up(self) -> None:
        """Remove old terms, expired notices, and members that died long ago."""
        terms = self.terms()
        newest = self.newest_announcement(terms)
        for term in terms[:-_TERMS_KEPT]:
            if newest is None or term != newest.term:
                self._term_path(term).unlink(missing_ok=True)
        for path in self._members.glob("*.json"):
            fields = read_record(path) or {"seen": 0.0, "duration": 0.0}
            if not 0 <= self._clock.now() - fields["seen"] < _EXPIRIES_KEPT * fields["duration"]:
                path.unlink(missing_ok=True)
        for path in self._notices.glob("*.json"):
            fields = read_record(path) or {"since": 0.0, "until": 0.0}
            if not fields["since"] <= self._clock.now() < fields["until"]:
                path.unlink(missing_ok=True)

    def _term_path(self, term: int) -> Path:
        return self._terms / f"{term:010d}.json"

    # ---------------------------------------------------------------- members

    def members(self) -> tuple[Member, ...]:
        """Return the members that have not expired, by id."""
        found = []
        for path in sorted(self._members.glob("*.json")):
            fields = read_record(path)
            # Read the clock after the file: a record written in between must not appear to be from the future.
            now = self._clock.now()
            if fields is not None and 0 <= now - fields["seen"] < fields["duration"]:
                found.append(_member(path.stem, fields, now))
        return tuple(found)

    def age(self, worker_id: str) -> float | None:
        """Return the seconds since the worker's last tick. None if they are unknown."""
        fields = read_record(self._member_path(worker_id))
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
        replace_record(self._member_path(beat.worker_id), fields)

    def touch_member(self, worker_id: str) -> None:
        """Record that a member is alive, if it is one."""
        path = self._member_path(worker_id)
        if (fields := read_record(path)) is not None:
            replace_record(path, {**fields, "seen": self._clock.now()})

    def remove_member(self, worker_id: str) -> None:
        """Remove a member and its notices."""
        self._member_path(worker_id).unlink(missing_ok=True)
        for path in self._notices.glob("*.json"):
            if (read_record(path) or {}).get("worker_id") == worker_id:
                path.unlink(missing_ok=True)

    def _member_path(self, worker_id: str) -> Path:
        return self._members / f"{worker_id}.json"

    # ---------------------------------------------------------------- notices

    def notices(self) -> tuple[Notice, ...]:
        """Return the notices that have not expired, by id."""
        found = []
        for path in sorted(self._notices.glob("*.json")):
            fields = read_record(path)
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
            "wish": notice.action,
            "since": now,
            "until": now + notice.remaining,
        }
        replace_record(self._notices / f"{notice.notice_id}.json", fields)


def _member(worker_id: str, fields: dict[str, Any], now: float) -> Member:
    position = fields["position"]
    return Member(
        worker_id=worker_id,
        role=fields["role"],
        position=None if position is None else Position(*position),
        age=now - fields["seen"],
    )


def _notice(notice_id: str, fields: dict[str, Any], now: float) -> Notice:
    return Notice(
        notice_id=notice_id,
        worker_id=fields["worker_id"],
        reason=fields["reason"],
        remaining=fields["until"] - now,
        action=fields["wish"],
    )


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the object in `path`. None if the file is missing, torn, or created and still empty."""
    try:
        fields = orjson.loads(path.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return None
    return fields if isinstance(fields, dict) else None


def replace_record(path: Path, fields: dict[str, Any]) -> None:
    """Write an object in one step. Create its folder if it is missing."""
    data = orjson.dumps(fields)
    try:
        replace_file(path, data, mode=0o600)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, data, mode=0o600)
