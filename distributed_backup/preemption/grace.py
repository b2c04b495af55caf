"""Divide the grace period between training and shutdown."""

from __future__ import annotations


def shutdown_reserve(remaining: float) -> float:
    """Return the seconds before a kill that shutdown may use: a tenth of those remaining, at least 1 s, at most 40 %.

    Example:
        >>> shutdown_reserve(30.0), shutdown_reserve(5.0), shutdown_reserve(1.0)
        (3.0, 1.0, 0.4)
    """
    return min(max(1.0, 0.1 * remaining), 0.4 * remaining)
