"""What a worker tells the others about notices, and what it obeys of theirs.

A notice is the cluster's business: whoever leads saves for it. What is told may be lost with the coordinator's data, so
it is told again when another term shows; nothing here waits, and an error of the coordinator is a line in the log.
"""

from __future__ import annotations

import logging
import threading

from distributed_backup.clock import Clock
from distributed_backup.coordinators.base import ClusterView, Coordinator, Notice
from distributed_backup.election import Elector
from distributed_backup.errors import BackupError
from distributed_backup.notices import Notices, OwnNotice, new_notice_id

logger = logging.getLogger(__name__)

# Seconds for which a request for a save waits for somebody to lead.
_REQUEST_LASTS = 300.0


class Messenger:
    """One worker's messages about notices. Thread-safe as far as the coordinator is.

    Args:
        coordinator: The run's coordinator.
        notices: Those that the worker knows of.
        elector: Of the worker.
        worker_id: Of the worker.
        clock: Where time comes from.
    """

    def __init__(
        self, coordinator: Coordinator, notices: Notices, *, elector: Elector, worker_id: str, clock: Clock
    ) -> None:
        self._coordinator = coordinator
        self._notices = notices
        self._elector = elector
        self._worker_id = worker_id
        self._clock = clock
        # The term at which the others were told of our notice; None while they were not.
        self._told_at: int | None = None
        self._told = threading.Event()
        # The request to let another lead that we have obeyed.
        self._obeyed = ""

    def tell(self, notice: OwnNotice, view: ClusterView | None) -> None:
        """Tell the others that this worker is going to be killed; from then on, again where that may be lost."""
        self._tell(notice, 0 if view is None else view.term)
        self._told.set()

    def tell_again(self, view: ClusterView) -> None:
        """The coordinator was away when we told the others, or may have lost its data since."""
        notice = self._notices.own
        if notice is None or self._notices.own_is_answered or view.term == self._told_at:
            return
        if self._told.is_set() and notice.deadline > self._clock.now():
            self._tell(notice, view.term)

    def _tell(self, notice: OwnNotice, term: int) -> None:
        remaining = notice.deadline - self._clock.now()
        if self._notify(notice.notice_id, notice.reason, remaining, what="telling the others of the notice"):
            self._told_at = term

    def ask_for_save(self, reason: str) -> bool:
        """Ask whoever leads for a save, as an operator does; nobody leaves.

        Returns:
            Whether the request is on record, or is our own to obey.
        """
        notice_id = new_notice_id()
        leads = self._elector.is_leader
        if leads:
            # At once; the coordinator may not answer, and shows it to ourselves at the next tick only.
            self._notices.ask(notice_id)
        return self._notify(notice_id, reason, _REQUEST_LASTS, what="asking for a save") or leads

    def _notify(self, notice_id: str, reason: str, remaining: float, *, what: str) -> bool:
        notice = Notice(notice_id=notice_id, worker_id=self._worker_id, reason=reason, remaining=remaining)
        try:
            self._coordinator.notify(notice)
        except BackupError as error:
            logger.warning("%s failed: %s", what, error)
            return False
        return True

    def obey(self, view: ClusterView, longest: float) -> None:
        """An operator wants another worker to lead: once our last boundary is durable, let one; once, if in vain.

        Args:
            view: The newest one.
            longest: Seconds to stand back at most: that the request was taken back is told to the leader only.
        """
        for notice in view.notices:
            asked = notice.wish == "resign" and notice.worker_id == self._worker_id
            if asked and notice.notice_id in self._notices.answers and notice.notice_id != self._obeyed:
                self._obeyed = notice.notice_id
                if self._notices.own is None:
                    self._elector.stand_back(min(notice.remaining, longest))
