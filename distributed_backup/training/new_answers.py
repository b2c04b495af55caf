"""Let training see a new answer when the journal has it, and when this worker led for certain at that time.

The limit: an answer waits at most `WRITE_LIMIT` seconds for the journal, and as long for the lead, see `doubt`.
"""

from __future__ import annotations

import logging

from distributed_backup.checkpoints.journal_format import Outcome
from distributed_backup.checkpoints.journal_writer import JournalWriter
from distributed_backup.training.countdown import Countdown
from distributed_backup.training.delivery import WRITE_LIMIT, Delivery, NewAnswer
from distributed_backup.training.doubt import Doubt

logger = logging.getLogger(__name__)


class NewAnswers:
    """The new answers of one fit. Used in the thread of its event loop."""

    def __init__(self, writer: JournalWriter, delivery: Delivery, doubt: Doubt) -> None:
        self._writer = writer
        self._delivery = delivery
        self._doubt = doubt
        # The last append took too long, so that no answer waits for one.
        self._is_behind = False

    def record(self, record: Outcome) -> NewAnswer:
        """Append an answer or a failure, which then waits for its turn."""
        entry = self._delivery.add(record)
        self._writer.append(
            record, self._doubt.after_append(lambda: self._durable(entry), self._delivery.call_from_thread)
        )
        if self._is_behind or not self._writer.is_waited_for:
            self._may_be_seen(entry, is_certain=self._doubt.is_certain())
        else:
            entry.timer = Countdown(entry.future.get_loop(), WRITE_LIMIT, lambda: self._waited_enough(entry))
        return entry

    def unrecorded(self, *, is_certain: bool = False) -> NewAnswer:
        """Add an answer that is not recorded. `is_certain`: it does not matter who leads."""
        entry = self._delivery.add()
        self._may_be_seen(entry, is_certain=is_certain or self._doubt.is_certain())
        return entry

    def _durable(self, entry: NewAnswer) -> None:
        self._is_behind = False
        self._delivery.ready(entry)

    def _may_be_seen(self, entry: NewAnswer, *, is_certain: bool) -> None:
        """Let an answer be handed out, once no other worker can have begun to lead before it was recorded."""
        if is_certain:
            self._delivery.ready(entry)
        else:
            self._doubt.call_after(lambda: self._delivery.ready(entry))

    def _waited_enough(self, entry: NewAnswer) -> None:
        self._doubt.call_after(lambda: self._do_not_wait(entry))

    def _do_not_wait(self, entry: NewAnswer) -> None:
        if not entry.is_ready:
            self._is_behind = True
            logger.warning("the journal is slow: an answer waited %g s for it, and training goes on", WRITE_LIMIT)
            self._delivery.ready(entry)
