"""deploy/train.py: it resumes, saves the program beside the backup, and exits with 143 after a notice."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.cli.export import state_tree
from distributed_backup.storage import storage_from_url
from tests.deploy.facts import DEPLOY
from tests.support.buckets import S3Server
from tests.support.job_controller import ContainerProcess
from tests.support.job_manifest import Container
from tests.support.servers import RedisServer, wait_for

# Seconds for 3 workers and the first import of synalinks on two noisy cores.
PATIENCE = 150.0

DATA = {
    part: [{"question": f"{part} {number}?", "answer": "yes"} for number in range(count)]
    for part, count in (("training", 9), ("validation", 3))
}
SAVED = ("run.program.json", "run.variables.json")
# A bucket can hold no lock.
ALONE = {"DISTRIBUTED_BACKUP_COORDINATOR": "memory:"}


@contextmanager
def started(root: Path, name: str, *command: str, **environment: str) -> Iterator[ContainerProcess]:
    """Start `python COMMAND` in deploy/, with its output in the file `name`."""
    container = Container(command=("python", *command), directory=str(DEPLOY), environment=environment)
    process = ContainerProcess(container, root / name)
    try:
        yield process
    finally:
        process.end()


def ended(process: ContainerProcess) -> int | None:
    """Wait for the exit code of a process."""
    wait_for(lambda: process.poll() is not None, "the process has ended", PATIENCE)
    return process.poll()


def train(root: Path, *names: str, script: str = "train.py", **more: str) -> list[str]:
    """Run a train.py for each name, all at once, with data of a user. Return the lines that the last one printed."""
    (root / "data.json").write_text(json.dumps(DATA))
    environment = {
        "BACKUP_DIR": str(root / "run"),
        "TRAIN_DATA": str(root / "data.json"),
        "TRAIN_EPOCHS": "2",
        "TRAIN_LATENCY": "0",
        **more,
    }
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(started(root, name, script, **environment, DISTRIBUTED_BACKUP_WORKER_ID=name))
            for name in names
        }
        for name, process in workers.items():
            assert ended(process) == 0, (root / name).read_text()
    return (root / names[-1]).read_text().splitlines()


def test_a_pod_that_starts_after_the_run_is_complete_prints_the_final_state(tmp_path: Path) -> None:
    """It succeeds, prints the same as the first and trains nothing, because the checkpoints are kept."""
    first, second = train(tmp_path, "train-0-aaaaa"), train(tmp_path, "train-0-bbbbb")
    assert first[-1].startswith("final state: epoch=2 batch=0 sha256=")
    assert second[-1] == first[-1]
    commits = [re.findall(r" committed worker=\S+ checkpoint=\d+-(\S+)", "\n".join(lines)) for lines in (first, second)]
    # The final state may overtake the boundary that it follows.
    assert [name for name in commits[0] if name != "00000002-00000000.ckpt"] == [
        "00000000-00000000.ckpt",
        "00000001-00000000.ckpt",
        "00000002-00000000.final.ckpt",
    ]
    assert commits[1] == []


# ---------------------------------------------------------------- the saved program

LOAD = """
import asyncio, json, sys
import synalinks, train
program = synalinks.Program.load(sys.argv[1])
built = asyncio.run(train.build())
built.load_variables(sys.argv[2])
print(json.dumps([program.get_state_tree(), built.get_state_tree()]))
"""


def loaded(root: Path) -> list[dict[str, Any]]:
    """Load the saved program, and its variables into the program of `train.build`, in a process of its own.

    Return both states without the metrics, which a new program begins anew.
    """
    (root / "load.py").write_text(f"import sys\nsys.path.insert(0, {str(DEPLOY)!r})\n{LOAD}")
    files = [str(root / name) for name in SAVED]
    with started(root, "loaded", str(root / "load.py"), *files) as process:
        assert ended(process) == 0, (root / "loaded").read_text()
    states: list[dict[str, Any]] = json.loads((root / "loaded").read_text().splitlines()[-1])
    return [without_metrics(state) for state in states]


def without_metrics(state: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in state.items() if name != "metrics_variables"}


def test_three_workers_that_end_at_once_save_one_program_that_loads_in_the_final_state(tmp_path: Path) -> None:
    """The final state is that of the newest checkpoint."""
    lines = train(tmp_path, "train-0", "train-1", "train-2")
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"data.json", "run", "train-0", "train-1", "train-2", *SAVED}
    assert all(any(line.endswith(f"saved {tmp_path / name}") for line in lines) for name in SAVED)
    newest = CheckpointStore(tmp_path / "run").latest()
    assert newest is not None
    assert newest.name.endswith(".final.ckpt")
    assert loaded(tmp_path) == [without_metrics(state_tree(newest))] * 2


def test_a_program_is_saved_beside_a_backup_in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = S3Server()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    try:
        server.make_bucket("bucket")
        lines = train(tmp_path, "train-0", **{**server.environment, "BACKUP_DIR": "s3://bucket/runs/run", **ALONE})
        for name in SAVED:
            assert any(line.endswith(f"saved s3://bucket/runs/{name}") for line in lines)
            (tmp_path / name).write_bytes(storage_from_url("s3://bucket/runs").read(name))
    finally:
        server.close()
    program, built = loaded(tmp_path)
    assert program == built
    assert program["trainable_variables"]["generator"]


UNSAVABLE = """
import runpy, synalinks

def save(self, filepath):
    raise TypeError("no config")

synalinks.Program.save = save
runpy.run_path("train.py", run_name="__main__")
"""


def test_a_program_that_can_not_be_saved_does_not_fail_the_job_after_its_training(tmp_path: Path) -> None:
    """The variables are saved."""
    (tmp_path / "unsavable.py").write_text(UNSAVABLE)
    lines = train(tmp_path, "train-0", script=str(tmp_path / "unsavable.py"))
    assert any(line.endswith("ERROR train not saved: run.program.json") for line in lines)
    assert [(tmp_path / name).exists() for name in SAVED] == [False, True]


def test_a_run_in_redis_succeeds_and_says_that_its_program_is_not_saved(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "server", port=0) as server:
        url = f"redis://127.0.0.1:{server.port}/0"
        lines = train(tmp_path, "train-0", BACKUP_DIR=url, DISTRIBUTED_BACKUP_RUN_ID="run")
    assert any("the program is not saved" in line for line in lines)


def test_a_run_in_redis_without_its_final_state_does_not_succeed(tmp_path: Path) -> None:
    """A full server refuses it, and `fit` only logs that. A success would complete the Job without a result."""
    (tmp_path / "save.py").write_text(
        "import os, runpy; runpy.run_path('train.py')['save'](None, os.environ['BACKUP_DIR'])"
    )
    with RedisServer(tmp_path / "server", port=0) as server:
        environment = {"BACKUP_DIR": f"redis://127.0.0.1:{server.port}/0", "DISTRIBUTED_BACKUP_RUN_ID": "run"}
        with started(tmp_path, "log", str(tmp_path / "save.py"), **environment) as process:
            assert ended(process) == 1
    assert (tmp_path / "log").read_text().endswith("the final state is not in Redis, so this pod must be replaced\n")


# ---------------------------------------------------------------- a preemption


def test_a_preempted_worker_exits_with_143_before_the_grace_period_ends(tmp_path: Path) -> None:
    """A batch in flight uses all of it but the reserve, and the end of a real interpreter takes CPU-seconds.

    The manifests give the package 2 s less than the platform gives the pod.
    """
    grace = 6.0
    environment = {
        **os.environ,
        "BACKUP_DIR": str(tmp_path / "run"),
        "DISTRIBUTED_BACKUP_GRACE_PERIOD": str(grace),
        "TRAIN_LATENCY": "600",
    }
    log = tmp_path / "log"
    with log.open("w") as output:
        command = [sys.executable, "train.py"]
        process = subprocess.Popen(command, cwd=DEPLOY, env=environment, stdout=output, stderr=output)
        try:
            wait_for(lambda: " committed " in log.read_text() or process.poll() is not None, "it trains", PATIENCE)
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 143, log.read_text()
            assert time.monotonic() - begun < grace + 2.0, log.read_text()
        finally:
            process.kill()
            process.wait()
