"""Announce one worker's position and acknowledgements while it leads.

What was noted under a term must be on record for as long as the worker leads. Workers may join at any time, the reply
to an announcement may be lost, and so may the coordinator's data. `note` never blocks. `publish` blocks while the
coordinator call does. The coordinator checks that the caller holds the lease.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from distributed_backup.checkpoints.format import CheckpointHeader
from distributed_backup.coordination.base import Announcement, Coordinator
from distributed_backup.position import Position
from distributed_backup.worker.start_point import StartPoint


class Announcer:
    """Announces for one worker. `acknowledged` returns the ids of acknowledged notices."""

    def __init__(
        self, coordinator: Coordinator, worker_id: str, *, acknowledged: Callable[[], tuple[str, ...]]
    ) -> None:
        self._coordinator = coordinator
        self._worker_id = worker_id
        self._acknowledged = acknowledged
        self._lock = threading.Lock()
        # Held during the call, so that a repeated announcement never follows and undoes a newer one.
        self._publishing = threading.Lock()
        self._last: Announcement | None = None
        self.newest: CheckpointHeader | None = None
        """The newest checkpoint that this worker knows to be durable."""
        self.start_position = Position(0)
        """Where a run without a checkpoint began."""

    def newest_known(self, on_record: Announcement | None) -> tuple[Position | None, str | None]:
        """Return position and name of the newest checkpoint: of `newest`, or of the announcement `on_record`."""
        newest = self.newest
        name = None if on_record is None else on_record.checkpoint
        # The order of names is the order of (term, position).
        if on_record is not None and name is not None and (newest is None or newest.name < name):
            return on_record.position, name
        return (None, None) if newest is None else (newest.position, newest.name)

    def announce_start(self, start: StartPoint, term: int) -> bool:
        """Announce the restored position. Return False if this worker no longer leads under `term`.

        Raises:
            CoordinatorError: The coordinator can't be reached.
        """
        self._note(
            Announcement(
                term=term,
                worker_id=self._worker_id,
                position=start.position or self.start_position,
                checkpoint=start.name,
                digest=start.digest,
            )
        )
        return self.publish(term)

    def note(self, term: int, *, finished: bool = False) -> None:
        """Note the newest checkpoint, or that there is none, as the next announcement."""
        newest = self.newest
        self._note(
            Announcement(
                term=term,
                worker_id=self._worker_id,
                position=self.start_position if newest is None else newest.position,
                checkpoint=None if newest is None else newest.name,
                digest=None if newest is None else newest.digest,
                finished=finished,
            )
        )

    def _note(self, announcement: Announcement) -> None:
        with self._lock:
            last = self._last
            if last is not None and last.term == announcement.term and last.finished:
                announcement = replace(announcement, finished=True)
            self._last = replace(announcement, acknowledged=self._acknowledged())

    def publish(self, term: int, on_record: Announcement | None = None) -> bool:
        """Announce what was noted last, unless it is `on_record` already.

        Returns:
            Whether it is on record. False if nothing was noted under `term`, or this worker no longer leads under it.

        Raises:
            CoordinatorError: The coordinator can't be reached.
        """
        with self._publishing:
            last = self._last
            if last is None or last.term != term:
                return False
            return last == on_record or self._coordinator.announce(last)
