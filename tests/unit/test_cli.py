"""Test the commands that read a run: output, exit codes, and that they leave no trace."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.clock import SystemClock
from distributed_backup.coordination.base import Heartbeat, Notice, Role
from distributed_backup.coordination.file import FileCoordinator
from distributed_backup.position import Position
from tests.support.cli_runs import LOOKING, NEWEST, OLDER, assert_refused, body, call, call_json, commit, damage
from tests.support.clocks import FakeClock

# -------------------------------------------------------------------- wrong paths


@pytest.mark.parametrize("command", LOOKING)
@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_missing_directory_is_wrong_usage(tmp_path: Path, command: tuple[str, ...], flags: tuple[str, ...]) -> None:
    assert_refused(call(*command, tmp_path / "nowhere", *flags), 2, "nowhere does not exist")


@pytest.mark.parametrize("command", LOOKING)
def test_a_file_is_no_directory(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "file").touch()
    assert_refused(call(*command, tmp_path / "file"), 2, "file is not a directory")


@pytest.mark.parametrize("command", LOOKING)
def test_a_directory_without_a_run_is_wrong_usage_and_stays_empty(tmp_path: Path, command: tuple[str, ...]) -> None:
    assert_refused(call(*command, tmp_path), 2, "not the backup directory of a run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [*LOOKING, ("events",)])
def test_a_directory_may_be_named_by_its_url(tmp_path: Path, command: tuple[str, ...]) -> None:
    """A path and a file:// URL have the same result, also for a file, a missing or an empty directory."""
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "led by" / "coordinator").mkdir(parents=True)
    for name in ("file", "nowhere", "empty", "led by"):
        by_path, by_url = call(*command, tmp_path / name), call(*command, (tmp_path / name).as_uri())
        assert (by_url.exit_code, by_url.output) == (by_path.exit_code, by_path.output)
        assert name == "led by" or by_url.exit_code == 2
    assert "not the backup directory of a run" not in call(*command, (tmp_path / "led by").as_uri()).output


@pytest.mark.parametrize("command", LOOKING)
def test_a_missing_argument_is_wrong_usage(command: tuple[str, ...]) -> None:
    result = call(*command)
    assert result.exit_code == 2
    assert "DIR" in result.stderr


@pytest.mark.parametrize("command", LOOKING)
def test_a_damaged_run_file_is_a_problem_told_in_one_line(run: Path, command: tuple[str, ...]) -> None:
    (run / "run.json").write_text("{")
    assert_refused(call(*command, run), 1, "run.json is damaged")


@pytest.mark.parametrize("command", LOOKING)
def test_looking_leaves_no_trace(run: Path, command: tuple[str, ...]) -> None:
    """Names and modification times stay, and the coordinator's directory is not created."""

    def trace() -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in [run, *run.rglob("*")])

    before = trace()
    assert call(*command, run).exit_code == 0
    assert trace() == before


# -------------------------------------------------------------------- checkpoints list


def test_list_gives_all_checkpoints_newest_first(run: Path) -> None:
    rows = call_json("checkpoints", "list", run)
    assert [list(row) for row in rows] == [
        ["name", "term", "epoch", "batch", "worker_id", "bytes", "created_at", "valid", "answers_since"]
    ] * 2
    assert [row["name"] for row in rows] == [NEWEST, OLDER]
    newest = rows[0]
    header = CheckpointStore(run).load(NEWEST).header
    assert newest == {
        "name": NEWEST,
        "term": 2,
        "epoch": 1,
        "batch": 3,
        "worker_id": "w-1",
        "bytes": (run / NEWEST).stat().st_size,
        "created_at": header.created_at,
        "valid": True,
        "answers_since": 0,
    }


def test_list_says_what_is_damaged_and_exits_with_1(run: Path) -> None:
    damage(run / NEWEST)
    rows = call_json("checkpoints", "list", run, code=1)
    assert [row["valid"] for row in rows] == [False, True]
    assert (rows[0]["worker_id"], rows[0]["created_at"]) == (None, None)
    assert rows[0]["epoch"] == 1
    result = call("checkpoints", "list", run)
    assert result.exit_code == 1
    assert "BAD: the digest does not match" in result.stdout


def test_list_for_people_names_every_checkpoint_in_full(run: Path) -> None:
    result = call("checkpoints", "list", run)
    assert result.exit_code == 0
    assert NEWEST in result.stdout
    assert OLDER in result.stdout
    assert "\x1b" not in result.stdout


def test_a_run_without_checkpoints_has_an_empty_list(tmp_path: Path) -> None:
    CheckpointStore(tmp_path).open_run()
    assert call_json("checkpoints", "list", tmp_path) == []
    assert "no checkpoint yet" in call("checkpoints", "list", tmp_path).stdout


def test_a_checkpoint_of_another_run_does_not_count_as_valid(run: Path, tmp_path: Path) -> None:
    other = CheckpointStore(tmp_path / "other", run_id="other-run")
    name = commit(other, 7, Position(5))
    (run / name).write_bytes((tmp_path / "other" / name).read_bytes())
    assert [row["valid"] for row in call_json("checkpoints", "list", run, code=1)] == [False, True, True]
    assert "other-run" in call("checkpoints", "verify", run).stdout


def test_a_checkpoint_that_vanishes_while_we_look_is_passed_over(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader prunes between the listing and the read."""
    gone = "0000000002-00000001-00000002.ckpt"
    seen = []

    def names(self: CheckpointStore) -> list[str]:
        seen.append(gone)
        return [NEWEST, gone, OLDER]

    monkeypatch.setattr(CheckpointStore, "names", names)
    assert [row["name"] for row in call_json("checkpoints", "list", run)] == [NEWEST, OLDER]
    assert call_json("checkpoints", "verify", run)["bad"] == []
    assert call_json("status", run)["checkpoint"]["name"] == NEWEST
    assert seen


# -------------------------------------------------------------------- checkpoints verify


def test_verify_finds_nothing_wrong_with_a_sound_run(run: Path) -> None:
    assert call_json("checkpoints", "verify", run) == {"checked": 2, "bad": []}
    assert call("checkpoints", "verify", run).stdout == "2 checked, 0 bad\n"


def test_verify_names_each_bad_one_with_the_reason(run: Path) -> None:
    damage(run / NEWEST)
    (run / OLDER).write_bytes(b"")
    found = call_json("checkpoints", "verify", run, code=1)
    assert found == {
        "checked": 2,
        "bad": [{"name": NEWEST, "reason": "the digest does not match"}, {"name": OLDER, "reason": "it is empty"}],
    }
    result = call("checkpoints", "verify", run)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"bad  {NEWEST}: the digest does not match",
        f"bad  {OLDER}: it is empty",
        "2 checked, 2 bad",
    ]


# -------------------------------------------------------------------- checkpoints show


def test_show_gives_the_header_and_the_sizes_of_the_newest(run: Path) -> None:
    found = call_json("checkpoints", "show", run)
    assert list(found) == ["name", "bytes", "header", "variables", "other"]
    assert found["name"] == NEWEST
    assert found["bytes"] == (run / NEWEST).stat().st_size
    assert found["header"]["run_id"] == "job-42"
    assert found["header"]["term"] == 2
    assert found["variables"] == {
        "trainable": {"generator/state": len('{"examples":["é"]}'.encode())},
        "metrics": {"mean/total": len('{"total":1.5}'), "mean/total#2": len('{"total":22.5}')},
    }
    assert found["other"]["python_random"] == len("[3,[1,2],null]")


def test_show_gives_the_one_that_was_named(run: Path) -> None:
    assert call_json("checkpoints", "show", run, OLDER)["header"]["term"] == 1


def test_show_for_people_is_a_tree(run: Path) -> None:
    result = call("checkpoints", "show", run)
    assert result.exit_code == 0
    for word in (NEWEST, "run_id: job-42", "trainable", "generator/state  19 bytes", "numpy_random"):
        assert word in result.stdout


def test_show_without_a_name_passes_over_a_damaged_one(run: Path) -> None:
    damage(run / NEWEST)
    assert call_json("checkpoints", "show", run)["name"] == OLDER


def test_show_of_a_damaged_one_is_a_problem(run: Path) -> None:
    damage(run / NEWEST)
    assert_refused(call("checkpoints", "show", run, NEWEST), 1, NEWEST, "digest")
    damage(run / OLDER)
    assert_refused(call("checkpoints", "show", run), 1, "none of the 2")


@pytest.mark.parametrize("name", ["../run.json", "/etc/passwd", "run.json", "", f"../run/{NEWEST}", f"{NEWEST}\n"])
def test_show_refuses_what_is_no_name_of_a_checkpoint(run: Path, name: str) -> None:
    assert_refused(call("checkpoints", "show", run, name), 2, "is not the name of a checkpoint")


def test_show_refuses_a_name_that_is_not_there(run: Path) -> None:
    assert_refused(call("checkpoints", "show", run, NEWEST.replace("3", "4")), 2, "has no checkpoint")


def test_show_where_there_is_no_checkpoint_is_a_problem(tmp_path: Path) -> None:
    CheckpointStore(tmp_path).open_run()
    assert_refused(call("checkpoints", "show", tmp_path), 1, "no checkpoint")


@pytest.mark.parametrize("content", [b"{}", b"[]", b"not JSON", body(variables=[]), body(schema={})])
def test_show_of_something_else_that_verifies_is_a_problem(tmp_path: Path, content: bytes) -> None:
    commit(CheckpointStore(tmp_path), 1, Position(1), content)
    assert_refused(call("checkpoints", "show", tmp_path), 1, "its body is not a training state")


def test_show_reads_states_that_json_lacks_words_for(tmp_path: Path) -> None:
    """NaN and integers beyond 64 bits are written as tagged strings."""
    tagged = {
        "$variables": {"$trainable": [{"$x": {"int": str(2**70)}}]},
        "$schema": {"$trainable": [{"$path": "p", "$schema": "0"}]},
    }
    commit(CheckpointStore(tmp_path), 1, Position(1), json.dumps({"tagged": tagged}).encode())
    assert call_json("checkpoints", "show", tmp_path)["variables"] == {"trainable": {"p": len(f'{{"x":{2**70}}}')}}


def test_show_reads_half_a_surrogate_pair(tmp_path: Path) -> None:
    """A model may cut an emoji in two. The state keeps the half, which UTF-8 does not have."""
    half = json.dumps({"variables": {"trainable": [{"x": "HALF"}]}, "schema": {"trainable": [{"path": "p"}]}})
    exact = f'{{"exact":{half}}}'.replace("HALF", "\ud83d").encode("utf-8", "surrogatepass")
    commit(CheckpointStore(tmp_path), 1, Position(1), exact)
    assert call_json("checkpoints", "show", tmp_path)["variables"] == {"trainable": {"p": len('{"x":"…"}'.encode())}}


# -------------------------------------------------------------------- status


@pytest.fixture
def coordinator(run: Path) -> Iterator[FileCoordinator]:
    """Return the run's coordinator, with two workers as members."""
    coordinator = FileCoordinator(run / "coordinator")
    coordinator.heartbeat(
        Heartbeat(worker_id="w-1", campaign=True, floor=2, duration=15.0, role="leader", position=Position(1, 4))
    )
    coordinator.heartbeat(Heartbeat(worker_id="w-2", campaign=True, floor=2, duration=15.0))
    yield coordinator
    coordinator.resign("w-1")


def test_status_tells_who_leads_and_who_takes_part(run: Path, coordinator: FileCoordinator) -> None:
    found = call_json("status", run)
    ages = [member.pop("last_seen") for member in found["members"]]
    assert all(0 <= age < 15 for age in ages)
    assert found == {
        "run_id": "job-42",
        "leader": "w-1",
        "term": 3,
        "lease_remaining": None,
        "members": [
            {
                "worker_id": "w-1",
                "role": "leader",
                "epoch": 1,
                "batch": 4,
                "epochs_behind": 0,
                "batches_behind": 0,
            },
            {
                "worker_id": "w-2",
                "role": "follower",
                "epoch": None,
                "batch": None,
                "epochs_behind": None,
                "batches_behind": None,
            },
        ],
        "checkpoint": call_json("checkpoints", "list", run)[0],
        "notices": [],
    }
    result = call("status", run)
    assert result.exit_code == 0
    for word in ("job-42", "w-1, term 3, until its process exits", NEWEST, "w-2", "s ago"):
        assert word in result.stdout


@pytest.mark.parametrize(
    ("position", "behind", "text"),
    [
        (Position(1, 4), (0, 0), "0 batch(es)"),
        (Position(1, 1), (0, 3), "3 batch(es)"),
        (Position(0, 9), (1, None), "1 epoch(s)"),
        (Position(2, 0), (0, 0), "0 batch(es)"),
    ],
)
def test_status_tells_how_far_a_follower_is_behind(
    run: Path, coordinator: FileCoordinator, position: Position, behind: tuple[int, int | None], text: str
) -> None:
    """Batches of other epochs can't be counted. The last case is a follower that is ahead of a new leader."""
    coordinator.heartbeat(Heartbeat(worker_id="w-2", campaign=False, floor=2, duration=15.0, position=position))
    row = call_json("status", run)["members"][1]
    assert (row["epochs_behind"], row["batches_behind"]) == behind
    [line] = [line for line in call("status", run).stdout.splitlines() if line.startswith("w-2")]
    assert re.search(rf" {re.escape(text)} +\d", line)


def test_status_marks_workers_that_are_presumed_dead(run: Path) -> None:
    """A killed leader has a record until its membership expires. Its lock is free, and its heartbeats have stopped."""
    workers: list[tuple[str, Role, float]] = [("w-1", "leader", 7.0), ("w-2", "follower", 0.0)]
    for worker_id, role, age in workers:
        coordinator = FileCoordinator(run / "coordinator", FakeClock(SystemClock().now() - age))
        coordinator.heartbeat(Heartbeat(worker_id=worker_id, campaign=False, floor=2, duration=60.0, role=role))
    assert [member["role"] for member in call_json("status", run)["members"]] == ["leader", "follower"]
    killed, alive = [line for line in call("status", run).stdout.splitlines() if line.startswith("w-")]
    assert re.fullmatch(r"w-1 +former leader +- +- +- +\d+\.\d s ago, presumed dead *", killed)
    assert re.fullmatch(r"w-2 +follower +- +- +- +\d\.\d s ago *", alive)


def test_status_takes_neither_the_lease_nor_a_part(run: Path, coordinator: FileCoordinator) -> None:
    coordinator.resign("w-1")
    before = coordinator.members()
    assert call_json("status", run)["leader"] is None
    assert "none, term 3" in call("status", run).stdout
    assert [member.worker_id for member in coordinator.members()] == [member.worker_id for member in before]
    again = coordinator.heartbeat(Heartbeat(worker_id="w-2", campaign=True, floor=2, duration=15.0))
    assert (again.holder, again.term) == ("w-2", 4)
    coordinator.resign("w-2")


def test_status_tells_of_preemptions_that_are_coming(run: Path, coordinator: FileCoordinator) -> None:
    coordinator.notify(Notice(notice_id="n-1", worker_id="w-2", reason="SIGTERM", remaining=30.0))
    (notice,) = call_json("status", run)["notices"]
    assert 0 < notice.pop("remaining") <= 30
    assert notice == {"worker_id": "w-2", "reason": "SIGTERM", "wish": "save"}
    assert "w-2 is preempted (SIGTERM), " in call("status", run).stdout


def test_status_tells_requests_from_preemptions(run: Path, coordinator: FileCoordinator) -> None:
    coordinator.notify(Notice(notice_id="n-1", worker_id="operator-1", reason="operator", remaining=30.0))
    coordinator.notify(Notice(notice_id="n-2", worker_id="w-1", reason="operator", remaining=30.0, action="resign"))
    assert [notice["wish"] for notice in call_json("status", run)["notices"]] == ["save", "resign"]
    shown = call("status", run).stdout
    assert "operator-1 asks for a save, request expires in " in shown
    assert "w-1 is asked to hand over, request expires in " in shown


def test_status_of_a_run_that_nobody_works_on(run: Path) -> None:
    found = call_json("status", run)
    assert (found["leader"], found["term"], found["members"]) == (None, 0, [])
    assert "Workers     none" in call("status", run).stdout


def test_status_before_the_first_checkpoint(tmp_path: Path) -> None:
    run_id = CheckpointStore(tmp_path).open_run()
    found = call_json("status", tmp_path)
    assert (found["run_id"], found["checkpoint"]) == (run_id, None)


def test_status_takes_the_run_id_from_the_checkpoints_where_its_file_is_lost(run: Path) -> None:
    (run / "run.json").unlink()
    assert call_json("status", run)["run_id"] == "job-42"


def test_status_gives_the_newest_checkpoint_that_is_usable(run: Path) -> None:
    damage(run / NEWEST)
    assert call_json("status", run)["checkpoint"]["name"] == OLDER
    assert "1 damaged" in call("status", run).stdout


def test_status_of_a_run_without_a_usable_checkpoint_is_a_problem(run: Path) -> None:
    damage(run / NEWEST)
    damage(run / OLDER)
    assert call_json("status", run, code=1)["checkpoint"] is None
    result = call("status", run)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: none of the 2 checkpoint(s)")


def test_status_of_a_run_whose_coordinator_is_damaged_is_a_problem(run: Path, coordinator: FileCoordinator) -> None:
    newest = max((run / "coordinator" / "terms").iterdir())
    newest.write_text('{"resigned": "yesterday"}')
    assert_refused(call("status", run), 1, f"can't coordinate in {run}/coordinator: the record of the newest term")


def test_status_shows_a_member_whose_record_is_damaged(run: Path, coordinator: FileCoordinator) -> None:
    """The worker may be alive, so it is shown, without a position."""
    (run / "coordinator" / "members" / "w-2.json").write_text('{"seen": "yesterday"}')
    result = call("status", run)
    assert result.exit_code == 0
    assert re.search(r"w-2 +follower +- +- ", result.stdout)


# -------------------------------------------------------------------- which run is meant

ASKING = ("status", "preempt", "resign")
SECRET = "open-sesame"


@pytest.mark.parametrize("command", ASKING)
def test_what_is_no_run_is_wrong_usage(tmp_path: Path, command: str) -> None:
    assert_refused(call(command, tmp_path / "nowhere"), 2, "nowhere does not exist")
    assert_refused(call(command, tmp_path), 2, "not the backup directory of a run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ASKING)
@pytest.mark.parametrize(
    "url", [f"http://me:{SECRET}@host/0", f"file://me:{SECRET}@host", f"redis://me:{SECRET}@host:port/0"]
)
def test_a_wrong_url_is_wrong_usage_and_shown_without_its_password(run: Path, command: str, url: str) -> None:
    for result in (call(command, url), call(command, run, "--coordinator", url)):
        assert_refused(result, 2, "://host")
        assert SECRET not in result.output


@pytest.mark.parametrize("command", ASKING)
def test_a_coordinator_within_another_process_can_not_be_asked(
    run: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker with a bucket has it in its environment."""
    monkeypatch.setenv("DISTRIBUTED_BACKUP_COORDINATOR", "memory:")
    assert_refused(call(command, run), 2, "inside one process", "`events` needs none")


@pytest.mark.parametrize("command", ASKING)
def test_a_url_and_a_coordinator_are_one_too_many(command: str) -> None:
    assert_refused(call(command, "redis://host/0", "--coordinator", "redis://other/0"), 2, "omit --coordinator")


def test_the_run_that_is_named_must_be_the_one_in_the_directory(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option `--run` overrides the environment."""
    assert_refused(call("status", run, "--run", "job-43"), 2, "'job-42'", "'job-43'")
    assert call_json("status", run, "--run", "job-42")["run_id"] == "job-42"
    monkeypatch.setenv("DISTRIBUTED_BACKUP_RUN_ID", "job-43")
    assert_refused(call("status", run), 2, "'job-43'")
    assert call_json("status", run, "--run", "job-42")["run_id"] == "job-42"


def test_a_run_id_must_be_known_to_ask_a_server(tmp_path: Path) -> None:
    (tmp_path / "coordinator").mkdir()
    url = "redis://127.0.0.1:1/0"
    assert_refused(call("status", tmp_path, "--coordinator", url), 2, "has no run id", "--run")
    # With the id, the command connects to the server, which does not exist.
    assert_refused(call("status", tmp_path, "--coordinator", url, "--run", "job-42"), 1, "can't reach")


def test_the_environment_names_the_coordinator_unless_an_option_does(
    run: Path, coordinator: FileCoordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTRIBUTED_BACKUP_COORDINATOR", f"file://{tmp_path}/elsewhere")
    assert call_json("status", run)["leader"] is None
    assert "elsewhere" in call("status", run).stdout
    assert call_json("status", run, "--coordinator", "file:")["leader"] == "w-1"
    monkeypatch.setenv("DISTRIBUTED_BACKUP_COORDINATOR", " ")
    assert call_json("status", run)["leader"] == "w-1"


# -------------------------------------------------------------------- requests


def test_requests_that_nobody_serves_leave_nothing_behind(run: Path, coordinator: FileCoordinator) -> None:
    """Both workers are records only, so no worker acts on the request."""
    for command, words in (
        ("preempt", "no save was reported within"),
        ("resign", "no other worker took over from w-1"),
    ):
        assert_refused(call(command, run, "--timeout", 0.05), 1, words, "w-1 leads under term 3, last heartbeat ")
        assert coordinator.view().notices == ()
    assert [member.worker_id for member in coordinator.members()] == ["w-1", "w-2"]


@pytest.mark.parametrize("command", ["preempt", "resign"])
@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf", "soon"])
def test_a_time_limit_must_be_a_number_of_seconds(run: Path, command: str, timeout: str) -> None:
    result = call(command, run, "--timeout", timeout)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--timeout" in result.stderr


@pytest.mark.parametrize("command", ["preempt", "resign"])
def test_requests_where_nobody_works_make_nothing(run: Path, command: str) -> None:
    before = sorted(run.rglob("*"))
    assert_refused(call(command, run), 1, "the run has no ")
    assert sorted(run.rglob("*")) == before
