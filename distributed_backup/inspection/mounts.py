"""Find the file system of a directory, and what its kind and its options mean for a run. Linux only.

The limit: the options are those of this machine. Another machine may have mounted the same volume otherwise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from distributed_backup.inspection.finding import Outcome, ok

_TABLE: Final = Path("/proc/self/mountinfo")
_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
_OF_CONTAINERS: Final = frozenset({"overlay", "aufs"})
_NFS: Final = frozenset({"nfs", "nfs4"})
_SMB: Final = frozenset({"cifs", "smb3", "smbfs"})
# Options that shorten the time for which an NFS client remembers a directory, see nfs(5).
_FRESH: Final = re.compile(r"(?:^|,)(?:noac|actimeo=[0-5]|acdirmax=[0-5]|lookupcache=none)(?:,|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One mounted file system: its kind, its options, and where it is."""

    kind: str
    options: str
    point: str


def mount_of(path: Path, table: str | None = None) -> Mount | None:
    """Return the mount that holds an existing path. None if the machine does not tell.

    Args:
        path: The path.
        table: The text of `/proc/self/mountinfo`, see proc(5). None reads it.

    Example:
        >>> mount_of(Path("/"), "1 0 8:1 / / rw,noatime shared:1 - ext4 /dev/vda rw")
        Mount(kind='ext4', options='rw,noatime,rw', point='/')
    """
    if table is None:
        try:
            table = _TABLE.read_text()
        except OSError:
            return None
    real, found = path.resolve(), None
    for line in table.splitlines():
        before, separator, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if not separator or len(fields) < 6 or not kinds:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4])
        # The last of several mounts at one point hides the others.
        if real.is_relative_to(point) and (found is None or len(point) >= len(found.point)):
            found = Mount(kind=kinds[0], options=",".join([fields[5], *kinds[2:]]), point=point)
    return found


def outcome_of(mount: Mount | None) -> Outcome:
    """Return what the kind and the options of a file system mean for a run."""
    if mount is None:
        return Outcome("unknown", "this machine does not tell the kind of the file system")
    found = f"{mount.kind} at {mount.point}"
    if mount.kind in _IN_MEMORY:
        return Outcome(
            "warning", f"{found}, in memory", "A restart of the machine or of the pod loses the backup. Use a disk."
        )
    if mount.kind in _OF_CONTAINERS:
        return Outcome(
            "warning",
            f"{found}, the container's own layer",
            "The backup is lost with the container. Mount a volume, and name a directory on it.",
        )
    if mount.kind in _SMB:
        return Outcome(
            "warning", f"{found}, SMB", "Most SMB servers have no hard links, which a run needs. Prefer NFS."
        )
    return _outcome_of_nfs(mount, found) if mount.kind in _NFS else ok(found)


def _outcome_of_nfs(mount: Mount, found: str) -> Outcome:
    # With softreval, only what the client remembers is used for longer.
    if soft := {"soft", "softerr"}.intersection(mount.options.split(",")):
        return Outcome(
            "warning",
            f"{found}, mounted with the option {soft.pop()}",
            "A server that is away for a while then looks like a damaged disk. Mount with hard.",
        )
    if not _FRESH.search(mount.options):
        return Outcome(
            "warning",
            f"{found}, whose clients remember a directory for up to 60 s",
            "Other machines start and take over as late. Mount with actimeo=1.",
        )
    return ok(found)
