"""Poll for notices besides signals: files, the clouds' metadata services, and sources that a user adds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from distributed_backup.checks import checked_seconds, shown
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
    # A user may give a value of any type. `_source` refuses what is no source.
    given: object = notices
    wanted: list[Any] = [given]
    if isinstance(given, str):
        wanted = [name.strip() for name in given.split(",")]
    elif isinstance(given, Iterable) and not isinstance(given, bytes):
        wanted = list(given)
    others = [each for each in wanted if not isinstance(each, str) or each != "signal"]
    return NoticeSources(signal=len(others) < len(wanted), others=tuple(map(_source, others)))


def _check(source: NoticeSource) -> None:
    """Check a source before the fit, because an error in its thread would only be logged."""
    name = getattr(source, "name", None)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"a NoticeSource must have a name, {type(source).__name__} has {shown(name)}")
    period: object = source.period
    checked_seconds(f"the period of the notice source {name}", period)


def _source(notice: str | NoticeSource) -> NoticeSource:
    if isinstance(notice, NoticeSource):
        _check(notice)
        return notice
    name = notice if isinstance(notice, str) else ""
    if name in _CLOUDS:
        return _CLOUDS[name]()
    # file:/path and file:///path name the same file (RFC 8089).
    scheme, _, path = name.partition(":")
    path = path.removeprefix("//")
    if scheme == "file" and path.startswith("/") and not path.endswith("/"):
        return FileSource(Path(path))
    raise ConfigError(
        f"notices must be any of 'signal', 'file:/absolute/path', {', '.join(map(repr, _CLOUDS))}, or a NoticeSource; "
        f"got {shown(notice)}"
    )
