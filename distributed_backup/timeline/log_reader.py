"""The events of a run, from the logs that its workers left beside the checkpoints.

What is no event as this version knows them, a torn line, a kind that a newer version adds, another program's file, is
passed over and counted: to look at a run must not fail because of one line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from distributed_backup.errors import StoreError
from distributed_backup.observability.events import Event, is_event_log
from distributed_backup.storage.base import Storage


def read_events(storage: Storage, run_id: str | None = None) -> tuple[list[Event], int]:
    """All events of a run, and how many lines were passed over.

    Args:
        storage: Where they are.
        run_id: The run: logs of another are left out, which a killed worker may have left there; None for all.

    Returns:
        The events by time; those of one worker stay in the order in which it wrote them.

    Raises:
        StoreError: The place can't be read.
    """
    return parse_events(_lines(storage, run_id))


def parse_events(lines: Iterable[bytes]) -> tuple[list[Event], int]:
    """The events that these lines tell, the lines of a worker in its order, and how many tell none."""
    found, passed_over = [], 0
    for line in lines:
        try:
            found.append(_event(line))
        except ValueError:
            passed_over += 1
    return _merged(found), passed_over


def _event(line: bytes) -> Event:
    event = Event.from_line(line)
    if not 1970 <= event.at.year < 9999:
        raise ValueError(f"a time that can't be shown: {event.at}")
    return event


def _lines(storage: Storage, run_id: str | None) -> Iterator[bytes]:
    for name in sorted(filter(is_event_log, storage.names())):
        try:
            lines = storage.read(name).splitlines()
            yield from lines if run_id is None or _run_of(lines) in {None, run_id} else ()
        except StoreError as error:
            if not isinstance(error.__cause__, FileNotFoundError):  # an old log was tidied away while we look
                raise


def _run_of(lines: Sequence[bytes]) -> str | None:
    """The run that a log belongs to, by its first line; None if that is damaged."""
    with suppress(ValueError, IndexError):
        run: str | None = Event.from_line(lines[0]).fields.get("run")
        return run
    return None


def _merged(events: Iterable[Event]) -> list[Event]:
    """By time; where the clock of a worker went backwards, it is taken to have stood still."""
    latest: dict[str, float] = {}
    keyed = []
    for event in events:
        latest[event.worker] = max(event.at.timestamp(), latest.get(event.worker, 0.0))
        keyed.append((latest[event.worker], event))
    return [event for _, event in sorted(keyed, key=lambda pair: pair[0])]
