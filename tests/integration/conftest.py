"""Fixtures that several modules of integration tests use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs import Job
from tests.support.preempted_fits import SCENARIOS, Start, job
from tests.support.processes import Child


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(job: Job, *arguments: Any, how: str = "train") -> Child:
            log = tmp_path / f"log-{len(os.listdir(tmp_path))}"
            return stack.enter_context(Child(f"{SCENARIOS}:{how}", job, *arguments, log=log))

        yield start


@pytest.fixture
def backup_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the result of an uninterrupted fit."""
    root = tmp_path_factory.mktemp("uninterrupted")
    with Child(f"{SCENARIOS}:train", job(root / "run"), log=root / "log") as child:
        result: dict[str, Any] = child.result()
    return result
