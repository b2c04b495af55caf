"""Read the events of a run from the logs that its workers keep beside the checkpoints.

A line that is not a known event is skipped and counted, because one bad line must not hide a run. Examples are a torn
line, a kind that a newer version added, and a file of another program.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final

from distributed_backup.errors import StoreError
from distributed_backup.observability.events import Event, is_event_log
from distributed_backup.regular_file import IrregularFileError
from distributed_backup.storage.base import Storage

# Characters of the shortest event, with a date alone. A damaged file may have millions of lines that are shorter.
_SHORTEST: Final = len('{"at":"2026-11-30","worker":"w","event":"lost"}')
# As `checked_name` takes them.
_LONGEST_NAME: Final = 128


def read_events(storage: Storage, run_id: str | None = None) -> tuple[list[Event], int]:
    """Return all events of a run in order of time, and the number of skipped lines.

    Events of one worker stay in the order in which it wrote them.

    Args:
        storage: The storage of the run's checkpoints.
        run_id: Skip the logs of other runs, which a killed worker may have left. None reads all logs.

    Raises:
        StoreError: The storage can't be read.
    """
    return parse_events(_lines(storage, run_id))


def parse_events(lines: Iterable[bytes]) -> tuple[list[Event], int]:
    """Return the events in these lines in order of time, and the number of lines that are not an event."""
    found, skipped = [], 0
    for line in lines:
        if len(line) < _SHORTEST:
            skipped += 1
            continue
        try:
            found.append(_event(line))
        except ValueError:
            skipped += 1
    return _merged(found), skipped


def _event(line: bytes) -> Event:
    event = Event.from_line(line)
    if len(event.worker) > _LONGEST_NAME:
        raise ValueError(f"no worker has so long a name: {event.worker[:80]}")
    if not 1970 <= event.at.year < 9999:
        raise ValueError(f"the year can't be shown: {event.at}")
    return event


def _lines(storage: Storage, run_id: str | None) -> Iterator[bytes]:
    for name in sorted(filter(is_event_log, storage.names())):
        try:
            lines = storage.read(name).splitlines()
            yield from lines if run_id is None or _run_of(lines) in {None, run_id} else ()
        except StoreError as error:
            # An old log was removed after the listing, or a link leads nowhere.
            if not isinstance(error.__cause__, FileNotFoundError | IrregularFileError):
                raise


def _run_of(lines: Sequence[bytes]) -> str | None:
    """Return the run that the first line of a log names. None if that line is damaged."""
    with suppress(ValueError, IndexError):
        run = Event.from_line(lines[0]).fields.get("run")
        return run if isinstance(run, str) else None
    return None


def _merged(events: Iterable[Event]) -> list[Event]:
    """Order events by time. A clock that was set back counts as stopped until it catches up."""
    latest: dict[str, float] = {}
    keyed = []
    for event in events:
        latest[event.worker] = max(event.at.timestamp(), latest.get(event.worker, 0.0))
        keyed.append((latest[event.worker], event))
    return [event for _, event in sorted(keyed, key=lambda pair: pair[0])]
