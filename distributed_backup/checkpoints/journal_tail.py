"""Read a log while its writer appends, in a thread of its own, for a follower that takes the leader's answers.

The segments of a run change: a scheduled commit begins a new one, and so does a new leader. So the log is looked up
again when the list of segments changes, from the last boundary that was read. What was read since then must be its
beginning. Otherwise the new leader has not read all that this worker has, and the tail is lost.

The limit: what a slow follower has not come to waits in its memory.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

from distributed_backup.checkpoints.journal import LogReader, find_log, segments_among
from distributed_backup.checkpoints.journal_format import Answer, Boundary, Link, Record
from distributed_backup.clock import Clock
from distributed_backup.errors import StoreError
from distributed_backup.once import OnceLogger
from distributed_backup.storage.base import Names, Storage

logger = logging.getLogger(__name__)

# Seconds between two listings while nothing is appended.
_LISTING_PERIOD: Final = 0.5
# Seconds for which the newest segment may not continue what was read.
_PATIENCE: Final = 2.0
# Records that are handed over at once.
_MOST_RECORDS: Final = 1000


class LogTail:
    """The records after `start` and the answers in `seen`, as they are appended.

    From its thread it calls `deliver` with records, `ended` with the end of the log after `finish`, and `lost` with the
    reason if the log can't be followed any more. Each of the last two ends the thread. `ended` gets None if there is no
    log.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        run_id: str,
        start: Boundary,
        seen: Iterable[Answer] = (),
        clock: Clock,
        deliver: Callable[[list[Record]], None],
        ended: Callable[[Link | None], None],
        lost: Callable[[str], None],
    ) -> None:
        self._storage = storage
        self._run_id = run_id
        self._last = start
        self._clock = clock
        self._deliver, self._ended, self._lost = deliver, ended, lost
        self._wake = threading.Event()
        self._finishes = self._stopped = False
        self._names: Names = []
        self._listed_at: float | None = None
        self._reader: LogReader | None = None
        self._newest = ""
        self._strange_since: float | None = None
        # Answers since the last boundary. Hashes, because an answer may be large.
        self._seen = [hash(answer) for answer in seen]
        self._warnings = OnceLogger(logger)
        self._thread = threading.Thread(target=self._run, name="distributed-backup-tail", daemon=True)

    def start(self) -> None:
        """Start reading."""
        self._thread.start()

    def finish(self) -> None:
        """Read what is there, then call `ended`: this worker leads, so what others append later does not count."""
        self._finishes = True
        self._wake.set()

    def stop(self) -> None:
        """Stop reading."""
        self._stopped = True
        self._wake.set()

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        while not self._stopped:
            finishes = self._finishes
            self._wake.clear()
            try:
                reason = self._locate(now=finishes)
                records = [] if reason is not None else self._read()
            except StoreError as error:
                self._warnings.warning("the journal can't be read, retrying: %s", error)
                self._clock.wait(self._wake, _LISTING_PERIOD)
                continue
            if reason is not None:
                self._lost(reason)
                return
            if records:
                self._deliver(records)
            elif finishes:
                self._ended(None if self._reader is None else self._reader.end)
                return
            else:
                self._clock.wait(self._wake, self._storage.poll_interval)

    def _read(self) -> list[Record]:
        if self._reader is None:
            return []
        records = list(islice(self._reader.more(), _MOST_RECORDS))
        for record in records:
            self._note(record)
        return records

    def _note(self, record: Record) -> None:
        if isinstance(record, Boundary):
            self._last, self._seen = record, []
            # A new segment begins at a boundary.
            self._listed_at = None
        elif isinstance(record, Answer):
            self._seen.append(hash(record))

    def _locate(self, *, now: bool) -> str | None:
        """Find the log again if the segments have changed. Return why it can't be followed, or None."""
        instant = self._clock.now()
        if not now and self._listed_at is not None and instant - self._listed_at < _LISTING_PERIOD:
            return None
        self._listed_at = instant
        names = segments_among(self._storage.names())
        if names == self._names:
            return None
        log = find_log(self._storage, run_id=self._run_id, position=self._last.position, digests=self._last.digests)
        if log is None or log.parts[-1].name != names[0]:
            # A new header may not be complete yet.
            self._strange_since = instant if self._strange_since is None else self._strange_since
            is_lost = self._reader is not None and instant - self._strange_since > _PATIENCE
            return "the leader has begun another log" if is_lost else None
        self._names, self._strange_since = names, None
        newest = log.parts[-1].name
        if newest == self._newest:
            return None
        reader = LogReader(self._storage, log)
        for expected in self._seen:
            found = next((record for record in reader.more() if isinstance(record, Answer)), None)
            if hash(found) != expected:
                return "the new leader has not recorded all answers that this worker has used"
        self._reader, self._newest = reader, newest
        return None
