"""Run commands in this process, on small runs made for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from distributed_backup.checkpoints.format import Snapshot
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.cli.app import app
from distributed_backup.observability.events import event_log_name
from distributed_backup.position import Position
from tests.support.stories import Story

LOOKING = (("status",), ("checkpoints", "list"), ("checkpoints", "verify"), ("checkpoints", "show"))
NEWEST = "0000000002-00000001-00000003.ckpt"
OLDER = "0000000001-00000001-00000000.ckpt"


def body(**changes: Any) -> bytes:
    """Encode a training state in the form of `TrainingState.capture`."""
    state = {
        "variables": {"trainable": [{"examples": ["é"]}], "metrics": [{"total": 1.5}, {"total": 22.5}]},
        "optimizer": {},
        "objects": [],
        "python_random": [3, [1, 2], None],
        "numpy_random": ["MT19937", [1], 0, 0, 0.0],
        "schema": {
            "trainable": [{"path": "generator/state", "schema": "00"}],
            "metrics": [{"path": "mean/total", "schema": "01"}, {"path": "mean/total", "schema": "01"}],
        },
    }
    return json.dumps({**state, **changes}, ensure_ascii=False).encode()


def exportable(example: str = "é") -> bytes:
    """Encode a training state in which each path occurs once."""
    groups = ("trainable", "non_trainable", "optimizer_trainable", "optimizer_non_trainable", "metrics")
    variables: dict[str, list[Any]] = {group: [] for group in groups}
    schema: dict[str, list[Any]] = {group: [] for group in groups}
    return body(
        variables={**variables, "trainable": [{"examples": [example]}]},
        schema={**schema, "trainable": [{"path": "generator/state", "schema": "00"}]},
    )


def commit(store: CheckpointStore, term: int, position: Position, content: bytes | None = None) -> str:
    snapshot = Snapshot(position=position, body=body() if content is None else content)
    return store.commit(snapshot, term=term, worker_id="w-1").name


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)


def call(*words: object) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def call_json(*words: object, code: int | None = 0) -> Any:
    """Run a command and return its document. `code` is the expected exit code, None for any."""
    result = call(*words, "--json")
    assert code in {None, result.exit_code}, result.output
    return json.loads(result.stdout)


def assert_refused(result: Result, code: int, *words: str) -> None:
    """Check for one error line on stderr with these words, and an empty stdout."""
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr


def record(run: Path, story: Story) -> None:
    """Write the event logs of a story and the run's id."""
    CheckpointStore(run, run_id="job-42").open_run()
    logs: dict[str, list[bytes]] = {}
    names: dict[str, str] = {}
    for event in story.in_order:
        name = names.setdefault(event.worker, event_log_name(event))
        logs.setdefault(name, []).append(event.line())
    for name, lines in logs.items():
        (run / name).write_bytes(b"".join(lines))
