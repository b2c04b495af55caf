"""Give way to a successor: a standby that trains must stop when another worker leads.

A worker that follows the leader's journal trains on when another one leads, as long as it can follow that one.

With `standby=True` only the leader trains. A leader that loses or resigns its lease trains on while no worker leads.
When another worker leads, it stops asking and waits as a standby again, see `restore`. After the wait, `next_step`
decides what becomes of its `fit`. If another leader has used other answers meanwhile, the worker exits to be started
again, and replays them.

The limit: a worker that can't reach the coordinator does not learn that another one leads. Until it does, both train.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from distributed_backup.checkpoints.format import CheckpointHeader, Snapshot
from distributed_backup.checkpoints.journal import SegmentReader
from distributed_backup.checkpoints.journal_format import Answer, Boundary, parse_segment_name
from distributed_backup.coordination.base import Hint, has_another_led
from distributed_backup.errors import StoreError
from distributed_backup.position import Position
from distributed_backup.preemption.exit import Preempted
from distributed_backup.storage.base import Storage
from distributed_backup.worker.context import WorkerContext, position_fields
from distributed_backup.worker.notices import covers
from distributed_backup.worker.start_point import StartPoint

logger = logging.getLogger(__name__)

# Seconds that training waits for the journal, as for an answer.
_JOURNAL_TIMEOUT: Final = 5.0


# -------------------------------------------------------------------- the decisions


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the `fit` of one worker has come: the checkpoint it started from, and its last boundary since.

    `is_passed`: another worker may have used answers that this one has not used.
    """

    worker_id: str
    restored: CheckpointHeader | None
    last: Position | None
    is_passed: bool = False


def next_step(start: StartPoint, own: Progress) -> Literal["return", "train", "restart"]:
    """Return what a worker does that leads again, or whose run has finished. A standby would begin at `start`.

    "return": the run has finished, and its state is the result of the fit. "train": the fit goes on, because no other
    worker has come as far. "restart": another worker has come further. A running fit can't be moved to its checkpoint.
    """
    if start.finished:
        return "return"
    if own.is_passed:
        return "restart"
    newest = None if start.checkpoint is None else start.checkpoint.header
    if newest is None or newest.worker_id == own.worker_id:
        return "train"
    if own.restored is not None and newest.name <= own.restored.name:
        return "train"
    return "train" if own.last is not None and newest.position < own.last else "restart"


# -------------------------------------------------------------------- taking the steps


class Standby:
    """The waits of one worker with `standby=True` after its start. `stop_training_at` is that of `Worker`."""

    def __init__(self, context: WorkerContext, stop_training_at: Callable[[float], None]) -> None:
        self._context = context
        self._stop_training_at = stop_training_at
        self.began_at = StartPoint()
        """Where the fit of this worker began."""
        self.leads_since_start = False
        """Whether this worker has restored as the leader, and no other has led since. Then none has come further."""
        self.on_elected: Callable[[], None] = lambda: None
        """Called when this worker leads, and did not lead before."""
        self.on_deposed: Callable[[], None] = lambda: None
        """Called when another worker leads in the place of this one, which follows its journal from then on."""
        self.on_appended: Callable[[], None] = lambda: None
        """Called when the leader may have appended to its journal."""

    @property
    def is_due(self) -> bool:
        """Whether another worker leads, so that this one must wait."""
        # Under the lock: once this is true, training has been cancelled.
        with self._context.state.condition:
            return self._context.state.phase == "standby"

    @property
    def leads_for_certain(self) -> bool:
        """Whether this worker leads, and no other can have led since it began to train under this term."""
        led = self._context.state.led
        return led is not None and self._context.elector.term == led

    @property
    def is_in_doubt(self) -> bool:
        """Whether another worker may lead, because the lease has run out. This one asks the coordinator now."""
        is_in_doubt = self._context.elector.is_in_doubt
        if is_in_doubt:
            self._context.elector.wake()
        return is_in_doubt

    def give_up_doubt(self) -> None:
        """Let there be no doubt before the next tick ends: the coordinator hangs."""
        if self.is_in_doubt:
            self._context.elector.known_until = math.inf

    @property
    def _position(self) -> Position:
        return self._context.last_boundary or self._context.announcer.start_position

    def begin(self, start: StartPoint) -> None:
        """Note where the fit begins, and the term that it trains under."""
        self.began_at = start
        self.leads_since_start = start.term is not None
        self._context.state.led = start.term
        # The elector may have learned of another leader since `start` was read, or learn of it now.
        if (view := self._context.state.view) is not None:
            self.observe(view.holder, view.term)

    def awaits(self, hint: Hint) -> bool:
        """Whether an announcement matters to this worker, which may be no standby."""
        context = self._context
        waits = self.is_due or not context.state.is_training
        if hint == "finished" or not context.options.standby:
            return waits
        # A standby that trains without the lease must stop as soon as another worker leads.
        return not (waits or context.elector.is_leader)

    def observe(self, holder: str | None, term: int) -> None:
        """Cancel training if another worker leads, or has led since. `holder` holds the lease of `term`."""
        context, state = self._context, self._context.state
        if context.options.follows_journal and state.led is None and context.elector.term == term:
            state.led = term
            self.on_elected()
        # Once: `begin` may call this in the thread of training.
        led = state.led
        if not (context.options.standby or context.options.follows_journal) or led is None:
            return
        self._give_up_preference()
        if self._is_deposed(led, holder, term):
            if context.options.follows_journal:
                self._follow()
            else:
                self._stop_training(led, holder, term)
        # Not under a term that was granted, and refused because another worker had used it.
        elif term == context.elector.last_term and term != led:
            self._train_under(term, after=led)

    def _is_deposed(self, led: int, holder: str | None, term: int) -> bool:
        context = self._context
        if has_another_led(worker_id=context.worker_id, led=led, holder=holder, term=term):
            return True
        # The lease of a newer term has run out. If this worker itself had refused that term, it reads its own log now.
        has_expired = holder is None and term > led and term != context.elector.last_term
        return context.options.follows_journal and has_expired

    def _follow(self) -> None:
        context, state = self._context, self._context.state
        # First, so that no segment begins under the new term before the journal of the other one was read.
        # Before its start a worker has no segment. If it begins a run later, it reads no journal either.
        if state.phase != "joined":
            context.journal.step_down()
        self.leads_since_start = False
        state.led = None
        self.on_deposed()

    def _stop_training(self, led: int, holder: str | None, term: int) -> None:
        context, state = self._context, self._context.state
        with state.condition:
            if state.phase != "training":
                return
            state.phase = "standby"
            self._stop_training_at(context.clock.now())
        context.report("stood_down", leader=holder, term=term)
        logger.warning(
            "another worker leads, or has led since term %d, so this one stops training and waits as a standby "
            "worker=%s leader=%s term=%d. It returns with the final state of the run. If it leads again, it trains on, "
            "or exits to be started again",
            led,
            context.worker_id,
            holder,
            term,
        )

    def _train_under(self, term: int, *, after: int) -> None:
        context, state = self._context, self._context.state
        with state.condition:
            # A standby trains under none: the answers of the leaders since its own term count, see `end_wait`.
            if state.phase == "standby" or state.led != after:
                return
            state.led = term
        # Followers use nothing more of the segment of the older term, if there is one.
        context.journal.lead_again()

    def save_last_boundary(self) -> None:
        """Commit the last boundary now, if this worker leads and no checkpoint has it."""
        self._context.request_save()

    def stand_down(self, reason: str) -> None:
        """Cancel training for good, and wait for the final state of the run: this fit can't follow its leader."""
        context, state = self._context, self._context.state
        with state.condition:
            if state.phase != "training":
                return
            state.phase, state.is_lost = "standby", True
            # No other worker must give way to it, because it would have to exit.
            context.elector.position = None
            # It reads no journal any more.
            context.elector.idle_role = "standby"
            self._stop_training_at(context.clock.now())
        view = state.view
        context.report(
            "stood_down", leader=None if view is None else view.holder, term=0 if view is None else view.term
        )
        logger.warning(
            "this worker stops training and waits as a standby worker=%s reason=%s. It returns with the final state of "
            "the run. If it leads, it exits to be started again",
            context.worker_id,
            reason,
        )

    def _give_up_preference(self) -> None:
        """While this worker waits, and all that it has is saved, no other must give way to it: it may have to exit."""
        context, state = self._context, self._context.state
        with state.condition:
            if state.phase == "standby" and covers(context.newest_known()[0], context.last_boundary):
                context.elector.position = None

    def end_wait(self, start: StartPoint) -> StartPoint | None:
        """Return the final state of a run that has finished. None: train on, or wait again if `is_due`.

        A standby would begin at `start`.

        Raises:
            Preempted: This worker must be started again.
        """
        context = self._context
        own = Progress(
            worker_id=context.worker_id,
            restored=None if self.began_at.checkpoint is None else self.began_at.checkpoint.header,
            last=context.last_boundary,
            is_passed=not start.finished and self._is_passed(start),
        )
        match "restart" if context.state.is_lost and not start.finished else next_step(start, own):
            case "return":
                self._take_over_final(start)
                return start
            case "restart":
                raise self._exit(start)
        if self._leads_on(start):
            logger.info("leading again, training continues at %s worker=%s", self._position, context.worker_id)
            context.report("progress", **position_fields(self._position))
        return None

    def _leads_on(self, start: StartPoint) -> bool:
        """Let training go on, unless this worker has lost the lead since it read `start`: it was suspended then.

        The next leader may have pruned what tells `end_wait` of its answers, and has not read what is written now.
        """
        context, state = self._context, self._context.state
        led, state.led = state.led, start.term
        with state.condition:
            context.elector.position = self._position
            state.phase = "training"
        # The leader between may have begun a log without the last answers of this one, which training uses next.
        context.journal.lead_again(timeout=_JOURNAL_TIMEOUT)
        with state.condition:
            if not self.leads_for_certain:
                state.phase, state.led = "standby", led
            return state.phase == "training"

    def _is_passed(self, start: StartPoint) -> bool:
        """Whether a leader between the two terms of this worker has used answers that it lacks. In doubt, it has."""
        led, storage = self._context.state.led or 0, self._context.store.storage
        try:
            segments = [(parse_segment_name(name), name) for name in storage.names()]
            between = [name for parsed, name in segments if parsed is not None and led < parsed[0] < (start.term or 0)]
            return any(self._has_used_others(storage, name, between) for name in between)
        except StoreError as error:
            logger.warning("the journal of another leader can't be read worker=%s: %s", self._context.worker_id, error)
            return True

    def _has_used_others(self, storage: Storage, name: str, between: Sequence[str]) -> bool:
        """Whether the writer of a segment has recorded answers, or has read others than those of this worker."""
        header = SegmentReader(storage, name).header()
        if header is None or header.worker_id == self._context.worker_id:
            return False
        if any(isinstance(record, Answer | Boundary) for record in SegmentReader(storage, name)):
            return True
        if header.after is None:
            return header.position != self._position
        continued = SegmentReader(storage, header.after.name).header()
        is_own = continued is not None and continued.worker_id == self._context.worker_id
        return not is_own and header.after.name not in between

    def _take_over_final(self, start: StartPoint) -> None:
        """Replace the last boundary by the final state: nothing that this worker trained may be committed any more."""
        context, final = self._context, start.checkpoint
        if final is not None:
            snapshot = Snapshot(
                position=final.position, body=final.body, data=final.header.data, final=final.header.final
            )
            context.saver.submit(snapshot, due=True)
            context.elector.position = final.position
        context.state.phase = "finishing"

    def _exit(self, start: StartPoint) -> Preempted:
        context = self._context
        logger.warning(
            "leading again at %s, but another worker has come further: exiting with code %d worker=%s checkpoint=%s. "
            "Start this worker again, and it continues from that checkpoint",
            self._position,
            context.options.exit_code,
            context.worker_id,
            start.name,
        )
        context.report("preempted", saved=None, checkpoint=start.name, **position_fields(start.position), seconds=0.0)
        return Preempted(context.options.exit_code, position=start.position, checkpoint=start.name, seconds=0.0)
