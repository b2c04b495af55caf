"""A worker's event log: its transitions beside the checkpoints, one line of JSON each, bounded in size.

A thread of its own writes the log, as a whole each time, some time after the events. So neither training nor a save
waits for it. Nothing is written before the worker has joined, and nothing after `close`.

The limits: the last events before a SIGKILL may be missing. A write that the disk refuses is logged once and given up.
A write that hangs during `close` may still arrive later. A full log drops events of progress and of commits, evenly in
time. All other events of a worker stay.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Final

from distributed_backup.clock import Clock
from distributed_backup.observability.events import (
    FINAL_KINDS,
    Event,
    Kind,
    RepeatedFailures,
    event_log_name,
    is_event_log,
)
from distributed_backup.storage.base import Storage, partial_target

logger = logging.getLogger(__name__)

# Of one worker: about 400 lines. In a bucket each write sends all of them.
_MOST_BYTES: Final = 64 * 1024
# The kinds that a full log drops, in this order, and how many of each it keeps.
_THINNED: Final[Mapping[Kind, int]] = {"commit_failed": 8, "commit_recovered": 8, "progress": 32, "committed": 32}
# Each start of a worker makes a log. The logs of the oldest starts are removed.
_LOGS_KEPT: Final = 256


class EventLog:
    """Keeps one worker's events and writes them into the run's storage. A sink of `Reporter`."""

    def __init__(self, storage: Storage, *, clock: Clock) -> None:
        self._storage = storage
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: list[tuple[Event, bytes]] = []
        self._size = 0
        self._name = ""
        self._failures = RepeatedFailures()
        self._wake = threading.Event()
        self._flush_now = threading.Event()
        self._unwritten = False
        self._prunes = False
        self._closed = False
        self._abandoned = False
        self._warned = False
        self._thread: threading.Thread | None = None

    def emit(self, event: Event) -> None:
        """Keep an event. With `joined`, writing begins: the run exists from then on."""
        with self._lock:
            if self._closed or self._failures.is_repeated(event):
                return
            self._keep(event, event.line())
            self._prunes = self._prunes or event.kind == "elected"
            if event.kind == "joined":
                self._start(event_log_name(event))
            if event.kind in FINAL_KINDS:
                self._flush_now.set()
            self._unwritten = True
        self._wake.set()

    def _start(self, name: str) -> None:
        self._name = name
        self._thread = threading.Thread(target=self._run, name="distributed-backup-events", daemon=True)
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Write the rest within `timeout` seconds. Later events are dropped."""
        with self._lock:
            self._closed = True
        self._flush_now.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(max(timeout, 0.0))
            self._abandoned = True

    # ---------------------------------------------------------------- bounds

    def _keep(self, event: Event, line: bytes) -> None:
        self._kept.append((event, line))
        self._size += len(line)
        while self._size > _MOST_BYTES:
            self._size -= len(self._kept.pop(self._index_to_drop())[1])

    def _index_to_drop(self) -> int:
        """Return the index of the event to drop: of a frequent kind, the one closest in time to its neighbours."""
        for kind, few in _THINNED.items():
            places = [place for place, (event, _) in enumerate(self._kept) if event.kind == kind]
            if len(places) > few:
                gaps = zip(places, places[1:], places[2:], strict=False)
                return min(gaps, key=lambda gap: self._kept[gap[2]][0].at - self._kept[gap[0]][0].at)[1]
        # Not the first one: it names the run.
        return 1

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        pause, closed = 0.0, False
        while not closed:
            self._wake.wait()
            self._clock.wait(self._flush_now, pause)
            # An event from here on sets it again.
            self._wake.clear()
            with self._lock:
                closed = self._closed
                lines = [line for _, line in self._kept] if self._unwritten else []
                prunes, self._unwritten, self._prunes = self._prunes, False, False
            if lines and not self._abandoned:
                self._write(b"".join(lines), prunes=prunes)
            pause = self._storage.write_interval

    def _write(self, data: bytes, *, prunes: bool) -> None:
        try:
            self._storage.put(self._name, [data], durable=False)
            if prunes:
                self._prune()
        except Exception as error:  # noqa: BLE001 - a dead thread would write no later event
            if not self._warned:
                logger.warning("event log not written, training goes on name=%s reason=%s", self._name, error)
            self._warned = True
            with self._lock:
                self._unwritten = True

    def _prune(self) -> None:
        """Remove all but the newest logs, with the partial files that their killed writers left."""
        logs: dict[str, list[str]] = {}
        for name in self._storage.names():
            log = partial_target(name) or name
            if is_event_log(log):
                logs.setdefault(log, []).append(name)
        for log in sorted(logs)[:-_LOGS_KEPT]:
            for name in logs[log]:
                self._storage.remove(name)
