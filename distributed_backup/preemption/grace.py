"""How the grace period is divided."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def reserve_of(remaining: float) -> float:
    """Seconds to keep of those that remain before a kill: a tenth, at least 1 s but no more than 40 %.

    Example:
        >>> reserve_of(30.0), reserve_of(5.0), reserve_of(1.0)
        (3.0, 1.0, 0.4)
    """
    return min(max(1.0, 0.1 * remaining), 0.4 * remaining)
