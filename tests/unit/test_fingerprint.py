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
