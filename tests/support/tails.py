"""A tail of a journal for tests: segments that grow, a storage that fails, and what the tail has reported."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from distributed_backup.checkpoints import journal
from distributed_backup.checkpoints.journal_format import Boundary, Header, Link, LogEnd, Outcome, Record, encode_record
from distributed_backup.checkpoints.journal_tail import LogTail, TailListener, TailStart
from distributed_backup.clock import SystemClock
from distributed_backup.errors import StoreError
from distributed_backup.position import Position
from distributed_backup.storage.base import Names
from distributed_backup.storage.local import LocalStorage
from tests.support.answering import boundary, keys
from tests.support.clocks import FakeClock
from tests.support.team import PATIENCE, soon

RUN = "run"


class Files(LocalStorage):
    """Fails while it has `errors`, and once for each segment in `busy`. Lists `listed` while that is set."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.errors: list[Exception] = []
        self.busy: list[str] = []
        self.reads = self.listings = 0
        self.listed: Names | None = None

    def names(self) -> Names:
        self.listings += 1
        if self.errors:
            raise self.errors.pop(0)
        return super().names() if self.listed is None else self.listed

    def read_from(self, name: str, offset: int, limit: int) -> bytes:
        self.reads += 1
        # Headers are read in another size.
        if name in self.busy and limit == journal._CHUNK:
            self.busy.remove(name)
            raise StoreError("busy", path="p")
        return super().read_from(name, offset, limit)


class Patient(SystemClock):
    """Waits in real time, and says so."""

    def __init__(self) -> None:
        super().__init__()
        self.is_waiting = threading.Event()

    def wait(self, event: threading.Event, timeout: float) -> bool:
        self.is_waiting.set()
        return super().wait(event, timeout)


class Clock(FakeClock):
    """A step of time at each wait, and each wait lets a test look between."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0

    def wait(self, event: threading.Event, timeout: float) -> bool:
        self.waits += 1
        event.wait(0.001)
        return super().wait(event, timeout)


class Segment:
    """A segment that grows."""

    def __init__(self, storage: LocalStorage, header: Header) -> None:
        self.storage, self.name, self.size = storage, header.name, 0
        self.add(header)

    def add(self, *records: Record) -> Segment:
        data = b"".join(map(encode_record, records))
        self.storage.append(self.name, data, at=self.size)
        self.size += len(data)
        return self

    @property
    def link(self) -> Link:
        return Link(name=self.name, end=self.size)


class Tail:
    """A tail and what it has reported."""

    def __init__(self, root: Path) -> None:
        self.storage = Files(root)
        self.storage.prepare()
        self.clock = Clock()
        self.records: list[Record] = []
        self.reports: list[Any] = []
        self.newest: Position | None = None
        self.tail: LogTail | None = None

    def segment(
        self, term: int, batch: int = 0, *, after: Link | None = None, state: Boundary | None = None, worker: str = "w"
    ) -> Segment:
        header = Header(
            run_id=RUN,
            term=term,
            worker_id=worker,
            position=Position(0, batch),
            after=after,
            digests=None if state is None else state.digests,
        )
        return Segment(self.storage, header)

    def _ended(self, end: LogEnd) -> None:
        self.reports.append(("ended", end.link))
        self.newest = end.newest

    def start(
        self,
        start: Boundary | None = None,
        seen: tuple[Outcome, ...] = (),
        *,
        finishes: bool = False,
        led_by: str | None = None,
    ) -> LogTail:
        tail = self.made(start, seen, led_by=led_by)
        if finishes:
            tail.finish()
        tail.start()
        return tail

    def made(
        self, start: Boundary | None = None, seen: tuple[Outcome, ...] = (), *, led_by: str | None = None
    ) -> LogTail:
        """Return a tail that has not started."""
        self.tail = LogTail(
            self.storage,
            run_id=RUN,
            start=TailStart(boundary=start or boundary(0), seen=seen, led_by=led_by),
            clock=self.clock,
            listener=TailListener(
                deliver=self.records.extend,
                ended=self._ended,
                lost=lambda reason: self.reports.append(("lost", reason)),
            ),
        )
        return self.tail

    def has(self, *names: str) -> None:
        soon(lambda: keys(self.records) == list(names))

    def lost(self) -> str:
        soon(lambda: self.reports)
        [(kind, reason)] = self.reports
        assert kind == "lost"
        return str(reason)

    def look(self, times: int = 30) -> None:
        """Let it look around some times."""
        before = self.clock.waits
        soon(lambda: self.clock.waits >= before + times)

    def listings_in(self, looks: int) -> int:
        """Let it look around, and return how often it has read the list."""
        before = self.storage.listings
        self.look(looks)
        return self.storage.listings - before

    def end(self) -> None:
        if self.tail is not None:
            self.tail.stop()
            self.tail._thread.join(PATIENCE)
            assert not self.tail._thread.is_alive()
