"""Run fits with a journal that fork, and several fits in one process, for `test_followers`. Imports synalinks."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from distributed_backup.storage.local import LocalStorage
from tests.integration.preemption_scenarios import Report, fit
from tests.integration.redis_fit_scenarios import Batches, Gates, HeldModel, train
from tests.support.jobs import Job


def train_in_a_loop(report: Report, job: Job, directory: Path, held: Batches) -> list[dict[str, Any]]:
    """Run two fits in one process, as a loop of a notebook does. Only the second one is held."""
    second = replace(job, backup_dir=job.backup_dir.with_name("second"))
    return [train(report, job, directory, ()), train(report, second, directory, held)]


def train_without_polls(report: Report, job: Job, directory: Path, held: Batches) -> dict[str, Any]:
    """Run a fit that would look an hour later for what the leader has appended."""
    LocalStorage.poll_interval = 3600.0
    return train(report, job, directory, held)


class Forking(Gates):
    """Forks after batch (1, 0). One child raises SystemExit in the fit, the other is a worker of multiprocessing."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        super().on_train_batch_end(batch, logs)
        if (self._epoch, batch) != (1, 0):
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the process has threads
            child = os.fork()
            if child == 0:
                sys.exit(7)
            worker = multiprocessing.get_context("fork").Process(target=os.getpid)
            worker.start()
        _, status = os.waitpid(child, 0)
        worker.join()
        self._report("forked", (os.waitstatus_to_exitcode(status), worker.exitcode))


def train_and_fork(report: Report, job: Job, directory: Path, held: Batches) -> dict[str, Any]:
    """Run a fit that forks."""
    gates = HeldModel.gates = Forking(report, directory, held)
    return asyncio.run(fit(report, job, gates, model_class=HeldModel))
