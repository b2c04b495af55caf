"""Reports of one worker: what its log and its sinks get."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from distributed_backup.observability import reporter as reporting
from distributed_backup.observability.events import Event
from distributed_backup.observability.reporter import Reporter
from tests.support.log_handlers import PATIENCE, HangingHandler, hanging
from tests.support.sinks import RecordingSink


@pytest.fixture
def handler() -> Iterator[HangingHandler]:
    with hanging(reporting.logger) as made:
        yield made


def assert_holds_up_no_other_thread(handler: HangingHandler, sink: RecordingSink, kind: Any, **fields: Any) -> None:
    """Report an event whose log line hangs, and then the progress of another thread."""
    report = Reporter("w", sink)
    elector = threading.Thread(target=report, args=(kind,), kwargs=fields, daemon=True)
    elector.start()
    assert handler.hangs.wait(PATIENCE)
    sink.arrived.clear()
    training = threading.Thread(target=report, args=("progress",), kwargs={"epoch": 0, "batch": 1}, daemon=True)
    training.start()
    assert sink.arrived.wait(PATIENCE / 3), "the event waits for the handler"
    training.join(PATIENCE / 3)
    assert not training.is_alive()
    handler.released.set()
    elector.join(PATIENCE)


def test_a_log_handler_that_hangs_holds_up_no_other_thread(handler: HangingHandler) -> None:
    """The training thread reports progress while the elector's thread hangs in a log handler."""
    sink = RecordingSink()
    assert_holds_up_no_other_thread(handler, sink, "unreachable", reason="no route")
    assert sink.kinds == ["unreachable", "progress"]


class FaultySink(RecordingSink):
    """Fails at each event of the elector."""

    def emit(self, event: Event) -> None:
        super().emit(event)
        if event.kind == "elected":
            raise RuntimeError("a bug")


def test_a_log_handler_that_hangs_at_the_bug_of_a_sink_holds_up_no_other_thread(handler: HangingHandler) -> None:
    """The traceback of a faulty sink is logged while other threads can report."""
    sink = FaultySink()
    assert_holds_up_no_other_thread(handler, sink, "elected", term=1)
    assert sink.kinds == ["elected", "progress"]


def test_a_failure_is_logged_once_until_commits_recover(caplog: pytest.LogCaptureFixture) -> None:
    """A commit that fails for any checkpoint is logged once until commits recover, and the sinks get each failure."""
    sink = RecordingSink()
    report = Reporter("w", sink)
    reasons = [f"can't write /run/0000000001-{number:08d}-00000000.ckpt: full" for number in (1, 2)]
    with caplog.at_level(logging.INFO, "distributed_backup"):
        for reason in reasons:
            report("commit_failed", reason=reason)
        report("commit_recovered")
        report("commit_failed", reason=reasons[0])
    assert [text.split(" ")[0] for text in caplog.messages] == ["commit_failed", "commit_recovered", "commit_failed"]
    assert caplog.records[0].levelno == logging.ERROR
    assert sink.kinds == ["commit_failed", "commit_failed", "commit_recovered", "commit_failed"]


def test_a_worker_that_is_preempted_as_it_leaves_logs_the_preemption(caplog: pytest.LogCaptureFixture) -> None:
    """A worker that is preempted after it finished logs the preemption, and the sinks get only the first end."""
    sink = RecordingSink()
    report = Reporter("w", sink)
    with caplog.at_level(logging.DEBUG, "distributed_backup"):
        report("finished", epoch=4, batch=0)
        report("preempted", saved=False, checkpoint=None, epoch=None, batch=None, seconds=0.5)
        report("left")
    assert [text.split(" ")[0] for text in caplog.messages] == ["finished", "preempted"]
    assert caplog.records[1].levelno == logging.WARNING
    assert sink.kinds == ["finished"]


def test_a_preemption_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """The forced exit may serve a notice that the training thread is serving, and operators count these lines."""
    sink = RecordingSink()
    report = Reporter("w", sink)
    with caplog.at_level(logging.DEBUG, "distributed_backup"):
        for seconds in (0.5, 0.6):
            report("preempted", saved=True, checkpoint=None, epoch=None, batch=None, seconds=seconds)
    assert [text.split(" ")[0] for text in caplog.messages] == ["preempted"]
    assert sink.kinds == ["preempted"]
