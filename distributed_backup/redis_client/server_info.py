"""What a Redis or Valkey server says of itself, and what in it is wrong for a run.

The first contact of a client warns of it. `distributed-backup check` shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

_OLDEST_VERSION: Final = (6, 2)


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The reply to INFO. `where` names the server without credentials."""

    where: str
    fields: dict[str, Any]

    @property
    def version(self) -> str:
        """The version of Redis that the server is, or is compatible with."""
        return str(self.fields.get("redis_version", ""))

    @property
    def is_too_old(self) -> str:
        """What is wrong with the version. Empty if nothing is."""
        numbers = tuple(int(part) for part in self.version.split(".")[:2] if part.isdecimal())
        if numbers >= _OLDEST_VERSION:
            return ""
        return f"the server at {self.where} is version {self.version or 'unknown'}: Redis 6.2 or Valkey is needed"

    @property
    def may_evict(self) -> str:
        """How the server may lose a lease when its memory is full. Empty if it may not."""
        policy = self.fields.get("maxmemory_policy", "noeviction")
        if policy == "noeviction":
            return ""
        return (
            f"the server at {self.where} may evict the lease of a run when its memory is full: change its "
            f"maxmemory-policy from {policy} to noeviction"
        )

    @property
    def is_replica(self) -> str:
        """Why the server grants no lease. Empty if it is a primary."""
        if self.fields.get("role") != "slave":
            return ""
        return f"the server at {self.where} is a replica, which grants no lease: name the primary"

    @property
    def forgets(self) -> str:
        """How a restart loses checkpoints. Empty if the server keeps an append-only file, or does not say."""
        if self.fields.get("aof_enabled", True):
            return ""
        return (
            f"the server at {self.where} keeps no append-only file, so a restart loses checkpoints: set appendonly yes"
        )
