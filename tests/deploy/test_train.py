"""deploy/train.py, the job that users copy: a pod that starts after the run is complete."""

from __future__ import annotations

import json
from pathlib import Path

from tests.deploy.facts import DEPLOY
from tests.support.job_controller import ContainerProcess
from tests.support.job_manifest import Container
from tests.support.processes import PATIENCE
from tests.support.servers import wait_for

DATA = {part: [{"question": f"{part}?", "answer": "yes"}] for part in ("training", "validation")}


def train(root: Path, name: str) -> list[str]:
    """Run the job to its end, with data of a user, and return the lines that it printed."""
    (root / "data.json").write_text(json.dumps(DATA))
    environment = {
        "BACKUP_DIR": str(root / "run"),
        "DISTRIBUTED_BACKUP_WORKER_ID": name,
        "TRAIN_DATA": str(root / "data.json"),
        "TRAIN_EPOCHS": "2",
        "TRAIN_LATENCY": "0",
    }
    container = Container(command=("python", "train.py"), directory=str(DEPLOY), environment=environment)
    process = ContainerProcess(container, root / name)
    try:
        wait_for(lambda: process.poll() is not None, "the job has ended", PATIENCE)
        assert process.poll() == 0, (root / name).read_text()
    finally:
        process.end()
    return (root / name).read_text().splitlines()


def test_a_pod_that_comes_back_when_the_run_is_complete_finds_the_final_state(tmp_path: Path) -> None:
    """It succeeds, prints the same final state and trains nothing, because the checkpoints are kept."""
    first, second = train(tmp_path, "train-0-aaaaa"), train(tmp_path, "train-0-bbbbb")
    assert first[-1].startswith("final state: epoch=2 batch=0 sha256=")
    assert second[-1] == first[-1]
    assert [sum(" committed " in line for line in lines) for lines in (first, second)] == [2, 0]
