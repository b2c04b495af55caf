"""Perform the exercises of two processes with a child of this process, or with another machine."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Final

from distributed_backup.errors import BackupError
from distributed_backup.inspection.finding import Finding, Outcome, duration, ok, perform
from distributed_backup.inspection.meeting import Locks, beat, exchange, lock_of
from distributed_backup.inspection.other_process import OtherProcess
from distributed_backup.inspection.party import Party, meet
from distributed_backup.storage.base import Storage
from distributed_backup.storage.local import LocalStorage

# Seconds in which the kernel must free the lock of a killed process.
_FREED_WITHIN: Final = 5.0


class NotMetError(BackupError):
    """No other machine came."""


def checks_with_process(storage: Storage, place: str) -> Iterator[Finding]:
    """Yield what this process and a child of it find in a storage of the test alone.

    Args:
        storage: The storage.
        place: Its path or URL, for the child.
    """
    prefix = f"{secrets.token_hex(4)}."
    with OtherProcess(place, prefix=prefix) as other:
        party = Party(storage, prefix=prefix, first=True, lives=other.lives)
        failed = False
        try:
            for finding in exchange(party):
                failed |= finding.status in {"danger", "unknown"}
                yield finding
            if isinstance(storage, LocalStorage) and not failed:
                yield perform("lock of a killed process", lambda: _freed(party, other), advice=Locks.advice)
        finally:
            # NFS keeps a file that is removed while a process has it open.
            if party.lock is not None:
                with suppress(BackupError):
                    party.lock.resign("first")


def _freed(party: Party, other: OtherProcess) -> Outcome:
    coordinator = lock_of(party)
    other.kill()
    killed = time.monotonic()
    while coordinator.heartbeat(beat("first")).holder != "first":
        if time.monotonic() > killed + _FREED_WITHIN:
            return Outcome(
                "danger",
                f"a lock was still held {_FREED_WITHIN:g} s after its holder was killed",
                "No worker takes over from a leader that was killed. Use a Redis or Valkey server as coordinator.",
            )
        threading.Event().wait(0.01)
    return ok(f"the lock was free {duration(time.monotonic() - killed)} after its holder was killed")


def checks_with_machine(storage: Storage, *, wait: float) -> Iterator[Finding]:
    """Yield what this machine and another one find, that performs the same checks in the same storage.

    Args:
        storage: The storage where the two meet.
        wait: Seconds to wait for the other.

    Raises:
        NotMetError: No other came in time.
    """
    try:
        storage.prepare()
        met = meet(storage, me=secrets.token_hex(8), within=wait)
        if met is None:
            raise NotMetError(
                f"no other machine was met in {storage.location} within {wait:g} s: start this command on both within "
                "that time, and make sure that both have the same directory or bucket there"
            )
        party, host = met
        yield from _exchange(party, host)
    finally:
        storage.remove_if_empty()


def _of_two_machines(finding: Finding, host: str) -> Finding:
    """Return a finding with the other's name. A lock that excludes no other machine is known, and is no danger."""
    named = replace(finding, name=f"{finding.name}, with {host}")
    if finding.name != Locks.name or finding.status != "danger":
        return named
    return replace(
        named,
        status="warning",
        advice="The coordinator file: is for the workers of one machine. Use a Redis or Valkey server for several.",
    )


def _exchange(party: Party, host: str) -> Iterator[Finding]:
    ended = False
    try:
        for finding in exchange(party):
            yield _of_two_machines(finding, host)
        # The one that makes the changes also removes all files, when the other has read the last of them.
        if party.first:
            with suppress(BackupError):
                party.hear()
        else:
            party.say(bye=True)
        ended = True
    finally:
        if party.first or not ended:
            if party.lock is not None:
                with suppress(BackupError):
                    party.lock.erase()
            party.tidy()
