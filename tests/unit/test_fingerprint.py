"""Test that any sample has a fingerprint, because one without would end the training that reads it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distributed_backup.training.fingerprint import batch_content


@pytest.mark.parametrize("sample", [10**30, "\ud800", {1: "a"}, {(1, 2): "a"}, {1, 2}, None, float("nan")], ids=repr)
def test_a_batch_of_any_samples_has_a_content(sample: Any) -> None:
    """Samples that differ beside it give another content."""
    one, other = (np.array([sample, number], dtype=object) for number in (1, 2))
    assert batch_content((one,)) == batch_content((one.copy(),))
    assert batch_content((one,)) != batch_content((other,))


class Frame:
    """A table as of pandas: an index is the name of a column."""

    def __init__(self, *rows: int) -> None:
        self._rows = rows

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.array(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, name: str) -> Any:
        raise KeyError(name)


def test_a_table_has_a_content() -> None:
    """It is what synalinks takes for an array."""
    assert batch_content((Frame(1, 2),)) == batch_content((Frame(1, 2),)) != batch_content((Frame(1, 3),))


def test_a_number_in_place_of_an_array_has_a_content() -> None:
    """An array may have no dimension."""
    assert batch_content((np.array(1),)) != batch_content((np.float64(2),))
