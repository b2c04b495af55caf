"""Test `events` and `timeline`: output, files and exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.errors import StoreError
from distributed_backup.observability.events import event_log_name
from distributed_backup.position import Position
from distributed_backup.storage.local import LocalStorage
from tests.support.cli_runs import assert_refused, call, commit, record
from tests.support.stories import Story, three_workers


@pytest.fixture
def run(tmp_path: Path) -> Path:
    record(tmp_path / "run", three_workers())
    return tmp_path / "run"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Make a run of two workers, one of which could not save."""
    story = Story()
    story.start(0, "a-00000001")
    story.tell(0.7, "bee-00000002", "joined", standby=True)
    story.tell(1, "a-00000001", "elected", term=1)
    story.tell(2.25, "a-00000001", "commit_failed", reason="disk\nfull \x1b[2J")
    story.tell(9, "a-00000001", "left")
    record(tmp_path / "run", story)
    return tmp_path / "run"


# -------------------------------------------------------------------- events


def test_events_are_told_a_line_each_in_order_of_time(small: Path) -> None:
    """Control characters in an error's text do not reach the terminal."""
    result = call("events", small)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "2026-11-23 10:00:00.000  a-00000001    joined         run job-42",
        "2026-11-23 10:00:00.500  a-00000001    restored       epoch 0, batch 0, from the beginning",
        "2026-11-23 10:00:00.700  bee-00000002  joined         run job-42, standby",
        "2026-11-23 10:00:01.000  a-00000001    elected        term 1",
        "2026-11-23 10:00:02.250  a-00000001    commit_failed  disk full  [2J",
        "2026-11-23 10:00:09.000  a-00000001    left",
    ]


def test_what_events_tell_lines_up_beside_the_longest_kind(tmp_path: Path) -> None:
    """`commit_recovered` is longer than the other kinds."""
    story = Story()
    story.start(0, "a-00000001")
    story.tell(1, "a-00000001", "elected", term=1)
    story.tell(2, "a-00000001", "commit_failed", reason="full")
    story.tell(3, "a-00000001", "commit_recovered")
    record(tmp_path / "run", story)
    lines = call("events", tmp_path / "run").stdout.splitlines()
    begins = [line.index(text) for line, text in zip(lines, ("run job-42", "epoch 0", "term 1", "full"), strict=False)]
    assert set(begins) == {len("2026-11-23 10:00:00.000  a-00000001  commit_recovered  ")}


def test_events_as_json_are_what_the_workers_wrote(run: Path) -> None:
    result = call("events", run, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == [json.loads(event.line()) for event in three_workers().in_order]


@pytest.mark.parametrize("command", ["events", "timeline"])
def test_what_is_passed_over_is_told_in_one_line(small: Path, command: str) -> None:
    (small / "events-20261123T100000Z-torn.jsonl").write_bytes(b'{"at":"2026-1\n{"x":1}\n')
    output = () if command == "events" else ("-o", small / "out.svg")
    result = call(command, small, *output)
    assert result.exit_code == 0
    assert result.stderr == "warning: 2 line(s) skipped: damaged, or written by another version\n"


@pytest.mark.parametrize("command", ["events", "timeline"])
@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_run_without_events_is_a_problem(tmp_path: Path, command: str, flags: tuple[str, ...]) -> None:
    CheckpointStore(tmp_path / "run").open_run()
    (tmp_path / "out.svg").write_text("old")
    output = () if command == "events" else ("-o", tmp_path / "out.svg")
    assert_refused(call(command, tmp_path / "run", *output, *flags), 1, "run holds no events")
    assert (tmp_path / "out.svg").read_text() == "old"


@pytest.mark.parametrize("command", ["events", "timeline"])
def test_what_is_no_run_is_wrong_usage(tmp_path: Path, command: str) -> None:
    output = () if command == "events" else ("-o", tmp_path / "out.svg")
    assert_refused(call(command, tmp_path / "nowhere", *output), 2, "nowhere does not exist")
    assert list(tmp_path.iterdir()) == []


def test_the_run_may_be_named_by_a_url(small: Path) -> None:
    assert call("events", small.as_uri()).stdout == call("events", small).stdout


@pytest.mark.parametrize("command", ["events", "timeline"])
@pytest.mark.parametrize("named", [(), ("--run", "job-42")])
def test_a_damaged_run_is_told_of_all_the_same(small: Path, command: str, named: tuple[str, ...]) -> None:
    """A damaged run needs its events most. `--run` says which events belong to it."""
    words = (command, small, *named, *(() if command == "events" else ("-o", small / "out.svg")))
    sound = call(*words)
    (small / "run.json").write_text("{")
    other = Story()
    other.tell(20, "c-00000003", "joined", run="job-43")
    (small / event_log_name(other.events[0])).write_bytes(other.events[0].line())
    found = call(*words)
    more = "" if named else " (events of other runs may be included)"
    damaged = f"{small}/run.json is damaged: remove it, and the run's id is taken from its checkpoints"
    assert (found.exit_code, found.stderr) == (0, f"warning: {damaged}{more}\n")
    assert (found.stdout == sound.stdout) == bool(named)
    if command == "events":
        assert found.stdout.startswith(sound.stdout)


def test_a_checkpoint_tells_whose_events_to_read_where_the_id_is_lost(small: Path) -> None:
    """`status` does the same."""
    expected = call("events", small).stdout
    commit(CheckpointStore(small), 1, Position(1))
    (small / "run.json").unlink()
    other = Story()
    other.tell(20, "c-00000003", "joined", run="job-43")
    (small / event_log_name(other.events[0])).write_bytes(other.events[0].line())
    found = call("events", small)
    assert (found.exit_code, found.stdout, found.stderr) == (0, expected, "")


def test_a_place_that_can_not_be_read_is_a_problem(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreadable place differs from a damaged run."""

    def refuse(self: LocalStorage, *_: str) -> Any:
        raise StoreError(f"can't read {self.location}: Stale file handle", path=self.location)

    monkeypatch.setattr(LocalStorage, "read", refuse)
    monkeypatch.setattr(LocalStorage, "names", refuse)
    assert_refused(call("events", small), 1, "Stale file handle")


@pytest.mark.parametrize("found", [True, False])
def test_the_place_is_let_go_of(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: bool) -> None:
    """The storage may be a connection to a server."""
    let_go: list[str] = []
    monkeypatch.setattr(LocalStorage, "close", lambda storage: let_go.append(storage.location))
    CheckpointStore(tmp_path / "empty").open_run()
    place = run if found else tmp_path / "empty"
    assert call("events", place).exit_code == (0 if found else 1)
    assert let_go == [str(place)]


def test_the_run_on_a_server_is_the_one_that_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option overrides the environment of the job."""
    asked: list[str | None] = []

    def open_store(place: str, *, run_id: str | None, allow_damaged: bool) -> CheckpointStore:
        asked.append(run_id)
        return CheckpointStore(run)

    monkeypatch.setattr("distributed_backup.cli.locate.open_store", open_store)
    monkeypatch.setenv("DISTRIBUTED_BACKUP_RUN_ID", "of-the-job")
    assert call("events", "redis://host/0", "--run", "named").exit_code == 0
    assert call("events", "redis://host/0").exit_code == 0
    assert asked == ["named", "of-the-job"]


# -------------------------------------------------------------------- timeline


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        *(("run.svg", "<svg "), ("run.html", "<!DOCTYPE html>")),
        *(("run.SVG", "<svg "), ("run.Html", "<!DOCTYPE html>")),
    ],
)
def test_the_drawing_takes_the_place_of_an_older_one(run: Path, tmp_path: Path, name: str, begins: str) -> None:
    (tmp_path / name).write_text("old")
    result = call("timeline", run, "-o", tmp_path / name)
    assert (result.exit_code, result.stderr) == (0, "")
    assert (tmp_path / name).read_text().startswith(begins)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", name]


def test_what_it_cost_is_printed(run: Path, tmp_path: Path) -> None:
    lines = call("timeline", run, "--output", tmp_path / "run.svg").stdout.splitlines()
    assert lines[0] == "Run job-42"
    assert lines[2] == "3 preempted, 1 stopped reporting"
    assert lines[3].startswith("In all: at most 1 min 2 s without a leader, 43 s without training")
    assert lines[4].split("  ")[0] == "#"
    assert re.split(r" {2,}", lines[6].strip()) == [
        *("2", "3 min 2 s", "11-23 10:03:02", "train-1-aaaa0001", "stopped reporting, led term 2"),
        *("at most 18 s", "0 s", "0"),
    ]
    assert lines[-1] == f"Drawn: {tmp_path / 'run.svg'}"


def test_what_it_cost_as_json(run: Path, tmp_path: Path) -> None:
    found: dict[str, Any] = json.loads(call("timeline", run, "-o", tmp_path / "run.svg", "--json").stdout)
    assert (found["run_id"], found["start"], found["end"], found["going_on"]) == (
        *("job-42", "2026-11-23T10:00:00.000Z", "2026-11-23T10:06:44.000Z"),
        False,
    )
    assert found["workers"][1] == {
        "name": "train-1",
        "lives": [
            {
                "worker_id": "train-1-aaaa0001",
                "start": "2026-11-23T10:00:00.700Z",
                "end": "2026-11-23T10:03:02.000Z",
                "ending": "gone",
            },
            {
                "worker_id": "train-1-cccc0001",
                "start": "2026-11-23T10:04:51.000Z",
                "end": "2026-11-23T10:06:43.000Z",
                "ending": "finished",
            },
        ],
    }
    assert found["leaders"][1] == {
        "worker_id": "train-1-aaaa0001",
        "term": 2,
        "start": "2026-11-23T10:01:47.000Z",
        "end": "2026-11-23T10:03:02.000Z",
        "how": "gone",
        "reason": None,
    }
    assert found["costs"][1] == {
        "number": 2,
        "what": "gone",
        "at": "2026-11-23T10:03:02.000Z",
        "worker_id": "train-1-aaaa0001",
        "term": 2,
        "saved": None,
        "reason": None,
        "without_leader": 18.0,
        "without_leader_is_upper_bound": True,
        "without_training": 0.0,
        "without_training_is_upper_bound": False,
        "reached": {"epoch": 3, "batch": 4},
        "resumed": {"epoch": 4, "batch": 4},
        "resumed_at": "2026-11-23T10:04:55.000Z",
        "batches": 0,
        "more": False,
    }
    assert (found["without_leader"], found["without_training"], found["batches"]) == (62.0, 43.0, 0)


def test_another_ending_is_wrong_usage(run: Path, tmp_path: Path) -> None:
    assert_refused(call("timeline", run, "-o", tmp_path / "run.png"), 2, "run.png must end in .svg or .html")
    for nothing in ("", "."):
        said = "error: -o must name a file that ends in .svg or .html\n"
        assert_refused(call("timeline", run, "-o", nothing), 2, said)


def test_a_place_that_can_not_be_written_is_a_problem(run: Path, tmp_path: Path) -> None:
    assert_refused(call("timeline", run, "-o", tmp_path / "no" / "run.svg"), 1, "can't write", "run.svg")


def test_the_output_must_be_named(run: Path) -> None:
    result = call("timeline", run)
    assert result.exit_code == 2
    assert "--output" in result.stderr


# -------------------------------------------------------------------- both


@pytest.mark.parametrize("words", [("events",), ("timeline", "-o", "run.svg")])
def test_a_url_is_not_quoted_with_its_password(words: tuple[str, ...]) -> None:
    result = call(*words, "redis://:secret@host/0", "redis://:secret@host/1")
    assert result.exit_code == 2
    assert "host/1" in result.stderr
    assert "secret" not in result.output


def test_drawing_a_run_imports_neither_synalinks_nor_redis(run: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from distributed_backup.cli.app import app\n"
        f"try: app(['timeline', {str(run)!r}, '-o', {str(tmp_path / 'run.html')!r}])\n"
        "finally: print(sorted({'synalinks', 'redis', 'litellm', 'numpy', 'fsspec'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "[]"
