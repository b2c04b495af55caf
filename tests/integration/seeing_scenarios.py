"""What the child of the tests of events and metrics runs: a fit that is preempted and resumed, and looked at."""

from __future__ import annotations

import os
import sys
import urllib.request
from collections.abc import Callable
from typing import Any

import synalinks

from distributed_backup import BackupAndRestore
from distributed_backup.errors import ConfigError
from tests.integration.resume_scenarios import Fit, Interruption, directory, run_part, strict

PORT = "DISTRIBUTED_BACKUP_METRICS_PORT"


class Scraper(synalinks.callbacks.Callback):  # type: ignore[misc]
    """Scrapes the process' own endpoint at the end of each epoch."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.url = f"http://127.0.0.1:{port}/metrics"
        self.texts: list[str] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        with urllib.request.urlopen(self.url, timeout=30) as answer:
            self.texts.append(answer.read().decode())


def preempted_and_resumed(report: Callable[..., None], port: int) -> dict[str, Any]:
    """The lines of each incarnation's log, what was scraped, and what is left when the run is deleted."""
    strict()
    os.environ[PORT] = str(port)
    fit, scraper = Fit(), Scraper(port)
    with directory() as root:
        first = run_part(fit, root, Interruption(at=20))
        second = run_part(fit, root, seed=99, callbacks=lambda backup, _: [backup, scraper])
        logs = [path.read_bytes().splitlines() for path in root.glob("events-*.jsonl")]
        run_part(fit, root, seed=99, options={"delete_checkpoint": True})
        return {
            "logs": logs,
            "scraped": scraper.texts,
            "warnings": first.logged + second.logged,
            "deleted": not root.exists(),
        }


def refused_without_the_client(report: Callable[..., None]) -> str:
    """What making the callback says when metrics are asked for and the client is missing."""
    os.environ[PORT] = "9464"
    sys.modules["prometheus_client"] = None  # type: ignore[assignment]
    try:
        BackupAndRestore("run")
    except ConfigError as error:
        return str(error)
    return ""
