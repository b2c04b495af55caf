"""Hold each command's `--help` and the section "JSON output" to what the commands accept and print."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import pytest
import typer
from typer.core import TyperGroup

from distributed_backup.checkpoints.format import Snapshot
from distributed_backup.checkpoints.journal_format import Failed, Link, Record
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.cli import operator_requests
from distributed_backup.cli.app import app
from distributed_backup.cli.operator_requests import HandedOver, Saved
from distributed_backup.coordination.base import Heartbeat, Notice
from distributed_backup.coordination.file import FileCoordinator
from distributed_backup.demo.verdict import SigkillOutcome, SigtermOutcome, Verdict
from distributed_backup.position import Position
from tests.support.cli_runs import NEWEST, OLDER, call, call_json, damage, exportable, record
from tests.support.segments import answer, write_journal, write_segment
from tests.support.stories import three_workers

COMMANDS: Final = (
    *("status", "preempt", "resign", "check", "events", "timeline", "demo"),
    *(f"checkpoints {name}" for name in ("list", "verify", "show", "prune", "export", "copy")),
    *("journal show", "journal verify"),
)
PAGE: Final = Path(__file__).parents[2] / "deploy" / "JSON_OUTPUT.md"
TYPES: Final[dict[str, type | tuple[type, ...]]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
    "array": list,
    "null": type(None),
    "any": object,
}

# -------------------------------------------------------------------- help


def test_every_command_is_listed_here() -> None:
    groups = {"": typer.main.get_command(app)}
    found = []
    while groups:
        prefix, group = groups.popitem()
        assert isinstance(group, TyperGroup)
        for name, command in group.commands.items():
            if isinstance(command, TyperGroup):
                groups[f"{prefix}{name} "] = command
            else:
                found.append(f"{prefix}{name}")
    assert sorted(found) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_one_example_and_one_line_of_exit_codes(command: str) -> None:
    lines = call(*command.split(), "--help").stdout.splitlines()
    (example,) = [line for line in lines if "Example: " in line]
    (codes,) = [line for line in lines if "Exit codes: " in line]
    assert example.startswith(f"  Example: distributed-backup {command}")
    assert re.fullmatch(r"  Exit codes: 0 .+, 1 .+, 2 wrong usage.*\.", codes)
    assert any("--json" in line for line in lines)
    # The keys of the JSON are on a page of their own.
    assert len(lines) < 45


@pytest.mark.parametrize("command", ["events", "timeline"])
def test_help_says_that_epochs_and_batches_count_what_is_completed(command: str) -> None:
    """A reader must not take "epoch 1" for the first epoch."""
    shown = " ".join(call(command, "--help").stdout.split())
    assert '"epoch 2, batch 3" means that 2 epochs and 3 batches of the next one are completed' in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_of_a_command_is_a_valid_command_line(command: str) -> None:
    text = call(*command.split(), "--help").stdout
    program, *words = shlex.split(re.findall(r"Example: (.+)", text)[0])
    assert program == "distributed-backup"
    parsed = typer.main.get_command(app)
    while isinstance(parsed, TyperGroup):
        parsed, words = parsed.commands[words[0]], words[1:]
    context = parsed.make_context(command, words)
    assert context.params["as_json"] is False


# -------------------------------------------------------------------- JSON


def documented(command: str) -> dict[str, str]:
    """Return the keys of a command in the section "JSON output", each with its types."""
    section = PAGE.read_text().partition(f"\n## `{command}`\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `(\S+)` \| ([a-z ]+) \|", section, flags=re.MULTILINE))


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of a document with its key: `a.b` within objects, `a[]` within arrays."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from leaves(part, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for part in value:
            yield from leaves(part, f"{key}[]")
    else:
        yield key, value


def pattern_for(key: str, patterns: dict[str, str]) -> str | None:
    """Return the documented key that describes this one, the most literal one first."""
    found = [name for name in patterns if fnmatchcase(key, name.replace("[]", "[[][]]"))]
    return min(found, key=lambda name: name.count("*"), default=None)


def assert_documented(command: str, *documents: Any) -> None:
    """Every printed key is documented with its type, and every documented key is printed."""
    patterns = documented(command)
    seen = set()
    for document in documents:
        for key, value in leaves(document):
            name = pattern_for(key, patterns)
            assert name is not None, f"{key} is not documented"
            kinds = patterns[name].split(" or ")
            assert any(is_of(value, kind) for kind in kinds), f"{key} is {value!r}, documented as {kinds}"
            seen.add(name)
    containers = {name for name, kinds in patterns.items() if {"object", "array"} & set(kinds.split(" or "))}
    assert seen | containers == set(patterns)


def is_of(value: Any, kind: str) -> bool:
    is_number_alike = isinstance(value, bool) and kind in {"integer", "number"}
    return isinstance(value, TYPES[kind]) and not is_number_alike


def test_the_json_of_status_is_documented(run: Path) -> None:
    coordinator = FileCoordinator(run / "coordinator")
    for worker_id, position in (("w-1", Position(1, 4)), ("w-2", None)):
        coordinator.heartbeat(
            Heartbeat(worker_id=worker_id, campaign=True, floor=2, duration=15.0, role="leader", position=position)
        )
    coordinator.notify(Notice(notice_id="n-1", worker_id="w-2", reason="SIGTERM", remaining=30.0))
    with_leader = call_json("status", run)
    coordinator.resign("w-1")
    assert_documented("status", with_leader, call_json("status", run))


@pytest.mark.parametrize("checkpoint", ["a.ckpt", None])
def test_the_json_of_requests_is_documented(run: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: str | None) -> None:
    saved = Saved(checkpoint=checkpoint, epoch=1, batch=2, leader="a", term=3, seconds=0.5)
    handed_over = HandedOver(leader="b", term=4, previous="a", seconds=0.5)
    monkeypatch.setattr(operator_requests, "ask_for_save", lambda *_, **__: saved)
    monkeypatch.setattr(operator_requests, "ask_to_resign", lambda *_, **__: handed_over)
    assert_documented("preempt", call_json("preempt", run))
    assert_documented("resign", call_json("resign", run))


def test_the_json_of_check_is_documented(tmp_path: Path) -> None:
    assert_documented("check", call_json("check", tmp_path / "run"))


def test_the_json_of_checkpoints_is_documented(run: Path, tmp_path: Path) -> None:
    store = CheckpointStore(run, run_id="job-42", keep=9)
    store.commit(Snapshot(position=Position(2), body=exportable(), final=True), term=3, worker_id="w-1")
    assert_documented("checkpoints show", call_json("checkpoints", "show", run))
    output = tmp_path / "x.variables.json"
    assert_documented("checkpoints export", call_json("checkpoints", "export", run, "-o", output))
    damage(run / OLDER)
    assert_documented("checkpoints list", call_json("checkpoints", "list", run, code=1))
    assert_documented("checkpoints verify", call_json("checkpoints", "verify", run, code=1))
    write_segment(store.storage, (3, Position(2)), [answer()])
    copies = [call_json("checkpoints", "copy", run, tmp_path / "to") for _ in range(2)]
    assert_documented("checkpoints copy", *copies)
    assert_documented("checkpoints prune", call_json("checkpoints", "prune", run))


def test_the_json_of_the_journal_is_documented(run: Path) -> None:
    store = CheckpointStore(run, run_id="job-42", keep=9)
    _, link = write_journal(store)
    whole = call_json("journal", "verify", run)
    failed: list[Record] = [Failed(error="ValueError"), answer(0, b'"text"')]
    write_segment(store.storage, (3, Position(2)), failed, after=Link(name=link.name, end=9), digests=None)
    (run / "0000000004-00000002-00000000.journal").write_bytes(b"torn")
    shown = call_json("journal", "show", run, "--answers", code=1)
    for row in shown["segments"]:
        for recorded in row["recorded"]:
            recorded["value"] = "an answer has names of its own"
    assert_documented("journal show", shown)
    damage(run / NEWEST)
    damage(run / OLDER)
    damaged = call_json("journal", "verify", run, code=1)
    for name in (NEWEST, OLDER):
        (run / name).unlink()
    for segment in run.glob("000000000[34]-*.journal"):
        segment.unlink()
    assert_documented("journal verify", whole, damaged, call_json("journal", "verify", run))


def test_the_json_of_the_history_is_documented(tmp_path: Path) -> None:
    record(tmp_path / "run", three_workers())
    assert_documented("events", call_json("events", tmp_path / "run"))
    assert_documented("timeline", call_json("timeline", tmp_path / "run", "-o", tmp_path / "run.svg"))


def test_the_json_of_the_demonstration_is_documented() -> None:
    """The verdict is made by hand, because a demonstration takes a minute."""
    preempted = SigtermOutcome(
        worker="a",
        last_boundary=(1, 2),
        on_disk=(1, 3),
        durable_ms=1.5,
        in_flight_durable_ms=2.5,
        gone_ms=3.5,
        next_leader_ms=4.5,
        grace_period_ms=5.5,
        exit_code=0,
    )
    verdict = Verdict(
        coordinator="file:",
        workers=2,
        differences=("worker-1: metrics",),
        checkpoints_written=3,
        calls_uninterrupted=4,
        calls_paid=5,
        calls_repeated=1,
        calls_missing=0,
        calls_cut_off=2,
        calls_by_worker={"worker-1": 5},
        sigterm=preempted,
        sigkill=SigkillOutcome(worker="b", next_leader_ms=1.5, lease_ms=2.5, limit_ms=3.5),
        backup_deleted=True,
        problems=("it did not hold",),
    )
    assert_documented("demo", json.loads(json.dumps(verdict.as_json())))
