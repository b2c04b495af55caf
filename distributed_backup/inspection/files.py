"""Check what every storage promises to one process: write and read, create once, append, remove, and how fast.

The storage is of the test alone. `meeting` checks what two processes see of each other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Final

from distributed_backup.errors import StoreError
from distributed_backup.inspection.finding import UNUSABLE, Finding, Outcome, duration, ok, perform, typical_seconds
from distributed_backup.storage.base import Storage

# Bytes of a small state.
_SMALL: Final = 30_000
# Seconds that a commit of a small state, or an append of one answer, may take without a warning.
_SLOW_COMMIT: Final = 1.0
_SLOW_APPEND: Final = 0.1
# Bytes per second that a save of a large state needs: 0.1 s per MB, as the timeouts of buckets allow.
_SLOW_RATE: Final = 10e6
# Seconds by which two clocks may differ. Some storages tell whole seconds only.
_CLOCK_SLACK: Final = 5.0

_FIRST: Final = "write and read"
_CREATED_TWICE: Final = (
    "Two workers that start together could make two run ids, and a term could be granted twice. Use a disk, NFS, or a "
    "bucket with conditional writes. Or set run_id, and keep the coordinator's data on a disk."
)
_NOT_CREATED: Final = (
    "The first worker could not make run.json. SMB and some FUSE file systems have no hard links: use a disk, NFS or a "
    "bucket."
)
_WRONG_APPEND: Final = (
    "Answers of models in the journal would be lost or mixed up. Use another place, or journal=False."
)
_WRONG_REMOVAL: Final = "Old checkpoints and a finished run would stay. Allow this user to delete."


def file_checks(storage: Storage, *, large: int) -> Iterator[Finding]:
    """Yield what one process finds. Ends after the first check if nothing can be written.

    Args:
        storage: An empty storage of the test alone.
        large: Bytes of the file that is written to measure the rate.
    """
    first = perform(_FIRST, lambda: _written(storage), advice=UNUSABLE)
    yield first
    if shows_no_use(first):
        return
    yield perform("exclusive create", lambda: _created_once(storage), advice=_NOT_CREATED)
    yield perform("append", lambda: _appended(storage), advice=_WRONG_APPEND)
    yield perform("delete", lambda: _removed(storage), advice=_WRONG_REMOVAL)
    yield perform("durable write", lambda: _commit_speed(storage), advice=UNUSABLE)
    if not storage.append_interval:
        yield perform("durable append", lambda: _append_speed(storage), advice=_WRONG_APPEND)
    yield perform(
        "large write",
        lambda: _rate(storage, large),
        advice=f"A state of {large / 1e6:.0f} MB could not be saved. Make room, or raise the quota.",
    )
    yield perform("clock", lambda: _clock(storage), advice=UNUSABLE)


def shows_no_use(finding: Finding) -> bool:
    """Return whether a finding of `file_checks` shows that nothing can be kept here. Other checks are in vain then."""
    return finding.name == _FIRST and finding.status == "danger"


def _written(storage: Storage) -> Outcome:
    for content in (b"1" * _SMALL, b"2" * (_SMALL + 1)):
        storage.put("written", [content])
        if (read := storage.read("written")) != content:
            found = f"a file of {len(content)} bytes was read with {len(read)} bytes, or with others than were written"
            return Outcome("danger", found, "A committed checkpoint could be lost. Use another place.")
    if "written" not in storage.names():
        return Outcome(
            "danger",
            "a file that was written is missing in the listing",
            "The newest checkpoint is found by a listing, so an older one would be restored. Use another place.",
        )
    return ok("a file is read and listed as it was written and replaced")


def _created_once(storage: Storage) -> Outcome:
    for name, contents in (("claimed", (b"first", b"second")), ("claimed-empty", (b"", b""))):
        storage.create(name, contents[0])
        if storage.create(name, contents[1]) or storage.read(name) != contents[0]:
            return Outcome("danger", f"a second create of {name} succeeded: conditions are ignored", _CREATED_TWICE)
    return ok("a second create of one file is refused")


def _appended(storage: Storage) -> Outcome:
    storage.append("grown", b"first.", at=0)
    storage.append("grown", b"torn", at=6)
    # As after an attempt that failed. Its bytes are replaced, also where they are more.
    storage.append("grown", b"2nd", at=6)
    storage.append("grown", b".", at=9)
    found, size = storage.read_from("grown", 0, 100), storage.size("grown")
    if found != b"first.2nd." or size != len(found) or storage.read_from("grown", 6, 3) != b"2nd":
        return Outcome(
            "danger", f"appended bytes were read as {found!r} of {size} bytes in place of b'first.2nd.'", _WRONG_APPEND
        )
    return ok("appended bytes are read at once, and a repeated append replaces")


def _removed(storage: Storage) -> Outcome:
    before = set(storage.names())
    for name in before:
        storage.remove(name)
    left = sorted(storage.names())
    try:
        storage.read("written")
        left.append("written")
    except StoreError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
    if left:
        return Outcome(
            "danger",
            f"deleted files are still there: {', '.join(left)}",
            "The next run here could restore the checkpoint of this one. Use another place.",
        )
    return ok("deleted files are gone at once")


def _commit_speed(storage: Storage) -> Outcome:
    content = os.urandom(_SMALL)
    took = typical_seconds(lambda: storage.put("committed", [content]), times=20 if not storage.append_interval else 5)
    found = f"p50 {duration(took)} for {_SMALL // 1000} kB"
    if took > _SLOW_COMMIT:
        return Outcome(
            "warning", found, "Each save takes as long, also at a notice. Choose a larger save_freq and grace period."
        )
    return ok(found)


def _append_speed(storage: Storage) -> Outcome:
    line, at = os.urandom(1000), 0

    def append() -> None:
        nonlocal at
        storage.append("journal", line, at=at)
        at += len(line)

    took = typical_seconds(append, times=20)
    found = f"p50 {duration(took)} for 1 kB"
    if took > _SLOW_APPEND:
        return Outcome("warning", found, "Training waits as long for each answer of a model. Use a faster disk.")
    return ok(found)


def _rate(storage: Storage, large: int) -> Outcome:
    content = os.urandom(large)
    begun = time.perf_counter()
    storage.put("large", [content])
    took = time.perf_counter() - begun
    found = f"{large / 1e6:.0f} MB in {duration(took)}"
    storage.remove("large")
    if large / took < _SLOW_RATE:
        return Outcome(
            "warning",
            found,
            "A large state may not be durable within the grace period. Choose a grace period that suffices.",
        )
    return ok(found)


def _clock(storage: Storage) -> Outcome:
    before = time.time()
    storage.put("stamped", [b"1"])
    after, written = time.time(), storage.written_at("stamped")
    if written is None:
        return Outcome("unknown", "this storage does not tell when a file was written")
    ahead = max(written - after, min(written - before, 0.0))
    if abs(ahead) > _CLOCK_SLACK:
        return Outcome(
            "warning",
            f"the storage's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's",
            "No election depends on it. Event times mislead, and S3 refuses requests that are 15 min off. Use NTP.",
        )
    return ok(f"the storage's clock agrees within {_CLOCK_SLACK:.0f} s")
