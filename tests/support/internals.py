"""The one place where tests reach into a worker.

A test that needs a worker's parts asks here, so that a worker may be built in another way without changing the tests.
"""

from __future__ import annotations

from distributed_backup.checkpoints.saver import Saver
from distributed_backup.coordination.election import Elector
from distributed_backup.worker.worker import Worker


def elector_of(worker: Worker) -> Elector:
    """The part that campaigns."""
    return worker._elector


def saver_of(worker: Worker) -> Saver:
    """The part that commits."""
    return worker._saver
