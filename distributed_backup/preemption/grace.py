"""How the grace period is divided."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def shutdown_reserve(remaining: float) -> float:
    """Seconds to keep of those that remain before a kill: a tenth, at least 1 s but no more than 40 %.

    Example:
        >>> shutdown_reserve(30.0), shutdown_reserve(5.0), shutdown_reserve(1.0)
        (3.0, 1.0, 0.4)
    """
    return min(max(1.0, 0.1 * remaining), 0.4 * remaining)
