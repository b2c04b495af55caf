"""Which of two checkpoints counts."""

from __future__ import annotations

from distributed_backup.checkpoints.format import CheckpointHeader, Snapshot


def covers(newest: CheckpointHeader | None, snapshot: Snapshot, term: int) -> bool:
    """Whether the newest checkpoint makes it needless for the leader of `term` to commit `snapshot`.

    Progress never goes backwards. But how far two pipelines have come in one epoch does not compare: after a restart
    with other data, the epoch began anew.
    """
    if newest is None or newest.position < snapshot.position:
        return False
    began_anew = newest.epoch == snapshot.position.epoch and newest.data != snapshot.data and newest.term < term
    return not began_anew
