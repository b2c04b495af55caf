"""Test `checkpoints prune`, `export` and `copy`, and all `checkpoints` commands on URLs."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.cli.copy_run import copy_run
from distributed_backup.coordination.base import Heartbeat
from distributed_backup.coordination.redis import RedisCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import StoreError
from distributed_backup.position import Position
from distributed_backup.storage import storage_from_url
from distributed_backup.storage.local import LocalStorage
from tests.support.cli_runs import NEWEST, OLDER, assert_refused, call, call_json, commit, damage, exportable
from tests.support.servers import RedisServer

TAKING = (("prune", "DIR"), ("export", "DIR"), ("copy", "DIR", "TARGET"))
PASSWORD = "open-sesame-7319"
ALL = "0000000003-00000002-00000000.ckpt", NEWEST, OLDER
PARTIAL = ".partial-{}-00000001-00000000.ckpt-0123abcd"


@pytest.fixture
def longer(run: Path) -> Path:
    """Make a run with three checkpoints."""
    commit(CheckpointStore(run, run_id="job-42", keep=9), 3, Position(2))
    return run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep files with relative paths out of the sources."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


# -------------------------------------------------------------------- wrong words


@pytest.mark.parametrize("words", TAKING)
def test_what_is_no_run_is_wrong_usage(tmp_path: Path, words: tuple[str, ...]) -> None:
    """No file is created."""
    command, *more = words[0], *[tmp_path / "to"] * (len(words) - 2)
    assert_refused(call("checkpoints", command, tmp_path / "nowhere", *more), 2, "nowhere does not exist")
    (tmp_path / "empty").mkdir()
    assert_refused(call("checkpoints", command, tmp_path / "empty", *more), 2, "not the backup directory of a run")
    assert names(tmp_path) == ["empty", "here"]
    assert names(tmp_path / "empty") == []


@pytest.mark.parametrize("command", ["list", "verify", "show", "prune", "export"])
def test_the_run_that_is_named_must_be_the_one_there(run: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's environment that names another run must not lead to a prune here."""
    before = names(run)
    result = call("checkpoints", command, run, "--run", "job-43")
    assert_refused(result, 2, f"{run} belongs to run 'job-42', and --run or DISTRIBUTED_BACKUP_RUN_ID names 'job-43'")
    monkeypatch.setenv("DISTRIBUTED_BACKUP_RUN_ID", "job-43")
    assert_refused(call("checkpoints", command, run), 2, "names 'job-43'")
    assert names(run) == before
    assert "belongs to run" not in call("checkpoints", command, run, "--run", "job-42").output


# -------------------------------------------------------------------- prune


def test_prune_leaves_the_newest(longer: Path) -> None:
    """Without --keep one checkpoint stays. So do the run's id and its terms."""
    assert call_json("checkpoints", "prune", longer) == {"kept": [ALL[0]], "removed": [ALL[2], ALL[1]]}
    assert names(longer) == [ALL[0], "run.json"]
    assert call("checkpoints", "prune", longer).stdout == "0 removed, 1 kept\n"


def test_prune_leaves_as_many_as_it_is_told(longer: Path) -> None:
    assert call_json("checkpoints", "prune", longer, "--keep", 3) == {"kept": [*ALL], "removed": []}
    assert call_json("checkpoints", "prune", longer, "--keep", 2) == {"kept": [*ALL[:2]], "removed": [ALL[2]]}
    assert call("checkpoints", "prune", longer, "--keep", 1).stdout == "1 removed, 1 kept\n"


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5"])
def test_prune_leaves_at_least_one(longer: Path, number: str) -> None:
    result = call("checkpoints", "prune", longer, "--keep", number)
    assert (result.exit_code, names(longer)) == (2, sorted([*ALL, "run.json"]))


def test_prune_counts_only_what_is_usable(longer: Path) -> None:
    """A damaged checkpoint stays if it is newer than the kept ones. If all are damaged, all stay."""
    damage(longer / ALL[0])
    damage(longer / ALL[2])
    assert call_json("checkpoints", "prune", longer) == {"kept": [*ALL[:2]], "removed": [ALL[2]]}
    damage(longer / ALL[1])
    assert call_json("checkpoints", "prune", longer) == {"kept": [*ALL[:2]], "removed": []}


def test_prune_does_not_disturb_the_writer(longer: Path) -> None:
    """Partial files of earlier terms are removed. The newest term's writer may still be running."""
    assert CheckpointStore(longer).claim_term(5)
    partials = [PARTIAL.format(f"{term:010d}") for term in (2, 4, 5, 6)]
    for name in partials:
        (longer / name).touch()
    removed = call_json("checkpoints", "prune", longer)["removed"]
    assert sorted(removed) == sorted([*partials[:2], *ALL[1:]])
    assert names(longer) == sorted([*partials[2:], ALL[0], "0000000005.term", "run.json"])


def test_prune_leaves_the_checkpoints_of_others(longer: Path, tmp_path: Path) -> None:
    """A checkpoint that was copied in by mistake still belongs to a user."""
    name = commit(CheckpointStore(tmp_path / "other", run_id="other-run"), 1, Position(0))
    (longer / name).write_bytes((tmp_path / "other" / name).read_bytes())
    assert call_json("checkpoints", "prune", longer) == {"kept": [ALL[0], name], "removed": [ALL[2], ALL[1]]}


def test_prune_says_what_can_not_be_removed(longer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remaining files are removed."""
    unlink = LocalStorage._unlink

    def refuse(self: LocalStorage, path: Path) -> None:
        if path.name == OLDER:
            raise PermissionError(13, "Permission denied", str(path))
        unlink(self, path)

    monkeypatch.setattr(LocalStorage, "_unlink", refuse)
    assert_refused(call("checkpoints", "prune", longer), 1, f"can't remove {longer}/{OLDER}: Permission denied")
    assert names(longer) == sorted([ALL[0], OLDER, "run.json"])


# -------------------------------------------------------------------- export


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Make a run with two exportable checkpoints."""
    store = CheckpointStore(tmp_path / "trained", run_id="job-42", keep=9)
    commit(store, 1, Position(1), exportable("e"))
    commit(store, 2, Position(1, 3), exportable())
    return tmp_path / "trained"


def examples(path: Path) -> list[str]:
    found: list[str] = json.loads(path.read_bytes())["trainable_variables"]["generator"]["state"]["examples"]
    return found


def test_export_writes_the_newest_where_one_is(trained: Path, tmp_path: Path) -> None:
    """The default name is latest.variables.json. The output names the file and the checkpoint."""
    result = call("checkpoints", "export", trained)
    assert result.stdout == f"wrote latest.variables.json: epoch 1, batch 3, from {NEWEST}\n"
    assert examples(tmp_path / "here" / "latest.variables.json") == ["é"]


def test_export_writes_the_one_that_is_named_where_it_is_told(trained: Path, tmp_path: Path) -> None:
    """An existing file is replaced. A foreign .ckpt file does not make its directory a run."""
    path = tmp_path / "exports" / "x.variables.json"
    path.parent.mkdir()
    path.write_text("before")
    (path.parent / "resnet.ckpt").touch()
    found = call_json("checkpoints", "export", trained, OLDER, "-o", path)
    assert found == {"name": OLDER, "epoch": 1, "batch": 0, "output": str(path), "bytes": path.stat().st_size}
    assert examples(path) == ["e"]


def test_export_passes_over_a_damaged_one_unless_it_is_named(trained: Path, tmp_path: Path) -> None:
    damage(trained / NEWEST)
    assert_refused(call("checkpoints", "export", trained, NEWEST), 1, NEWEST, "digest")
    assert names(tmp_path / "here") == []
    assert call_json("checkpoints", "export", trained)["name"] == OLDER


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("-o", "x.json"), 2, "x.json must end in .variables.json"),
        (("-o", "nowhere/x.variables.json"), 1, "can't write nowhere/x.variables.json: No such file or directory"),
        (("run.json",), 2, "'run.json' is not the name of a checkpoint"),
        ((ALL[0],), 2, f"has no checkpoint {ALL[0]}"),
    ],
)
def test_export_says_what_is_wrong(trained: Path, words: tuple[str, ...], code: int, said: str) -> None:
    assert_refused(call("checkpoints", "export", trained, *words), code, said)


@pytest.mark.parametrize("words", [(), ("-o", "x.variables.json")])
@pytest.mark.parametrize("left", ["all", "run.json", NEWEST])
def test_export_does_not_write_into_a_run(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], left: str
) -> None:
    """Synalinks' own callback keeps its backup there, which would be deleted or restored."""
    there = tmp_path / "there"
    there.mkdir()
    for name in (NEWEST, "run.json"):
        if left in {"all", name}:
            (there / name).write_bytes((trained / name).read_bytes())
    for place in (trained, there):
        before = names(place)
        monkeypatch.chdir(place)
        assert_refused(call("checkpoints", "export", trained, *words), 2, "of a run", "choose another place with -o")
        assert names(place) == before


def test_export_of_what_is_no_training_state_is_a_problem(run: Path, tmp_path: Path) -> None:
    """No file is created."""
    assert_refused(call("checkpoints", "export", run), 1, f"{NEWEST} verifies, but its body is not a training state")
    assert names(tmp_path / "here") == []


# -------------------------------------------------------------------- copy


def test_copy_takes_a_run_to_another_place(run: Path, tmp_path: Path) -> None:
    """A repeated copy finds all checkpoints present. Without --json it prints one line."""
    target = tmp_path / "to"
    document = {"run_id": "job-42", "source": str(run), "target": str(target)}
    done = {**document, "copied": [NEWEST, OLDER], "present": [], "segments": [], "skipped": []}
    assert call_json("checkpoints", "copy", run, target) == done
    assert call_json("checkpoints", "copy", run, target) == {**done, "copied": [], "present": [NEWEST, OLDER]}
    assert call("checkpoints", "copy", run, target).stdout == f"0 copied, 2 already present: {target}\n"
    assert call_json("checkpoints", "verify", target) == {"checked": 2, "bad": []}


def test_copy_names_what_it_left_behind(run: Path, tmp_path: Path) -> None:
    damage(run / NEWEST)
    result = call("checkpoints", "copy", run, tmp_path / "to")
    assert (result.exit_code, result.stdout) == (0, f"1 copied, 0 already present: {tmp_path}/to\n")
    assert result.stderr == f"not copied, it does not verify: {NEWEST}\n"
    assert call_json("checkpoints", "copy", run, tmp_path / "to")["skipped"] == [NEWEST]


def test_copy_says_which_log_it_could_not_read(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoints were copied, so the command succeeds."""
    log = "events-20260101T000000Z-w-12345678.jsonl"
    (run / log).touch()
    read = LocalStorage.read

    def refuse(self: LocalStorage, name: str) -> bytes:
        if name == log:
            raise StoreError(f"can't read {name}: Input/output error", path=name)
        return read(self, name)

    monkeypatch.setattr(LocalStorage, "read", refuse)
    result = call("checkpoints", "copy", run, tmp_path / "to")
    assert (result.exit_code, result.stdout) == (0, f"2 copied, 0 already present: {tmp_path}/to\n")
    assert result.stderr == f"not copied, it can't be read: {log}\n"


@pytest.mark.parametrize("target", ["memory://x", "memory://x/y", "MEMORY://x"])
def test_copy_to_the_memory_of_the_command_is_wrong_usage(run: Path, target: str) -> None:
    """That memory ends with the command."""
    assert_refused(call("checkpoints", "copy", run, target), 2, "memory://x", "is lost when this command exits")


def test_copy_lets_go_of_both_places(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both connections close, also after a refusal."""
    let_go: list[str] = []
    monkeypatch.setattr(LocalStorage, "close", lambda storage: let_go.append(storage.location))
    commit(CheckpointStore(tmp_path / "further", run_id="job-42"), 3, Position(0))
    for target, code in (("to", 0), ("further", 2)):
        assert call("checkpoints", "copy", run, tmp_path / target).exit_code == code
        assert let_go == [str(tmp_path / target), str(run)]
        let_go.clear()


def test_copy_leaves_the_source_as_it_is(run: Path, tmp_path: Path) -> None:
    """A source whose run.json is lost stays without it. The copy has one."""
    (run / "run.json").unlink()
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert call_json("checkpoints", "copy", run, tmp_path / "to")["run_id"] == "job-42"
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_copy_refuses_a_target_with_a_life_of_its_own(run: Path, tmp_path: Path) -> None:
    """The target is another run's, is ahead, is the source itself, or has an unknown scheme."""
    commit(CheckpointStore(tmp_path / "other", run_id="other-run"), 1, Position(1))
    commit(CheckpointStore(tmp_path / "further", run_id="job-42"), 3, Position(0))
    assert_refused(call("checkpoints", "copy", run, tmp_path / "other"), 1, "'other-run'", "'job-42'")
    assert_refused(call("checkpoints", "copy", run, tmp_path / "further"), 2, "further is ahead of")
    assert_refused(call("checkpoints", "copy", run, run), 2, "is both source and target: choose another TARGET")
    assert_refused(call("checkpoints", "copy", run, "nope://x"), 2, "the scheme is unknown")


@pytest.mark.parametrize("target", ["s3:/bucket/x", "redis:/user:open-sesame-7319@host/0"])
def test_a_url_that_lost_a_slash_is_no_place_to_copy_from_or_to(run: Path, tmp_path: Path, target: str) -> None:
    """Without the check, the command would create a local directory of that name."""
    for words in ((run, target), (target, tmp_path / "to")):
        result = call("checkpoints", "copy", *words)
        assert_refused(result, 2, "has lost a slash")
        assert PASSWORD not in result.output
    assert (names(tmp_path), names(tmp_path / "here")) == (["here", "run"], [])


def test_copy_of_nothing_usable_is_wrong_usage(run: Path, tmp_path: Path) -> None:
    for name in (NEWEST, OLDER):
        damage(run / name)
    assert_refused(call("checkpoints", "copy", run, tmp_path / "to"), 2, "has no usable checkpoint to copy")
    (run / "run.json").unlink()
    assert_refused(call("checkpoints", "copy", run, tmp_path / "to"), 2, "has no usable checkpoint to copy")
    assert not (tmp_path / "to").exists()


def test_copy_to_where_nothing_can_be_written_is_a_problem(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: LocalStorage) -> None:
        raise StoreError("can't create /ro/to: Read-only file system", path="/ro/to")

    monkeypatch.setattr(LocalStorage, "prepare", refuse)
    assert_refused(call("checkpoints", "copy", run, "/ro/to"), 1, "can't create /ro/to: Read-only file system")


# -------------------------------------------------------------------- places that are no directories


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Start one server for all tests. Each test uses its own run ids."""
    directory = tmp_path_factory.mktemp("redis") / "server"
    with RedisServer(directory, port=0, config={"requirepass": PASSWORD, "appendonly": "yes"}) as server:
        yield server


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """A place's URL, and the further words with which a command finds the run there."""

    url: str
    location: str
    words: tuple[str, ...] = ()

    def store(self, keep: int = 9) -> CheckpointStore:
        run_id = self.words[-1] if self.words else "job-42"
        return CheckpointStore(self.url, run_id=run_id, keep=keep)

    def call(self, *words: object) -> Result:
        """Run a command on the run, and check that it prints no password."""
        result = call(*words, *self.words)
        assert PASSWORD not in result.output
        return result

    def json(self, *words: object, code: int = 0) -> Any:
        result = self.call(*words, "--json")
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)


@pytest.fixture(params=["memory", "redis"])
def elsewhere(request: pytest.FixtureRequest) -> Elsewhere:
    name = f"job-{secrets.token_hex(4)}"
    if request.param == "memory":
        return Elsewhere(url=f"memory://{name}", location=f"memory://{name}")
    url = request.getfixturevalue("server").url
    return Elsewhere(url=url, location=storage_from_url(url, run_id=name).location, words=("--run", name))


def test_a_run_elsewhere_can_be_looked_at(elsewhere: Elsewhere) -> None:
    """As one in a directory."""
    store, where = elsewhere.store(), ("checkpoints", "list", elsewhere.url)
    commit(store, 1, Position(1))
    commit(store, 2, Position(1, 3))
    assert [(row["name"], row["valid"]) for row in elsewhere.json(*where)] == [(NEWEST, True), (OLDER, True)]
    assert elsewhere.json("checkpoints", "verify", elsewhere.url) == {"checked": 2, "bad": []}
    assert elsewhere.json("checkpoints", "show", elsewhere.url)["name"] == NEWEST
    assert elsewhere.json("checkpoints", "show", elsewhere.url, OLDER)["header"]["term"] == 1
    store.storage.put(NEWEST, [b"torn"])
    assert [row["valid"] for row in elsewhere.json(*where, code=1)] == [False, True]
    (bad,) = elsewhere.json("checkpoints", "verify", elsewhere.url, code=1)["bad"]
    assert bad == {"name": NEWEST, "reason": "the header is not JSON"}
    assert elsewhere.call("checkpoints", "show", elsewhere.url, NEWEST).stderr == (
        f"error: checkpoint {elsewhere.location}/{NEWEST} is unusable: the header is not JSON\n"
    )


def test_a_run_elsewhere_can_be_pruned_and_exported(elsewhere: Elsewhere, tmp_path: Path) -> None:
    """As one in a directory."""
    store = elsewhere.store()
    commit(store, 1, Position(1))
    commit(store, 2, Position(1, 3), exportable())
    assert elsewhere.json("checkpoints", "prune", elsewhere.url) == {"kept": [NEWEST], "removed": [OLDER]}
    assert elsewhere.json("checkpoints", "export", elsewhere.url)["name"] == NEWEST
    assert examples(tmp_path / "here" / "latest.variables.json") == ["é"]


def test_a_run_can_be_copied_there_and_back(elsewhere: Elsewhere, tmp_path: Path) -> None:
    """The copy of the copy has the same bytes."""
    run_id = elsewhere.words[-1] if elsewhere.words else "job-42"
    store = CheckpointStore(tmp_path / run_id, run_id=run_id)
    name = commit(store, 3, Position(2))
    if elsewhere.words:
        there = call_json("checkpoints", "copy", tmp_path / run_id, elsewhere.url)
        assert (there["copied"], there["target"]) == ([name], elsewhere.location)
    else:  # the command refuses a target in its own memory
        copy_run(store, elsewhere.store())
    back = elsewhere.json("checkpoints", "copy", elsewhere.url, tmp_path / "back")
    assert (back["copied"], back["source"]) == ([name], elsewhere.location)
    assert (tmp_path / "back" / name).read_bytes() == (tmp_path / run_id / name).read_bytes()


def test_an_empty_place_elsewhere_is_wrong_usage() -> None:
    url = f"memory://{secrets.token_hex(4)}"
    for command in ("list", "verify", "show", "prune", "export"):
        assert_refused(call("checkpoints", command, url), 2, f"{url} is not the backup directory of a run")


# -------------------------------------------------------------------- runs on a server


@pytest.fixture
def lone_server(tmp_path: Path) -> Iterator[RedisServer]:
    """Start a server for a test that counts the runs on it."""
    with RedisServer(tmp_path / "server", port=0, config={"requirepass": PASSWORD}) as server:
        yield server


def test_the_only_run_on_a_server_need_not_be_named(lone_server: RedisServer) -> None:
    """With no run or several runs, the error says so."""
    url = lone_server.url
    shown = storage_from_url(url, run_id="x").location.removesuffix("/x")
    for words in (("checkpoints", "list"), ("checkpoints", "prune"), ("status",)):
        assert_refused(call(*words, url), 2, f"error: no run on {shown}\n")
    name = commit(CheckpointStore(url, run_id="job-42"), 1, Position(1))
    assert [row["name"] for row in call_json("checkpoints", "list", url)] == [name]
    assert call_json("checkpoints", "list", url, "--run", "job-42")[0]["name"] == name
    assert_refused(call("checkpoints", "list", url, "--run", "job-43"), 2, f"error: no run job-43 on {shown}\n")
    commit(CheckpointStore(url, run_id="job-43"), 1, Position(1))
    several = f"error: 2 runs on {shown}, name one with --run: job-42, job-43\n"
    for words in (("checkpoints", "list"), ("checkpoints", "prune"), ("status",)):
        assert_refused(call(*words, url), 2, several)


def test_status_verifies_the_checkpoints_that_are_on_the_server(server: RedisServer) -> None:
    """A checkpoint on the server is read and verified. Only an announced one is not."""
    run_id = f"job-{secrets.token_hex(4)}"
    name = commit(CheckpointStore(server.url, run_id=run_id), 1, Position(1, 3))
    found = call_json("status", server.url, "--run", run_id)
    assert (found["run_id"], found["leader"], found["term"], found["members"]) == (run_id, None, 0, [])
    row = call_json("checkpoints", "list", server.url, "--run", run_id)[0]
    assert found["checkpoint"] == row
    assert (row["name"], row["valid"], row["worker_id"]) == (name, True, "w-1")
    coordinator = RedisCoordinator(server.url)
    coordinator.open(run_id, LeaseTimings())
    coordinator.heartbeat(Heartbeat(worker_id="a", campaign=True, floor=1, duration=30.0))
    led = call_json("status", server.url, "--run", run_id)
    coordinator.close()
    assert (led["leader"], led["term"], led["checkpoint"]) == ("a", 2, row)
    CheckpointStore(server.url, run_id=run_id).storage.put(name, [b"torn"])
    assert call_json("status", server.url, "--run", run_id, code=1)["checkpoint"] is None
    result = call("status", server.url, "--run", run_id)
    assert result.stderr.startswith("error: none of the 1 checkpoint(s) in redis://127.0.0.1:")
    assert PASSWORD not in result.output


def test_what_is_damaged_on_the_server_is_named(server: RedisServer) -> None:
    """This includes bytes that can't be decompressed."""
    run_id = f"job-{secrets.token_hex(4)}"
    name = commit(CheckpointStore(server.url, run_id=run_id), 1, Position(1))
    server.client().hset(f"distributed-backup:{{{run_id}}}:files", name, "torn")
    found = call_json("checkpoints", "verify", server.url, "--run", run_id, code=1)
    assert found == {"checked": 1, "bad": [{"name": name, "reason": "the header is not JSON"}]}


def test_a_server_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    """The error is one line without the password."""
    url = f"redis://:{PASSWORD}@127.0.0.1:1/0"
    for words in (("list",), ("export",)):
        result = call("checkpoints", *words, url)
        assert_refused(result, 1, "redis://127.0.0.1:1/0")
        assert PASSWORD not in result.output
