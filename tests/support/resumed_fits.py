"""Run the scenarios of resumed fits in children. Imports no synalinks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.processes import Child

SCENARIOS = "tests.integration.resume_scenarios"
CASES = "tests.integration.resume_case_scenarios"
ENDS = ("on_train_batch_end", "on_test_batch_end", "on_epoch_end")


def result(tmp_path: Path, name: str, *arguments: Any, module: str = SCENARIOS) -> Any:
    """Return what a scenario returns."""
    with Child(f"{module}:{name}", *arguments, log=tmp_path / "log") as child:
        return child.result()
