"""What the tests of the file coordinator share."""

from __future__ import annotations

from pathlib import Path

from distributed_backup.coordination.base import ClusterView, Heartbeat, Notice
from distributed_backup.coordination.file import FileCoordinator


def beat(
    coordinator: FileCoordinator, worker_id: str, *, campaign: bool = True, floor: int = 0, duration: float = 15.0
) -> ClusterView:
    return coordinator.heartbeat(Heartbeat(worker_id=worker_id, campaign=campaign, floor=floor, duration=duration))


def only_record(root: Path) -> Path:
    (path,) = (root / "terms").glob("*.json")
    return path


def notice(notice_id: str) -> Notice:
    return Notice(notice_id=notice_id, worker_id="a", reason="SIGTERM", remaining=30.0)
