"""Make the worker of one fit. Its events go to the event log, to the metrics, and to what a caller adds."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.clock import Clock
from distributed_backup.coordination.base import Coordinator
from distributed_backup.observability.event_log import EventLog
from distributed_backup.observability.events import Sink
from distributed_backup.observability.reporter import Reporter
from distributed_backup.training.settings import SessionOptions
from distributed_backup.worker.options import new_worker_id
from distributed_backup.worker.worker import Worker


def make_worker(
    options: SessionOptions,
    store: CheckpointStore,
    coordinator: Coordinator,
    clock: Clock,
    stop_training_at: Callable[[float], None],
    sinks: tuple[Sink, ...],
) -> Worker:
    """Return a new worker. `sinks` receive its events besides the event log and the metrics."""

    def all_sinks() -> Iterator[Sink]:
        yield EventLog(store.storage, clock=clock)
        if options.metrics_port is not None:
            # Imported here, because only users of metrics have the client.
            from distributed_backup.observability.metrics import Recorded, WorkerMetrics, metrics_at

            yield WorkerMetrics(
                metrics_at(options.metrics_port),
                lease_left=lambda: worker.lease_left,
                recorded=lambda: Recorded(answers=worker.journal.answers, bytes=worker.journal.bytes),
            )
        yield from sinks

    worker = Worker(
        store=store,
        coordinator=coordinator,
        clock=clock,
        options=options.worker,
        stop_training_at=stop_training_at,
        report=Reporter(new_worker_id(options.worker_name), *all_sinks()),
    )
    return worker
