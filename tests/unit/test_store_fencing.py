"""The order of commits: older terms are refused, and late files sort below."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distributed_backup.checkpoints.format import checkpoint_name
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.errors import (
    NoUsableCheckpointError,
    StaleTermError,
)
from distributed_backup.position import Position
from distributed_backup.storage.local import LocalStorage
from tests.support.stores import checkpoints, commit, damage, files, newest, snapshot, write


def test_a_commit_of_a_lower_term_is_refused(tmp_path: Path) -> None:
    """The error names both terms, and nothing is written."""
    old, new = CheckpointStore(tmp_path), CheckpointStore(tmp_path)
    commit(old, 1, term=1)
    commit(new, 2, term=2)
    before = files(tmp_path)
    with pytest.raises(StaleTermError) as caught:
        commit(old, 9, term=1)
    assert (caught.value.term, caught.value.newest, caught.value.path) == (1, 2, str(tmp_path))
    assert files(tmp_path) == before


def test_a_damaged_checkpoint_of_a_newer_term_still_fences(tmp_path: Path) -> None:
    """The term in its name counts: a writer of an older term is refused."""
    store = CheckpointStore(tmp_path)
    commit(store, 1, term=1)
    damage(write(tmp_path, 2, term=5))
    assert store.highest_term() == 5
    with pytest.raises(StaleTermError):
        commit(store, 2, term=1)
    commit(store, 2, term=6)
    assert newest(store) == (6, 2)


def test_a_late_file_of_a_lower_term_never_becomes_the_newest(tmp_path: Path) -> None:
    """A writer that was paused after its checks renames its file below the newer term, at any position."""
    store = CheckpointStore(tmp_path, run_id="run")
    commit(store, 1, term=2)
    late = write(tmp_path, 99, term=1)
    assert newest(store) == (2, 1)
    assert store.newest_header() == store.load(checkpoint_name(2, Position(1))).header
    commit(store, 2, term=2)
    assert not late.exists()


def test_a_late_commit_leaves_newer_terms_alone(tmp_path: Path) -> None:
    """A late commit of an older term prunes no checkpoint and no partial file of the newer term."""
    new = CheckpointStore(tmp_path, run_id="run", keep=2)
    partial = tmp_path / ".partial-0000000002-00000003-00000000.ckpt-aaaa"

    class Paused(LocalStorage):
        def _publish(self, partial_: Path, path: Path) -> None:
            commit(new, 1, term=2)
            commit(new, 2, term=2)
            partial.touch()
            partial_.touch()  # the successor's prune removed it
            super()._publish(partial_, path)

    old = CheckpointStore(Paused(tmp_path), run_id="run")
    commit(old, 9, term=1)
    assert partial.exists()
    assert newest(new) == (2, 2)
    assert [row for row in checkpoints(new) if row[0] == 2] == [(2, 2), (2, 1)]
    old.prune(term=1)
    assert checkpoints(new) == [(2, 2), (2, 1)]
    assert partial.exists()


def test_a_writer_deposed_while_it_stages_is_told_so(tmp_path: Path) -> None:
    """If a newer writer removed the partial file, the commit raises `StaleTermError` instead of a disk error."""
    new = CheckpointStore(tmp_path, run_id="run")

    class Paused(LocalStorage):
        def _publish(self, partial: Path, path: Path) -> None:
            commit(new, 1, term=2)
            assert not partial.exists()
            super()._publish(partial, path)

    with pytest.raises(StaleTermError) as caught:
        commit(CheckpointStore(Paused(tmp_path), run_id="run"), 9, term=1)
    assert (caught.value.term, caught.value.newest) == (1, 2)
    assert newest(new) == (2, 1)


FINAL = replace(snapshot(1), final=True)


class ClaimedBefore(LocalStorage):
    """A disk whose writer is suspended before each rename, so that another worker claims term 2."""

    def _publish(self, partial: Path, path: Path) -> None:
        (path.parent / "0000000002.term").touch()
        super()._publish(partial, path)


def test_a_final_state_that_the_next_leader_may_not_have_seen_ends_no_run(tmp_path: Path) -> None:
    """A boundary is still useful until that leader commits."""
    store = CheckpointStore(ClaimedBefore(tmp_path), run_id="run")
    with pytest.raises(StaleTermError, match=r"term 2 was claimed in .* before the final state was durable") as caught:
        store.commit(FINAL, term=1, worker_id="w")
    assert (caught.value.term, caught.value.newest) == (1, 2)
    commit(store, 2, term=1)
    assert newest(store) == (1, 2)


def test_a_final_state_that_was_durable_before_the_next_claim_ends_the_run(tmp_path: Path) -> None:
    """The leader that claims reads the newest checkpoint after its claim."""
    store = CheckpointStore(tmp_path)
    store.commit(FINAL, term=1, worker_id="w")
    assert store.claim_term(2)
    header = store.newest_header()
    assert header is not None
    assert (header.term, header.final) == (1, True)


writes = st.tuples(
    st.integers(0, 2),  # which instance
    st.integers(1, 4),  # term
    st.integers(0, 5),  # epoch
    st.sampled_from(["commit", "commit", "late", "damaged", "prune", "newest"]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keep=st.integers(1, 3), steps=st.lists(writes, max_size=12))
def test_the_latest_is_always_the_greatest_term_and_position_that_verifies(
    tmp_path_factory: pytest.TempPathFactory, keep: int, steps: list[tuple[int, int, int, str]]
) -> None:
    """This holds for any order of commits, late writes, damage and prunes by three instances."""
    root = tmp_path_factory.mktemp("property")
    stores = [CheckpointStore(root, run_id="run", keep=keep) for _ in range(3)]
    stores[0].open_run()
    valid: set[tuple[int, int]] = set()
    bad: set[tuple[int, int]] = set()
    for who, term, epoch, what in steps:
        highest = max((seen for seen, _ in valid | bad), default=0)
        if what == "commit" and term < highest:
            with pytest.raises(StaleTermError):
                commit(stores[who], epoch, term=term)
        elif what == "commit":
            commit(stores[who], epoch, term=term)
            valid.add((term, epoch))
            bad.discard((term, epoch))
        elif what == "late":
            write(root, epoch, term=term)
            valid.add((term, epoch))
            bad.discard((term, epoch))
        elif what == "damaged" and (term, epoch) not in valid:
            damage(write(root, epoch, term=term))
            bad.add((term, epoch))
        elif what == "prune":
            stores[who].prune(term=term)
        on_disk = {(row.term, row.position.epoch): row.valid for row in CheckpointStore(root).list()}
        assert set(on_disk) <= valid | bad
        assert all(on_disk[key] == (key in valid) for key in on_disk)
        greatest = max(valid, default=None)
        for store in stores:
            if greatest is None and bad:
                with pytest.raises(NoUsableCheckpointError):
                    store.latest()
            else:
                assert newest(store) == greatest
            header = store.newest_header()
            assert (header and (header.term, header.epoch)) == greatest
        # What was pruned may only be below the newest `keep` that verify.
        kept = sorted(valid, reverse=True)[:keep]
        assert set(kept) <= set(on_disk)
        valid, bad = valid & set(on_disk), bad & set(on_disk)
