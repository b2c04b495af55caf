"""Check what two processes see of each other in one storage, of one machine or of two.

Both perform the same exercises in the same order, each in its own part, and tell each other what they saw. So both come
to the same findings. The first one in a pair makes the changes, the second one looks at them.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from statistics import median
from typing import Any, Final, override

from distributed_backup.coordination.base import Heartbeat
from distributed_backup.coordination.file import FileCoordinator
from distributed_backup.errors import BackupError, StoreError
from distributed_backup.inspection.finding import Finding, Outcome, count, duration, ok
from distributed_backup.inspection.party import GoneError, Party
from distributed_backup.storage.base import Storage
from distributed_backup.storage.local import LocalStorage

# Where one request takes milliseconds, and where it takes a good part of a second.
_MANY: Final = 50
_FEW: Final = 5
_REPLACED_BYTES: Final = 65_536
# The contents of a file, one after the other. None: it is removed.
_CHANGES: Final = (b"one", b"two", None)
# Seconds until a change must be seen, and until it should be.
_LATEST: Final = 90.0
_SOON: Final = 2.0
# Seconds by which the clocks of two machines may differ.
_CLOCK_SLACK: Final = 1.0
# Of a heartbeat with a file lock, which does not expire.
_DURATION: Final = 15.0

Seen = dict[str, Any]
"""What one of the two saw in an exercise."""


class Exercise(ABC):
    """One exercise of two processes."""

    name: str
    advice: str
    """What a failure means and what to do."""

    @abstractmethod
    def first(self, party: Party) -> Seen:
        """Perform the part of the first process."""

    @abstractmethod
    def second(self, party: Party) -> Seen:
        """Perform the part of the second process."""

    @abstractmethod
    def judge(self, first: Seen, second: Seen) -> Outcome:
        """Return the outcome of what both saw."""


class Appends(Exercise):
    """Messages go to and fro. Each is appended by one and read by the other, as answers are in the journal."""

    name = "append is seen"
    advice = "Followers would not see the leader's answers in the journal. Use another place, or journal=False."

    @override
    def first(self, party: Party) -> Seen:
        trips, offsets = [], []
        for number in range(_times(party.storage)):
            begun, wall = time.perf_counter(), time.time()
            party.say(ping=number)
            reply = party.hear()
            trips.append(time.perf_counter() - begun)
            offsets.append(reply["time"] - (wall + time.time()) / 2)
        quickest = min(range(len(trips)), key=trips.__getitem__)
        return {"seconds": median(trips) / 2, "offset": offsets[quickest], "doubt": trips[quickest] / 2}

    @override
    def second(self, party: Party) -> Seen:
        for _ in range(_times(party.storage)):
            party.hear()
            party.say(time=time.time())
        return {}

    @override
    def judge(self, first: Seen, second: Seen) -> Outcome:
        found = f"appended bytes were seen after {duration(first['seconds'])} (p50)"
        if (apart := abs(first["offset"]) - first["doubt"]) > _CLOCK_SLACK:
            return Outcome(
                "warning",
                f"{found}, and the two clocks differ by {apart:.1f} s or more",
                "Events of the two machines are drawn in the wrong order. No election depends on it. Use NTP.",
            )
        if first["seconds"] > _SOON:
            return Outcome("warning", found, "Followers learn of the leader's answers as late, and lead as late.")
        return ok(found)


class Creates(Exercise):
    """Both create the same names at the same time."""

    name = "exclusive create, two processes"
    advice = (
        "Two workers could lead under one term, or make two run ids. Use a disk, NFS, or a bucket with conditional "
        "writes."
    )

    @override
    def first(self, party: Party) -> Seen:
        return self._create(party)

    @override
    def second(self, party: Party) -> Seen:
        return self._create(party)

    def _create(self, party: Party) -> Seen:
        mine = b"first" if party.first else b"second"
        names = [party.name(f"claim-{number}") for number in range(_times(party.storage))]
        won = []
        for number, name in enumerate(names):
            party.say(ready=True)
            party.hear()
            # A run makes run.json with bytes, and the claim of a term without. Storages may do these in two ways.
            won.append(party.storage.create(name, mine if number % 2 else b""))
        party.say(ready=True)
        party.hear()
        return {"won": won, "holders": [party.storage.read(name).decode() for name in names]}

    @override
    def judge(self, first: Seen, second: Seen) -> Outcome:
        rounds = list(zip(first["won"], second["won"], first["holders"], second["holders"], strict=True))
        names = count(len(rounds), "name")
        if twice := sum(one and other for one, other, *_ in rounds):
            return Outcome("danger", f"{twice} of {names} were created by both processes", self.advice)
        allowed = ({"first", ""} if one else {"second", ""} for one, *_ in rounds)
        if any(here != there or here not in of for (_, _, here, there), of in zip(rounds, allowed, strict=True)):
            return Outcome("danger", f"of {names}, some hold the bytes of the process that was refused", self.advice)
        return ok(f"each of {names} was created by one process only")


class Replaces(Exercise):
    """The first one replaces a file again and again, and the second one reads it meanwhile."""

    name = "replace, seen by a reader"
    advice = "A checkpoint that is being replaced could be read torn, or be missing. Use another place."

    @override
    def first(self, party: Party) -> Seen:
        name = party.name("replaced")
        for version in range(_times(party.storage)):
            party.storage.put(name, [_version(version)], durable=False)
            if version == 0:
                party.say(there=True)
                party.hear()
        party.say(done=True)
        return {}

    @override
    def second(self, party: Party) -> Seen:
        name = party.name("replaced")
        party.hear()
        party.storage.read(name)
        party.say(reading=True)
        seen: Seen = {"reads": 0, "torn": 0, "missing": 0, "failed": 0, "older": 0, "reason": ""}
        newest = 0

        def look() -> None:
            nonlocal newest
            seen["reads"] += 1
            try:
                data = party.storage.read(name)
            except StoreError as error:
                seen["missing" if isinstance(error.__cause__, FileNotFoundError) else "failed"] += 1
                seen["reason"] = str(error)
                return
            version = int(data[:8] or b"0")
            seen["torn"] += data != _version(version)
            seen["older"] += version < newest
            newest = max(newest, version)

        party.hear(look)
        return seen

    @override
    def judge(self, first: Seen, second: Seen) -> Outcome:
        reads = count(second["reads"], "read")
        if second["torn"]:
            return Outcome("danger", f"{second['torn']} of {reads} had bytes of two versions", self.advice)
        if second["missing"]:
            return Outcome("danger", f"{second['missing']} of {reads} found no file", self.advice)
        if second["older"]:
            return Outcome(
                "danger",
                f"{second['older']} of {reads} showed an older version than the read before",
                "A worker could restore an older checkpoint than the newest. Use another place.",
            )
        if second["failed"]:
            return Outcome(
                "warning",
                f"{second['failed']} of {reads} failed ({second['reason']})",
                "While a run trains, only event logs are replaced. Repeat a command that can't read them.",
            )
        return ok(f"each of {reads} found one whole version")


class Names(Exercise):
    """The first one writes, replaces and removes a file, and the second one waits until it sees that."""

    name = "names are seen"
    advice = "Another worker would not find the newest checkpoint. Use another place."

    @override
    def first(self, party: Party) -> Seen:
        name = party.name("changed")
        party.hear()
        for content in _CHANGES:
            if content is None:
                party.storage.remove(name)
            else:
                party.storage.put(name, [content])
            party.say(changed=True)
            party.hear()
        return {}

    @override
    def second(self, party: Party) -> Seen:
        name = party.name("changed")
        # A client may remember that a name is missing, so both ways to look for it are taken before.
        self._sees(party, name, None)
        party.say(ready=True)
        waits = []
        for content in _CHANGES:
            party.hear()
            begun = time.monotonic()
            while not (seen := self._sees(party, name, content)) and time.monotonic() < begun + _LATEST:
                party.rest()
            waits.append(time.monotonic() - begun if seen else None)
            party.say(seen=seen)
        return {"waits": waits}

    def _sees(self, party: Party, name: str, content: bytes | None) -> bool:
        listed, found = name in party.storage.names(), None
        try:
            found = party.storage.read(name)
        except StoreError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
        return found == content and listed == (content is not None)

    @override
    def judge(self, first: Seen, second: Seen) -> Outcome:
        waits = dict(zip(("written", "replaced", "removed"), second["waits"], strict=True))
        if unseen := [change for change, wait in waits.items() if wait is None]:
            return Outcome("danger", f"a file that was {unseen[0]} was not seen so within {_LATEST:g} s", self.advice)
        longest = max(waits, key=waits.__getitem__)
        found = f"a change was seen after {duration(waits[longest])} at most"
        if waits[longest] > _SOON:
            return Outcome(
                "warning",
                f"{found}: a file that was {longest}",
                "Other machines start and take over as late. On NFS, mount with actimeo=1.",
            )
        return ok(found)


class Locks(Exercise):
    """Both ask for the lock of a run's coordinator. For directories only."""

    name = "file lock"
    advice = "The coordinator file: would elect two leaders here. Use a Redis or Valkey server as coordinator."

    @override
    def first(self, party: Party) -> Seen:
        coordinator = lock_of(party)
        held = coordinator.heartbeat(beat("first")).holder == "first"
        party.say(held=held)
        party.hear()
        # The holder finds at each heartbeat that the lock file is still its own.
        kept = coordinator.heartbeat(beat("first")).holder == "first"
        coordinator.resign("first")
        party.say(resigned=True)
        party.hear()
        other = coordinator.heartbeat(beat("first")).holder
        return {"held": held, "kept": kept, "excluded": other == "second"}

    @override
    def second(self, party: Party) -> Seen:
        coordinator = lock_of(party)
        party.hear()
        excluded = coordinator.heartbeat(beat("second")).holder == "first"
        party.say(asked=True)
        party.hear()
        taken = coordinator.heartbeat(beat("second")).holder == "second"
        party.say(asked=True)
        return {"excluded": excluded, "taken": taken}

    @override
    def judge(self, first: Seen, second: Seen) -> Outcome:
        if not first["held"] or not second["taken"]:
            return Outcome("danger", "a free lock could not be taken", self.advice)
        if not first["excluded"] or not second["excluded"]:
            return Outcome("danger", "two processes held one lock at the same time", self.advice)
        if not first["kept"]:
            return Outcome(
                "danger",
                "a process lost its lock while it held it: the file's inode number changes",
                self.advice,
            )
        return ok("one process held the lock, and the other took it when it was released")


def lock_of(party: Party) -> FileCoordinator:
    """Return the process's coordinator in the directory of the two."""
    assert isinstance(party.storage, LocalStorage)
    if party.lock is None:
        party.lock = FileCoordinator(party.storage.root / party.name("coordinator"))
    return party.lock


def beat(worker_id: str) -> Heartbeat:
    """Return a heartbeat that campaigns."""
    return Heartbeat(worker_id=worker_id, campaign=True, floor=0, duration=_DURATION)


def exercises_for(storage: Storage) -> Sequence[Exercise]:
    """Return the exercises that a storage allows, in their order."""
    return (Appends(), Creates(), Replaces(), Names(), *([Locks()] if isinstance(storage, LocalStorage) else []))


def exchange(party: Party) -> Iterator[Finding]:
    """Perform all exercises with the other process, and yield what both found.

    A failure ends them, because the two would then be in different exercises.
    """
    for exercise in exercises_for(party.storage):
        try:
            own = exercise.first(party) if party.first else exercise.second(party)
            party.say(saw=own)
            other = party.hear()["saw"]
        except GoneError as error:
            yield Finding(name=exercise.name, status="unknown", found=str(error))
            return
        except BackupError as error:
            yield Finding(name=exercise.name, status="danger", found=str(error), advice=exercise.advice)
            with suppress(BackupError):
                party.say(failure=str(error))
            return
        outcome = exercise.judge(own, other) if party.first else exercise.judge(other, own)
        yield Finding(name=exercise.name, **outcome._asdict())


def _times(storage: Storage) -> int:
    return _FEW if storage.append_interval else _MANY


def _version(number: int) -> bytes:
    return f"{number:08d}".encode() * (_REPLACED_BYTES // 8)
