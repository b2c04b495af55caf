"""Workers of one run that are suspended, late or new, and a storage that forgets. See `tests/chaos/README.md`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.campaign import Campaign, Result
from tests.chaos.history import Life
from tests.chaos.places import places
from tests.chaos.plan import BOUNDARIES, Kill, Run

LONGER_THAN_THE_LEASE = 1.6


def carried_out(
    root: Path, *kills: Iterable[Kill], store: str = "dir", coordinator: str = "redis", **fields: Any
) -> Result:
    defaults = {
        "seed": 3,
        "program": "few-shot",
        "save_freq": 1,
        "is_shuffled": False,
        "deletes": False,
        "keeps_all": False,
    }
    with places(root, store=store, coordinator=coordinator) as made:
        run = Run(**{**defaults, **fields}, kills=tuple(map(tuple, kills)))
        return Campaign(root, made).carry_out(run)


def pause(event: Any, count: int, seconds: float) -> Kill:
    return Kill(how="pause", event=event, count=count, delay=0.005, seconds=seconds)


def paused(result: Result) -> list[Life]:
    return [life for life in result.lives if life.pauses]


@pytest.mark.parametrize(("store", "keeps_all"), [("dir", True), ("redis", False)])
def test_a_leader_that_was_suspended_past_its_lease_follows_its_successor(
    tmp_path: Path, store: str, keeps_all: bool
) -> None:
    """It passes no boundary in a state of its own. Only requests that were under way are made twice.

    It stands by if its successor has pruned the journal meanwhile.
    """
    kill = pause("answered", 21, LONGER_THAN_THE_LEASE)
    result = carried_out(tmp_path, *[[kill]] * 3, store=store, keeps_all=keeps_all, save_freq="epoch")
    assert result.violations == []
    assert any(life.events["lost"] for life in paused(result)), "no leader was deposed"
    if keeps_all:
        assert not any(life.events["stood_down"] for life in result.lives)


def test_a_leader_that_was_suspended_with_a_file_lock_leads_on(tmp_path: Path) -> None:
    """A stopped process keeps its lock, so nothing is asked for twice."""
    result = carried_out(tmp_path, *[[pause("answered", 21, LONGER_THAN_THE_LEASE)]] * 2, coordinator="file")
    assert result.violations == []
    assert len(paused(result)) == 1
    assert sum(len(life.asked) for life in result.lives) == 120


def test_a_follower_may_be_late_by_more_than_a_checkpoint(tmp_path: Path) -> None:
    """The leader commits each boundary. What the follower needs stays until it has passed."""
    result = carried_out(tmp_path, *[[pause("replayed", 20, 1.0)]] * 2, coordinator="file")
    assert result.violations == []
    [late] = paused(result)
    passed = [position for position, _ in late.boundaries]
    assert passed == list(BOUNDARIES[-len(passed) :])
    assert not late.asked


def test_a_follower_that_restarts_in_the_middle_asks_nothing(tmp_path: Path) -> None:
    """It starts from the newest checkpoint, and takes up the log there."""
    kill = Kill(how="SIGKILL", event="replayed", count=30, delay=0.005)
    result = carried_out(tmp_path, *[[kill]] * 2, coordinator="file", save_freq="epoch")
    assert result.violations == []
    killed, *_ = [life for life in result.lives if life.how == "SIGKILL"]
    assert not killed.asked
    assert len({life.name for life in result.lives if life.asked}) == 1
    assert sum(len(life.asked) for life in result.lives) == 120


def test_a_storage_that_forgets_everything_costs_no_training(tmp_path: Path) -> None:
    """FLUSHALL, with three workers. The leader makes the next checkpoint and a segment anew."""
    flush = Kill(how="FLUSHALL", event="answered", count=45, delay=0.0)
    result = carried_out(tmp_path, *[[flush]] * 3, store="redis", coordinator="file")
    kept = [found for found in result.violations if "the leader has begun another log" not in found]
    assert kept == []
    [leader] = [life for life in result.lives if life.asked]
    assert leader.flushes == 1
    assert len(leader.asked) == 120
