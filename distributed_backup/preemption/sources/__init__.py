"""Poll for notices besides signals: files, the clouds' metadata services, and sources that a user adds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from distributed_backup.errors import ConfigError
from distributed_backup.preemption.sources.aws import AwsSource
from distributed_backup.preemption.sources.azure import AzureSource
from distributed_backup.preemption.sources.base import Alert, NoticeSource
from distributed_backup.preemption.sources.file import FileSource
from distributed_backup.preemption.sources.gce import GceSource

__all__ = ["Alert", "NoticeSource", "NoticeSources", "notice_sources"]

_CLOUDS: Final = {"gce": GceSource, "aws": AwsSource, "azure": AzureSource}


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeSources:
    """The sources of a callback. `signal` says whether signals are one, `others` are polled."""

    signal: bool
    others: tuple[NoticeSource, ...]

    def __bool__(self) -> bool:
        """Whether there is any source."""
        return self.signal or bool(self.others)


def notice_sources(notices: str | NoticeSource | Iterable[str | NoticeSource]) -> NoticeSources:
    """Return the sources that `notices` names.

    A name is "signal", "file:/absolute/path", "gce", "aws" or "azure". Several are a text with commas, or a sequence
    that may hold `NoticeSource`s too.

    Raises:
        ConfigError: A name is unknown, or the environment has an invalid address of a metadata service.

    Example:
        >>> found = notice_sources("signal, file:/run/notice")
        >>> found.signal, [source.name for source in found.others]
        (True, ['file:/run/notice'])
    """
    if isinstance(notices, str):
        notices = [name.strip() for name in notices.split(",")]
    wanted = list(notices) if isinstance(notices, Iterable) else [notices]
    return NoticeSources(
        signal="signal" in wanted,
        others=tuple(_source(each) for each in wanted if each != "signal"),
    )


def _check(source: NoticeSource) -> None:
    """Check a source before the fit, because an error in its thread would only be logged."""
    name = getattr(source, "name", None)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"a NoticeSource must have a name, {type(source).__name__} has {name!r}")
    period: object = source.period
    if isinstance(period, bool) or not isinstance(period, int | float) or not 0 < period < math.inf:
        raise ConfigError(
            f"the period of the notice source {name} must be a positive number of seconds, got {period!r}"
        )


def _source(notice: str | NoticeSource) -> NoticeSource:
    if isinstance(notice, NoticeSource):
        _check(notice)
        return notice
    if isinstance(notice, str) and notice in _CLOUDS:
        return _CLOUDS[notice]()
    # file:/path and file:///path name the same file (RFC 8089).
    scheme, _, path = str(notice).partition(":")
    path = path.removeprefix("//")
    if scheme == "file" and path.startswith("/") and not path.endswith("/"):
        return FileSource(Path(path))
    raise ConfigError(
        f"notices must be any of 'signal', 'file:/absolute/path', {', '.join(map(repr, _CLOUDS))}, or a NoticeSource; "
        f"got {notice!r}"
    )
