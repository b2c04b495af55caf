"""How a worker goes: what is still to be saved, whether it is the last one out, and that it is gone in time.

A member that died without a word counts until its membership expires; until then nobody is the last one out.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from distributed_backup.checkpoints.saver import Saver
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.checkpoints.synalinks_backup import remove_synalinks_backup
from distributed_backup.clock import Clock
from distributed_backup.coordination.base import Coordinator
from distributed_backup.errors import CoordinatorError, StoreError

logger = logging.getLogger(__name__)

# More than a tick with its jitter, and the time that it may take.
QUIET_TICKS_BEFORE_DELETE: Final = 1.5
# Seconds for which a worker that has finished tries to save what is due, when the disk refuses it.
_FINISH_LIMIT: Final = 30.0
_WAIT_SLICE: Final = 0.5


def flush_pending(
    saver: Saver,
    store: CheckpointStore,
    *,
    clock: Clock,
    is_ours: Callable[[], bool],
    wait: Callable[[], None],
    give_up: Callable[[], bool],
) -> StoreError | None:
    """See to it that what is due is committed, though a disk refuses it for a while.

    Args:
        saver: Has it.
        store: Where it is to go.
        clock: Where time comes from.
        is_ours: Whether something is due that nobody else will save.
        wait: Waits between two tries.
        give_up: Whether the answer does not matter any more.

    Returns:
        What to say if it could not be.
    """
    limit = clock.now() + _FINISH_LIMIT
    while is_ours() and not give_up():
        if clock.now() > limit:
            text = f"the final state could not be saved in {store.location} within {_FINISH_LIMIT:g} s"
            return StoreError(text, path=store.location)
        if not saver.drain(_WAIT_SLICE) or saver.unsaved:
            wait()
    return None


def delete_run(store: CheckpointStore, coordinator: Coordinator) -> None:
    """Delete the backup of a run that has finished.

    The lock goes last: whoever joins meanwhile waits for us, and finds nothing.

    Raises:
        BackupError: Something could not be removed.
    """
    remove_synalinks_backup(store.storage)
    store.delete()
    coordinator.erase()
    # Only what is empty: a new run may have begun here since.
    store.storage.remove_if_empty()


def leave_and_check_last(
    coordinator: Coordinator,
    worker_id: str,
    *,
    clock: Clock,
    period: float,
    wait: Callable[[], None],
    give_up: Callable[[], bool],
) -> bool:
    """Leave, and tell whether no other member is left.

    One that was heard of after we left is there; one that was not may have died just before, so it is waited for until
    it is heard of or its membership expires. That there is none must hold for longer than a tick: a server that has
    just lost its data knows nobody before they are heard of again.

    Args:
        coordinator: The run's coordinator.
        worker_id: Who leaves.
        clock: Where time comes from.
        period: Seconds between two heartbeats of a member.
        wait: Waits between two looks.
        give_up: Whether the answer does not matter any more.
    """
    left = alone_since = clock.now()
    try:
        coordinator.leave(worker_id)
        while not give_up():
            now = clock.now()  # before asking: an answer that was long on its way must not make a member look alive
            others = [member for member in coordinator.members() if member.worker_id != worker_id]
            if any(now - member.age > left for member in others):
                logger.info("backup kept for others that go on worker=%s others=%d", worker_id, len(others))
                return False
            if others:
                alone_since = now
            elif now - alone_since > QUIET_TICKS_BEFORE_DELETE * period:
                return True
            wait()
    except CoordinatorError as error:
        logger.warning("backup kept worker=%s reason=%s", worker_id, error)
    return False


def run_with_timeout(limit: float | None, work: Callable[[], None]) -> bool:
    """Do something that may hang, and go on after `limit` seconds without it; None to wait for its end.

    Returns:
        Whether it was done. Else it goes on in a thread that ends with the process.
    """
    if limit is None:
        work()
        return True
    thread = threading.Thread(target=work, name="distributed-backup-leaving", daemon=True)
    thread.start()
    thread.join(max(limit, 0.0))
    return not thread.is_alive()
