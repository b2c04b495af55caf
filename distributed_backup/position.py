"""The position of a fit: the value that every room shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from distributed_backup.checks import is_whole, shown
from distributed_backup.errors import ConfigError

_MAX_COUNT: Final = 10**8 - 1


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """The number of epochs and batches that a fit has completed. Positions sort in the order of training.

    Args:
        epoch: Epochs completed.
        batch: Batches completed in the current epoch, training batches first, then validation batches. Validation
            batches count so that an interrupted validation is continued, and paid for once.

    Raises:
        ConfigError: A value is no whole number from 0 to 99,999,999.

    Example:
        >>> Position(2, 3) < Position(3)
        True
    """

    epoch: int
    batch: int = 0

    def __post_init__(self) -> None:
        for value in (self.epoch, self.batch):
            if not is_whole(value) or not 0 <= value <= _MAX_COUNT:
                got = f"{shown(self.epoch)}, {shown(self.batch)}"
                raise ConfigError(f"want whole numbers 0 <= epoch, batch <= {_MAX_COUNT}, got {got}")

    @property
    def as_tuple(self) -> tuple[int, int]:
        """The numbers alone, for JSON. `Position(*numbers)` is the way back."""
        return (self.epoch, self.batch)

    def __str__(self) -> str:
        return f"epoch {self.epoch}, batch {self.batch}"
