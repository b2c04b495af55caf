"""Test copies of runs and exports of variables: what arrives, what is refused, what stays unchanged."""

from __future__ import annotations

import json
import math
import secrets
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, override

import pytest

from distributed_backup.checkpoints.format import Checkpoint, Snapshot
from distributed_backup.checkpoints.reader import Rows
from distributed_backup.checkpoints.state_body import encode_state
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.cli.copy_run import Copied, copy_run
from distributed_backup.cli.export import export_variables, state_tree
from distributed_backup.errors import BackupError, ConfigError, CorruptCheckpointError, RunMismatchError, StoreError
from distributed_backup.position import Position
from distributed_backup.storage.base import Chunks
from distributed_backup.storage.local import LocalStorage

RUN = "run-42"
LOG = "events-20260101T000000Z-w-12345678.jsonl"


def commit(store: CheckpointStore, epoch: int, *, term: int = 1) -> str:
    snapshot = Snapshot(position=Position(epoch), body=b'{"epoch":%d}' % epoch)
    return store.commit(snapshot, term=term, worker_id="w").name


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)


def contents(root: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a run: checkpoints of terms 1 and 3, a worker's log, and a claim of term 5."""
    store = CheckpointStore(tmp_path / "run", run_id=RUN, keep=9)
    commit(store, 1)
    commit(store, 2, term=3)
    assert store.claim_term(5)
    (tmp_path / "run" / LOG).write_bytes(b"{}\n")
    return tmp_path / "run"


@pytest.fixture
def source(root: Path) -> CheckpointStore:
    return CheckpointStore(root, run_id=RUN)


@pytest.fixture(params=["a directory", "elsewhere"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    place = tmp_path / "to" / "run" if request.param == "a directory" else f"memory://{secrets.token_hex(4)}/run"
    return CheckpointStore(place, run_id=RUN, keep=9)


# -------------------------------------------------------------------- copies


def test_a_run_that_went_on_at_both_places_is_not_copied_over_itself(
    source: CheckpointStore, target: CheckpointStore
) -> None:
    """Two different checkpoints have one name."""
    copy_run(source, target)
    newest = source.names()[0]
    snapshot = Snapshot(position=Position(2), body=b'{"other":1}')
    target.commit(snapshot, term=3, worker_id="w")
    before = target.storage.read(newest)
    with pytest.raises(ConfigError, match="the run continued at both places"):
        copy_run(source, target)
    assert target.storage.read(newest) == before


def test_a_copy_is_the_run(root: Path, source: CheckpointStore, target: CheckpointStore) -> None:
    """Checkpoints, run id and event logs have the same bytes. The source is unchanged."""
    before = contents(root)
    newest, older = source.names()
    assert copy_run(source, target) == Copied(
        run_id=RUN,
        source=str(root),
        target=target.location,
        copied=(newest, older),
        present=(),
        segments=(),
        skipped=(),
    )
    assert contents(root) == before
    for name in (newest, older, LOG):
        assert target.storage.read(name) == before[name]
    assert CheckpointStore(target.storage).read_run_id() == RUN
    assert target.verify() == []


def test_training_goes_on_where_the_copy_is(source: CheckpointStore, target: CheckpointStore) -> None:
    """Training resumes from the same checkpoint. Terms of the source are not granted again."""
    copy_run(source, target)
    assert target.highest_term() == 5
    assert not target.claim_term(5)
    assert target.claim_term(6)
    newest = commit(target, 3, term=6)
    latest = target.latest()
    assert latest is not None
    assert latest.name == newest


def test_a_copy_that_is_repeated_copies_what_is_new(source: CheckpointStore, target: CheckpointStore) -> None:
    """The run continued at the source between the copies."""
    before = copy_run(source, target).copied
    assert copy_run(source, target).copied == ()
    newest = commit(CheckpointStore(source.storage, keep=9), 3, term=7)
    source.storage.put(LOG, [b"{}\n{}\n"])
    again = copy_run(source, target)
    assert (again.copied, again.present) == ((newest,), before)
    assert (target.highest_term(), target.storage.read(LOG)) == (7, b"{}\n{}\n")


def test_what_was_damaged_at_the_target_is_copied_again(source: CheckpointStore, target: CheckpointStore) -> None:
    """A damaged checkpoint of the same name does not count as present."""
    newest, older = copy_run(source, target).copied
    target.storage.put(newest, [b"torn"])
    again = copy_run(source, CheckpointStore(target.storage))
    assert (again.copied, again.present) == ((newest,), (older,))
    assert target.verify() == []


def test_a_damaged_checkpoint_is_left_behind(root: Path, source: CheckpointStore, target: CheckpointStore) -> None:
    """The result lists it as skipped."""
    newest, older = source.names()
    damage(root / newest)
    copied = copy_run(source, target)
    assert (copied.copied, copied.skipped) == ((older,), (newest,))
    assert target.names() == [older]


def test_a_target_that_has_come_further_is_left_alone(source: CheckpointStore, target: CheckpointStore) -> None:
    """Its workers continued there, so the copy would mix two histories."""
    copy_run(source, target)
    newest = commit(target, 1, term=6)
    before = sorted(target.storage.names())
    commit(CheckpointStore(source.storage, keep=9), 9, term=5)
    with pytest.raises(ConfigError) as caught:
        copy_run(source, target)
    assert str(caught.value) == f"{target.location} is ahead of {source.location}: it holds {newest}"
    assert sorted(target.storage.names()) == before


@pytest.mark.parametrize("keep", [1, 9])
def test_an_older_state_under_a_newer_term_is_not_copied_over_a_newer_state(
    root: Path, target: CheckpointStore, keep: int
) -> None:
    """The run restarted at the source while the copy continued: the copy's newest state would be superseded."""
    source = CheckpointStore(root, run_id=RUN, keep=keep)
    copy_run(source, target)
    furthest = commit(target, 9, term=3)
    commit(source, 2, term=7)
    before = sorted(target.storage.names())
    with pytest.raises(ConfigError) as caught:
        copy_run(source, target)
    assert str(caught.value) == f"{target.location} is ahead of {source.location}: it holds {furthest}"
    assert sorted(target.storage.names()) == before


def test_a_run_that_went_back_is_copied_with_all_that_it_still_has(
    source: CheckpointStore, target: CheckpointStore
) -> None:
    """A later position in the target is fine if the source has the same checkpoint."""
    commit(CheckpointStore(source.storage, keep=9), 9, term=5)
    copy_run(source, target)
    back = commit(CheckpointStore(source.storage, keep=9), 2, term=6)
    assert copy_run(source, target).copied == (back,)


def test_what_is_damaged_at_the_target_is_no_state_that_could_be_lost(
    source: CheckpointStore, target: CheckpointStore
) -> None:
    """The position in its name does not count."""
    copy_run(source, target)
    target.storage.put("0000000002-00000009-00000000.ckpt", [b"torn"])
    newest = commit(CheckpointStore(source.storage, keep=9), 3, term=6)
    assert copy_run(source, target).copied == (newest,)


def test_the_target_of_another_run_is_refused(source: CheckpointStore, target: CheckpointStore) -> None:
    """This holds for a target without checkpoints, too."""
    CheckpointStore(target.storage, run_id="run-43").open_run()
    with pytest.raises(RunMismatchError, match="'run-43'") as caught:
        copy_run(source, target)
    assert "'run-42'" in str(caught.value)
    assert target.storage.names() == ["run.json"]


def test_a_run_is_not_copied_onto_itself(root: Path, source: CheckpointStore) -> None:
    """A path and a file:// URL name the same place."""
    with pytest.raises(ConfigError, match="is both source and target: choose another TARGET"):
        copy_run(source, CheckpointStore(f"file://{root}/", run_id=RUN))


def test_a_run_without_a_usable_checkpoint_is_not_copied(root: Path, source: CheckpointStore, tmp_path: Path) -> None:
    """The target is not created."""
    for name in source.names():
        damage(root / name)
    with pytest.raises(ConfigError, match=f"^{root} has no usable checkpoint to copy$"):
        copy_run(source, CheckpointStore(tmp_path / "to", run_id=RUN))
    assert not (tmp_path / "to").exists()


def test_a_target_that_lies_about_what_was_written_is_found_out(source: CheckpointStore, tmp_path: Path) -> None:
    """Each copied checkpoint is read back."""

    class Liar(LocalStorage):
        @override
        def put(self, name: str, chunks: Chunks, *, new: bool = False, durable: bool = True) -> None:
            super().put(name, [b"".join(chunks)[:-1]], durable=durable)

    with pytest.raises(StoreError) as caught:
        copy_run(source, CheckpointStore(Liar(tmp_path / "to"), run_id=RUN))
    path = f"{tmp_path}/to/{source.names()[-1]}"
    assert str(caught.value) == f"{path} differs from the bytes that were written to it: check the storage"


class PrunedWhileRead(CheckpointStore):
    """A store whose checkpoints are pruned after the listing."""

    gone: tuple[int, ...] = ()

    @override
    def list(self) -> Rows:
        rows = super().list()
        for index in self.gone:
            self.storage.remove(rows[index].name)
        return rows


def test_a_checkpoint_that_is_pruned_meanwhile_is_not_missed(root: Path, target: CheckpointStore) -> None:
    """A newer checkpoint is copied."""
    source = PrunedWhileRead(root, run_id=RUN)
    source.gone = (1,)
    newest = source.names()[0]
    assert copy_run(source, target).copied == (newest,)


def test_when_all_are_pruned_meanwhile_the_copy_says_so(root: Path, target: CheckpointStore) -> None:
    """An empty target must not count as a copy."""
    source = PrunedWhileRead(root, run_id=RUN)
    source.gone = (0, 1)
    with pytest.raises(StoreError, match=f"^{root} was pruned during the copy: repeat the command$"):
        copy_run(source, target)


def test_a_checkpoint_that_can_not_be_read_ends_the_copy(root: Path, target: CheckpointStore) -> None:
    """An unreadable checkpoint differs from a pruned one."""

    class Unreadable(LocalStorage):
        reads = 0

        @override
        def read(self, name: str) -> bytes:
            self.reads += 1
            if self.reads > 2:
                raise StoreError(f"can't read {self.path_of(name)}: Input/output error", path=str(root))
            return super().read(name)

    with pytest.raises(StoreError, match="Input/output error"):
        copy_run(CheckpointStore(Unreadable(root), run_id=RUN), target)
    assert target.names() == []


def test_a_checkpoint_that_changes_once_it_was_listed_is_verified(root: Path, target: CheckpointStore) -> None:
    """The bytes that are copied may differ from the bytes that were listed."""
    reads: Counter[str] = Counter()

    class Changing(LocalStorage):
        @override
        def read(self, name: str) -> bytes:
            reads[name] += 1
            return super().read(name)[: None if reads[name] == 1 else -1]

    source = CheckpointStore(Changing(root), run_id=RUN)
    with pytest.raises(CorruptCheckpointError):
        copy_run(source, target)
    assert target.names() == []


class Logs(LocalStorage):
    """A storage that fails to read event logs, with `reason`."""

    reason: OSError

    @override
    def read(self, name: str) -> bytes:
        if name == LOG:
            raise StoreError(f"can't read {self.path_of(name)}: {self.reason}", path=self.location) from self.reason
        return super().read(name)


@pytest.mark.parametrize(
    ("reason", "skipped"), [(FileNotFoundError(2, "gone"), ()), (OSError(5, "Input/output error"), (LOG,))]
)
def test_a_log_that_can_not_be_read_does_not_end_the_copy(
    root: Path, target: CheckpointStore, reason: OSError, skipped: tuple[str, ...]
) -> None:
    """The checkpoints are copied. A removed log is ignored, and an unreadable one is listed."""
    storage = Logs(root)
    storage.reason = reason
    source = CheckpointStore(storage, run_id=RUN)
    copied = copy_run(source, target)
    assert (copied.copied, copied.skipped) == (tuple(source.names()), skipped)
    assert LOG not in target.storage.names()


# -------------------------------------------------------------------- exports

GROUPS = ("trainable", "non_trainable", "optimizer_trainable", "optimizer_non_trainable", "metrics")


def checkpoint(body: bytes) -> Checkpoint:
    """Make a checkpoint with this body."""
    store = CheckpointStore(f"memory://{secrets.token_hex(4)}")
    store.commit(Snapshot(position=Position(1), body=body), term=1, worker_id="w")
    made = store.latest()
    assert made is not None
    return made


def state(**groups: Mapping[str, Any]) -> bytes:
    """Encode a training state with these variables, by their paths."""
    chosen: dict[str, list[tuple[str, Any]]] = {name: list(groups.get(name, {}).items()) for name in GROUPS}
    return encoded(chosen)


def encoded(groups: Mapping[str, list[tuple[str, Any]]]) -> bytes:
    """Encode as `TrainingState.capture` does."""
    return b"".join(
        encode_state(
            {
                "variables": {name: [value for _, value in items] for name, items in groups.items()},
                "schema": {name: [{"path": path} for path, _ in items] for name, items in groups.items()},
                "python_random": ["", 0, 0.0],
                "numpy_random": ["", 0, 0, 0.0],
            }
        )
    )


def test_an_export_has_the_form_that_synalinks_writes(tmp_path: Path) -> None:
    """Groups have synalinks' names, and paths become levels. Other state is left out."""
    path = tmp_path / "latest.variables.json"
    body = state(
        trainable={"a/state": {"examples": ["é"]}, "b/state": {"examples": []}},
        metrics={"mean/total": {"total": 1.5}},
    )
    export_variables(checkpoint(body), path)
    assert json.loads(path.read_bytes()) == {
        "trainable_variables": {"a": {"state": {"examples": ["é"]}}, "b": {"state": {"examples": []}}},
        "non_trainable_variables": {},
        "optimizer_trainable_variables": {},
        "optimizer_non_trainable_variables": {},
        "metrics_variables": {"mean": {"total": {"total": 1.5}}},
    }
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["latest.json", "variables.json", "latest.variables.json.gz", "latest"])
def test_an_export_that_synalinks_would_not_load_is_not_written(tmp_path: Path, name: str) -> None:
    """Synalinks checks the suffix."""
    with pytest.raises(ConfigError) as caught:
        export_variables(checkpoint(state()), tmp_path / name)
    wanted = "must end in .variables.json: program.load_variables takes no other name"
    assert str(caught.value) == f"{tmp_path / name} {wanted}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 2**70, math.nan, math.inf, "\ud83d"])
def test_what_synalinks_can_not_read_is_refused(tmp_path: Path, value: Any) -> None:
    """Synalinks would load other values or fail. An existing file stays."""
    path = tmp_path / "x.variables.json"
    path.write_text("before")
    made = checkpoint(state(trainable={"a/b": {"x": value}}))
    with pytest.raises(BackupError) as caught:
        export_variables(made, path)
    values = "NaN, infinity, an integer beyond 64 bits, or an unpaired surrogate"
    assert str(caught.value) == f"{made.name} holds values that synalinks can't read from JSON: {values}"
    assert path.read_text() == "before"


def test_whole_numbers_of_64_bits_are_exported(tmp_path: Path) -> None:
    """These are the largest integers that synalinks reads."""
    path = tmp_path / "x.variables.json"
    export_variables(checkpoint(state(trainable={"a/b": {"x": [2**64 - 1, -(2**63), 0.1, True, None]}})), path)
    found = json.loads(path.read_bytes())["trainable_variables"]["a"]["b"]["x"]
    assert found == [2**64 - 1, -(2**63), 0.1, True, None]


def test_two_variables_of_one_name_are_refused() -> None:
    """Synalinks' `save_variables` refuses them, too."""
    made = checkpoint(encoded({name: [("mean/total", {}), ("mean/total", {})] for name in GROUPS}))
    with pytest.raises(BackupError) as caught:
        state_tree(made)
    wanted = "has two variables with the path mean/total, which synalinks' format can't distinguish"
    assert str(caught.value) == f"{made.name} {wanted}"


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b"not JSON",
        b"\x81\xa1",
        b'{"variables":{},"schema":{}}',
        b'{"variables":[],"schema":[]}',
        encoded({name: [("a", 1), ("a/b", 2)] for name in GROUPS}),
        state().replace(b"\xa9trainable\x90", b"\xa9trainable\x91\x80", 1),
    ],
)
def test_what_is_no_training_state_is_not_exported(body: bytes) -> None:
    """The digest is right, but the body has another form."""
    made = checkpoint(body)
    with pytest.raises(BackupError) as caught:
        state_tree(made)
    assert str(caught.value) == f"{made.name} verifies, but its body is not a training state that this version can read"
