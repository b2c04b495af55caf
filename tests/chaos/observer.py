"""Look at a run from outside while it goes on: its newest checkpoint, and whether it is there. Imports no synalinks."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from distributed_backup.checkpoints.format import checkpoints_among, decode, parse_name
from distributed_backup.checkpoints.run_identity import RUN_FILE
from distributed_backup.errors import CorruptCheckpointError, StoreError
from distributed_backup.position import Position
from distributed_backup.storage import storage_from_url
from tests.chaos.history import Sample
from tests.chaos.plan import Place

# Seconds between two looks. A listing of the simulated bucket takes 10 ms of CPU.
_PERIODS: Final = {"s3": 0.5, "redis": 0.05}
_PERIOD_OF_A_DIRECTORY: Final = 0.01
# A listing of a directory that changes may miss a file. So what it seems to have lost is looked for again.
_LOOKS: Final = 3


class Observer:
    """Samples a run in a thread of its own, from `with` on. Only changes are kept."""

    def __init__(self, place: Place) -> None:
        self.samples: list[Sample] = []
        self._place = place
        self._storage = storage_from_url(place.backup_dir, run_id=place.run_id)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._was_there = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.look()
        self._storage.close()

    def look(self) -> Position | None:
        """Take a sample. Return the position of the newest checkpoint, None if there is none or it is out of reach."""
        with self._lock, suppress(StoreError):
            sample = self._sample()
            if not self.samples or sample.name != self.samples[-1].name or sample.is_gone != self.samples[-1].is_gone:
                self.samples.append(sample)
            parsed = None if sample.name is None else parse_name(sample.name)
            return None if parsed is None else parsed[1]
        return None

    def _run(self) -> None:
        period = _PERIODS.get(self._place.backup_dir.partition(":")[0], _PERIOD_OF_A_DIRECTORY)
        while not self._stop.wait(period):
            self.look()

    def _sample(self) -> Sample:
        last = self.samples[-1].name if self.samples else None
        for _ in range(_LOOKS):
            at = time.monotonic()
            found = self._storage.names()
            newest = next(iter(checkpoints_among(found)), None)
            if last is None or (newest is not None and newest >= last):
                break
        is_there = RUN_FILE in found or newest is not None
        self._was_there = self._was_there or is_there
        if newest is None or newest == last:
            return Sample(at=at, name=newest, is_gone=self._was_there and not is_there)
        return self._verified(at, newest)

    def _verified(self, at: float, name: str) -> Sample:
        try:
            header = decode(self._storage.read(name), path=self._storage.path_of(name)).header
        except CorruptCheckpointError as error:
            return Sample(at=at, name=name, problem=str(error))
        except StoreError:
            # It has been superseded and removed since, or the server is away.
            return Sample(at=at, name=name)
        return Sample(at=at, name=name, writer=header.worker_id)
