"""`NoticeWatch`: when to ask, and what to make of the answers. Time is the test's."""

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


class Told(NoticeSource):
    """Says what it is told to, one after the other; the last stays."""

    def __init__(self, *said: Any, name: str = "told", period: float = 1.0) -> None:
        self.name, self.period = name, period
        self._said = list(said)
        self.polls = 0
        self.begun = 0

    def begin(self) -> None:
        self.begun += 1

    def poll(self) -> Alert | None:
        self.polls += 1
        said = self._said.pop(0) if len(self._said) > 1 else self._said[0]
        if isinstance(said, Exception):
            raise said
        alert: Alert | None = said
        return alert


class Steps(FakeClock):
    """Each wait but the last passes at once; then the watch is stopped, as when a fit ends."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._count = count

    def wait(self, event: threading.Event, timeout: float) -> bool:
        self.waits.append(timeout)
        if len(self.waits) >= self._count:
            event.set()
        return event.is_set()


class Heard:
    """What a watch makes of one source."""

    def __init__(self, source: NoticeSource, *, polls: int = 5, grace_period: float = 30.0, unheard: int = 0) -> None:
        self._unheard = unheard
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
        return len(self.warnings) > self._unheard


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == f"distributed-backup-{name}"]


def join(name: str) -> None:
    for thread in threads(name):
        thread.join(PATIENCE)
    assert threads(name) == []


END = Alert(reason="test:end", remaining=110.0)


# ---------------------------------------------------------------- what is said


def test_a_sure_end_is_a_notice_with_its_own_time_and_the_last_word() -> None:
    """Two minutes are two minutes, though the grace period is shorter."""
    source = Told(None, END, Alert(reason="test:another"))
    heard = Heard(source)
    assert heard.notices == [("test:end", 110.0)]
    assert (source.polls, heard.warnings) == (2, [])


def test_an_end_without_a_time_is_a_notice() -> None:
    """The grace period counts."""
    assert Heard(Told(Alert(reason="test:end"))).notices == [("test:end", None)]


def test_an_end_that_is_far_away_is_a_warning_until_it_is_near() -> None:
    """Who leaves a day early may be started again on the same machine, and leave again."""
    far, near = Alert(reason="test:end", remaining=120.1), Alert(reason="test:end", remaining=120.0)
    heard = Heard(Told(far, far, near), polls=2)
    assert (heard.warnings, heard.notices) == (["test:end"], [])
    heard = Heard(Told(far, far, near))
    assert (heard.warnings, heard.notices) == (["test:end"], [("test:end", 120.0)])


def test_who_has_a_long_grace_period_leaves_that_early() -> None:
    """It was set because a batch takes that long."""
    assert Heard(Told(Alert(reason="test:end", remaining=599.0)), grace_period=600.0).notices == [("test:end", 599.0)]


def test_a_warning_is_told_once_while_it_lasts_and_anew_when_it_comes_again() -> None:
    """A save each, and training goes on."""
    first, second = (
        Alert(reason="test:first", terminal=False),
        Alert(reason="test:second", remaining=1.0, terminal=False),
    )
    source = Told(None, first, first, None, first, second, second)
    heard = Heard(source, polls=8)
    assert heard.warnings == ["test:first", "test:first", "test:second"]
    assert (heard.notices, source.polls) == ([], 8)


def test_a_warning_that_nobody_could_be_told_of_is_told_again() -> None:
    """The coordinator was away, or training had not begun."""
    heard = Heard(Told(Alert(reason="test:first", terminal=False)), polls=6, unheard=2)
    assert heard.warnings == ["test:first"] * 3


def test_what_is_no_alert_is_an_error_of_the_source(caplog: pytest.LogCaptureFixture) -> None:
    """A user's own; what it says next counts."""
    heard = Heard(Told("soon", END))
    assert "no notices from told until it answers: poll must return an Alert or None, got 'soon'" in caplog.text
    assert heard.notices == [("test:end", 110.0)]


# ---------------------------------------------------------------- when to ask


def test_a_source_is_asked_at_once_and_then_in_its_own_period() -> None:
    """Until the fit ends."""
    source = Told(None, period=5.0)
    heard = Heard(source, polls=3)
    assert (source.begun, source.polls, heard.clock.waits) == (1, 3, [5.0] * 3)


def test_a_source_that_is_not_there_is_asked_ever_more_rarely_and_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A machine without metadata service; but it may come yet."""
    heard = Heard(Told(OSError("nobody there"), period=1.0), polls=8)
    assert heard.clock.waits == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "no notices from told until it answers: nobody there")
    ]


def test_a_source_that_fails_for_a_moment_is_asked_as_often_as_before(caplog: pytest.LogCaptureFixture) -> None:
    """Its next word may be the one that counts."""
    error = OSError("503")
    heard = Heard(Told(error, error, None, error, error, None, error, END), polls=20)
    assert heard.clock.waits == [2.0, 4.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert heard.notices == [("test:end", 110.0)]
    assert len(caplog.records) == 1


# ---------------------------------------------------------------- several sources, real time


class Patient:
    """The machine's clock."""

    def now(self) -> float:
        raise AssertionError("nobody asks")

    def wait(self, event: threading.Event, timeout: float) -> bool:
        return event.wait(min(timeout, 0.01))


def watch_of(*sources: NoticeSource, on_notice: Callable[[str, float | None], None] = lambda *_: None) -> NoticePoller:
    return NoticePoller(sources, on_notice=on_notice, on_warning=lambda _: True, grace_period=30.0, clock=Patient())


class Hanging(NoticeSource):
    """Answers when it is released, and not before."""

    name = "hanging"

    def __init__(self) -> None:
        self.asked, self.released = threading.Event(), threading.Event()

    def poll(self) -> Alert | None:
        self.asked.set()
        self.released.wait(PATIENCE)
        return END


def test_a_source_that_hangs_holds_up_no_other(tmp_path: Path) -> None:
    """Nor the end of the fit; what it finds afterwards is nobody's business."""
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
    """At once, where they wait."""
    sources = [Told(None, name="first"), Told(None, name="second")]
    watch = watch_of(*sources)
    watch.start()
    assert len(threads("first") + threads("second")) == 2
    watch.stop()
    join("first")
    join("second")


def test_a_forked_child_asks_nobody() -> None:
    """It has none of the threads, and can do without."""
    watch = watch_of(Told(None, name="forked"))
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
    """It is away at first, ill then, and then it takes the machine back."""
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
    """A source may be anybody's: what it says wrong once must not keep its next word from being heard."""
    odd: Any = "an end"
    heard = Heard(Told(odd, Alert(reason="told:end", remaining=9.0)))
    assert heard.notices == [("told:end", 9.0)]
