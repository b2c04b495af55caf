"""Find recorded answers that no checkpoint leads to, as after a checkpoint was removed by hand.

A log begins at the boundary of a checkpoint. Without that checkpoint its answers are not used, and later commits remove
its segments.

The limit: only the newest segment and those that it continues are looked at. What an earlier leader has written beside
them counts for nothing anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

from distributed_backup.checkpoints.format import CheckpointHeader
from distributed_backup.checkpoints.journal import SegmentReader, segments_among
from distributed_backup.checkpoints.journal_format import Answer, Header
from distributed_backup.checkpoints.journal_scan import SegmentScan
from distributed_backup.errors import StoreError
from distributed_backup.storage.base import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class AbandonedAnswers:
    """So many answers, in the segment `name` and in those that continue it."""

    name: str
    count: int

    def __str__(self) -> str:
        return (
            f"{self.count} recorded answers from {self.name} on are not used, because the checkpoint that they follow "
            "is missing. If it was removed by mistake, stop all workers and put it back. Otherwise the answers are "
            "asked for again, and later commits remove the old ones"
        )


def find_abandoned(storage: Storage, *, run_id: str | None, newest: CheckpointHeader | None) -> AbandonedAnswers | None:
    """Return the answers that can't follow `newest`, the newest checkpoint. None if there are none.

    Raises:
        StoreError: The storage can't be read.
    """
    chain = _newest_chain(storage, run_id)
    if not chain:
        return None
    first = chain[-1]
    if newest is not None:
        is_outdated = newest.term > chain[0].term
        has_boundary = first.position < newest.position or (
            first.position == newest.position and first.digests is not None
        )
        if is_outdated or has_boundary:
            return None
    scans = (SegmentScan(storage, header.name) for header in chain)
    count = sum(isinstance(scanned.record, Answer) for scan in scans for scanned in scan)
    return AbandonedAnswers(name=first.name, count=count) if count else None


def _newest_chain(storage: Storage, run_id: str | None) -> list[Header]:
    """Return the headers of the newest segment and of those that it continues, newest first."""
    chain: list[Header] = []
    for name in segments_among(storage.names()):
        if chain and (chain[-1].after is None or chain[-1].after.name != name):
            continue
        header = _header(storage, name)
        if header is not None and run_id in {None, header.run_id}:
            chain.append(header)
    return chain


def _header(storage: Storage, name: str) -> Header | None:
    try:
        return SegmentReader(storage, name).header()
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None  # removed since the listing
        raise
