"""Test when `NoticePoller` polls and what it reports, with a fake clock."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distributed_backup.preemption.poller import NoticePoller
from distributed_backup.preemption.sources import Alert, NoticeSource
from distributed_backup.preemption.sources.file import FileSource
from distributed_backup.preemption.sources.gce import GceSource
from tests.support.clocks import FakeClock
from tests.support.metadata_servers import Gce

PATIENCE = 30.0


class Scripted(NoticeSource):
    """Returns or raises the given answers in order, and then the last one at each poll."""

    def __init__(self, *answers: Any, name: str = "scripted", period: float = 1.0) -> None:
        self.name, self.period = name, period
        self._answers = list(answers)
        self.polls = 0
        self.begun = 0

    def begin(self) -> None:
        self.begun += 1

    def poll(self) -> Alert | None:
        self.polls += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        alert: Alert | None = answer
        return alert


class Steps(FakeClock):
    """A clock whose waits return immediately. The wait number `count` stops the poller, as at the end of a fit."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._count = count

    def wait(self, event: threading.Event, timeout: float) -> bool:
        self.waits.append(timeout)
        if len(self.waits) >= self._count:
            event.set()
        return event.is_set()


class Reports:
    """The notices and warnings that a poller reports for one source."""

    def __init__(self, source: NoticeSource, *, polls: int = 5, grace_period: float = 30.0, refused: int = 0) -> None:
        self._refused = refused
        self.notices: list[tuple[str, float | None]] = []
        self.warnings: list[str] = []
        self.clock = Steps(polls)
        watch = NoticePoller(
            [source],
            on_notice=lambda reason, remaining: self.notices.append((reason, remaining)),
            on_warning=self._warned,
            grace_period=grace_period,
            clock=self.clock,
        )
        watch.start()
        join(source.name)

    def _warned(self, reason: str) -> bool:
        self.warnings.append(reason)
        return len(self.warnings) > self._refused


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == f"distributed-backup-{name}"]


def join(name: str) -> None:
    for thread in threads(name):
        thread.join(PATIENCE)
    assert threads(name) == []


END = Alert(reason="test:end", remaining=110.0)


# ---------------------------------------------------------------- notices and warnings


def test_a_sure_end_is_a_notice_with_its_own_time_and_ends_the_polls() -> None:
    """A terminal alert within 120 s is a notice, even if the grace period is shorter. Polling stops."""
    source = Scripted(None, END, Alert(reason="test:another"))
    reports = Reports(source)
    assert reports.notices == [("test:end", 110.0)]
    assert (source.polls, reports.warnings) == (2, [])


def test_an_end_without_a_time_is_a_notice() -> None:
    """A terminal alert without a time is a notice, and the worker counts the grace period."""
    assert Reports(Scripted(Alert(reason="test:end"))).notices == [("test:end", None)]


def test_an_end_that_is_far_away_is_a_warning_until_it_is_near() -> None:
    """A terminal alert more than 120 s away is a warning, and becomes a notice at 120 s."""
    far, near = Alert(reason="test:end", remaining=120.1), Alert(reason="test:end", remaining=120.0)
    reports = Reports(Scripted(far, far, near), polls=2)
    assert (reports.warnings, reports.notices) == (["test:end"], [])
    reports = Reports(Scripted(far, far, near))
    assert (reports.warnings, reports.notices) == (["test:end"], [("test:end", 120.0)])


def test_who_has_a_long_grace_period_leaves_that_early() -> None:
    """With a grace period of 600 s, an alert 599 s away is a notice."""
    assert Reports(Scripted(Alert(reason="test:end", remaining=599.0)), grace_period=600.0).notices == [
        ("test:end", 599.0)
    ]


def test_a_warning_is_reported_once_while_it_lasts_and_again_when_it_comes_again() -> None:
    """A warning is reported when it begins, and again when it begins again."""
    first, second = (
        Alert(reason="test:first", terminal=False),
        Alert(reason="test:second", remaining=1.0, terminal=False),
    )
    source = Scripted(None, first, first, None, first, second, second)
    reports = Reports(source, polls=8)
    assert reports.warnings == ["test:first", "test:first", "test:second"]
    assert (reports.notices, source.polls) == ([], 8)


def test_a_warning_that_was_not_delivered_is_reported_again() -> None:
    """A warning whose report returned False is reported again at the next poll."""
    reports = Reports(Scripted(Alert(reason="test:first", terminal=False)), polls=6, refused=2)
    assert reports.warnings == ["test:first"] * 3


def test_what_is_no_alert_is_an_error_of_the_source(caplog: pytest.LogCaptureFixture) -> None:
    """An answer of another type is an error that is logged. The next valid answer counts."""
    reports = Reports(Scripted("soon", END))
    assert "no notices from scripted until it answers: poll must return an Alert or None, got 'soon'" in caplog.text
    assert reports.notices == [("test:end", 110.0)]


# ---------------------------------------------------------------- when to poll


def test_a_source_is_asked_at_once_and_then_in_its_own_period() -> None:
    """Polling begins immediately and repeats every `period` seconds until the fit ends."""
    source = Scripted(None, period=5.0)
    reports = Reports(source, polls=3)
    assert (source.begun, source.polls, reports.clock.waits) == (1, 3, [5.0] * 3)


def test_a_source_that_is_not_there_is_asked_ever_more_rarely_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The pause of a source that has never answered doubles up to 60 s, and one warning is logged."""
    reports = Reports(Scripted(OSError("nobody there"), period=1.0), polls=8)
    assert reports.clock.waits == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "no notices from scripted until it answers: nobody there")
    ]


def test_a_source_that_fails_for_a_moment_is_asked_as_often_as_before(caplog: pytest.LogCaptureFixture) -> None:
    """A source that has answered before is polled every `period` seconds while it fails."""
    error = OSError("503")
    reports = Reports(Scripted(error, error, None, error, error, None, error, END), polls=20)
    assert reports.clock.waits == [2.0, 4.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert reports.notices == [("test:end", 110.0)]
    assert len(caplog.records) == 1


# ---------------------------------------------------------------- several sources, real time


class Patient:
    """A real clock whose waits take at most 0.01 s."""

    def now(self) -> float:
        raise AssertionError("nobody asks")

    def wait(self, event: threading.Event, timeout: float) -> bool:
        return event.wait(min(timeout, 0.01))


def watch_of(*sources: NoticeSource, on_notice: Callable[[str, float | None], None] = lambda *_: None) -> NoticePoller:
    return NoticePoller(sources, on_notice=on_notice, on_warning=lambda _: True, grace_period=30.0, clock=Patient())


class Hanging(NoticeSource):
    """Blocks in `poll` until it is released."""

    name = "hanging"

    def __init__(self) -> None:
        self.asked, self.released = threading.Event(), threading.Event()

    def poll(self) -> Alert | None:
        self.asked.set()
        self.released.wait(PATIENCE)
        return END


def test_a_source_that_hangs_holds_up_no_other(tmp_path: Path) -> None:
    """A hung source delays neither another source nor the end of the fit. Its late answer is ignored."""
    reasons: list[str] = []
    noticed = threading.Event()

    def notice(reason: str, remaining: float | None) -> None:
        reasons.append(reason)
        noticed.set()

    hanging, path = Hanging(), tmp_path / "notice"
    watch = watch_of(hanging, FileSource(path), on_notice=notice)
    watch.start()
    assert hanging.asked.wait(PATIENCE)
    path.touch()
    assert noticed.wait(PATIENCE)
    watch.stop()
    hanging.released.set()
    join("hanging")
    assert reasons == [f"file:{path}"]


def test_when_the_watch_is_stopped_its_threads_end() -> None:
    """`stop` ends the threads of all sources."""
    sources = [Scripted(None, name="first"), Scripted(None, name="second")]
    watch = watch_of(*sources)
    watch.start()
    assert len(threads("first") + threads("second")) == 2
    watch.stop()
    join("first")
    join("second")


def test_a_forked_child_asks_nobody() -> None:
    """A forked child has no thread of the poller."""
    watch = watch_of(Scripted(None, name="forked"))
    watch.start()
    child = os.fork()
    if child == 0:
        os._exit(7 if threads("forked") == [] else 8)
    _, status = os.waitpid(child, 0)
    watch.stop()
    join("forked")
    assert os.waitstatus_to_exitcode(status) == 7


def test_a_cloud_is_heard_through_all_its_layers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors of a real source are logged once, and its notice is reported."""
    cloud, noticed = Gce(), threading.Event()
    with cloud.served():
        monkeypatch.setenv("GCE_METADATA_HOST", cloud.url.removeprefix("http://"))
        caplog.set_level(logging.WARNING)
        watch = watch_of(GceSource(), on_notice=lambda *_: noticed.set())
        cloud.values["preempted"] = "<html>"
        watch.start()
        while len(cloud.asked) < 3:
            assert not noticed.wait(0.001)
        cloud.values["preempted"] = "TRUE"
        assert noticed.wait(PATIENCE)
        join("gce")
    assert len(caplog.records) == 1


def test_an_answer_that_is_none_does_not_end_a_source() -> None:
    """After one answer of a wrong type the next alert is reported."""
    odd: Any = "an end"
    reports = Reports(Scripted(odd, Alert(reason="test:end", remaining=9.0)))
    assert reports.notices == [("test:end", 9.0)]
