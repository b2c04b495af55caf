"""What one worker says for the run while it leads: where it stands, and which notices were answered.

What was said under our term must be on record for as long as we lead: a worker may join at any time, and the reply to
an announcement may have been lost, or the record with the coordinator's data. To take note of what is to be said never
blocks; to say it may, as long as the coordinator does. Who is entitled to speak is the
coordinator's business.
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
    """Announces for one worker.

    Args:
        coordinator: Keeps the announcement.
        worker_id: Who speaks.
        answers: Gives the ids of the notices that were answered.
    """

    def __init__(self, coordinator: Coordinator, worker_id: str, *, answers: Callable[[], tuple[str, ...]]) -> None:
        self._coordinator = coordinator
        self._worker_id = worker_id
        self._answers = answers
        self._lock = threading.Lock()
        # Held while announcing, so that an announcement made again never follows and undoes a newer one.
        self._saying = threading.Lock()
        self._last: Announcement | None = None
        self.newest: CheckpointHeader | None = None
        """The newest checkpoint that we know to be durable."""
        self.start_position = Position(0)
        """Where a run without a checkpoint began."""

    def newest_known(self, on_record: Announcement | None) -> tuple[Position | None, str | None]:
        """Position and name of the newest checkpoint, by our own commits or by what is `on_record`."""
        newest = self.newest
        name = None if on_record is None else on_record.checkpoint
        # The order of names is the order of (term, position).
        if on_record is not None and name is not None and (newest is None or newest.name < name):
            return on_record.position, name
        return (None, None) if newest is None else (newest.position, newest.name)

    def start(self, start: StartPoint, term: int) -> bool:
        """Announce what we restore; False if we don't lead under `term` any more.

        Raises:
            CoordinatorError: It can't be told.
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
        return self.say(term)

    def note(self, term: int, *, finished: bool = False) -> None:
        """Take note of the newest checkpoint, or that there is none, as what is to be said next; says nothing."""
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
            self._last = replace(announcement, answers=self._answers())

    def say(self, term: int, on_record: Announcement | None = None) -> bool:
        """Announce what was noted last, unless it is what is `on_record`.

        Returns:
            Whether it is on record; False if nothing was noted under `term`, or we don't lead under it any more.

        Raises:
            CoordinatorError: It can't be told.
        """
        with self._saying:
            last = self._last
            if last is None or last.term != term:
                return False
            return last == on_record or self._coordinator.announce(last)
