"""The one place where tests reach into a worker.

A test that needs a worker's parts gets them here. A worker can then be built in another way without changing tests.
"""

from __future__ import annotations

from distributed_backup.checkpoints.saver import Saver
from distributed_backup.coordination.election import Elector
from distributed_backup.worker.context import WorkerContext
from distributed_backup.worker.worker import Worker


def context_of(worker: Worker) -> WorkerContext:
    """What the worker's parts share."""
    return worker._context


def elector_of(worker: Worker) -> Elector:
    """The part that campaigns."""
    return worker._elector


def saver_of(worker: Worker) -> Saver:
    """The part that commits."""
    return worker._saver


def waiting_threads(worker: Worker) -> int:
    """How many threads wait for a change of the worker's state."""
    return len(worker._context.state.condition._waiters)  # type: ignore[attr-defined]
