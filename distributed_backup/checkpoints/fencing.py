"""Which of two checkpoints counts."""

from __future__ import annotations

from distributed_backup.checkpoints.format import CheckpointHeader, Snapshot


def is_superseded(snapshot: Snapshot, *, by: CheckpointHeader | None, term: int) -> bool:
    """Whether the newest checkpoint makes it needless for the leader of `term` to commit `snapshot`.

    Progress never goes backwards. But how far two pipelines have come in one epoch does not compare: after a restart
    with other data, the epoch began anew.
    """
    if by is None or by.position < snapshot.position:
        return False
    began_anew = by.epoch == snapshot.position.epoch and by.data != snapshot.data and by.term < term
    return not began_anew
