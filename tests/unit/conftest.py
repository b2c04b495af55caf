"""Fixtures that several modules of unit tests use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.position import Position
from tests.support.cli_runs import commit
from tests.support.clocks import FakeClock
from tests.support.journals import PATIENCE, Bench, DictStorage
from tests.support.team import Team


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    made = Team(tmp_path)
    yield made
    made.end()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two checkpoints."""
    root = tmp_path / "run"
    store = CheckpointStore(root, run_id="job-42", keep=9)
    commit(store, 1, Position(1))
    commit(store, 2, Position(1, 3))
    return root


@pytest.fixture
def storage() -> DictStorage:
    return DictStorage()


@pytest.fixture
def bench(storage: DictStorage, clock: FakeClock) -> Iterator[Bench]:
    made = Bench(storage, clock)
    yield made
    storage.before_append = storage.after_append = lambda name, data: None
    made.writer.close(timeout=PATIENCE)
