"""Test that several workers pay for one training, also when they are killed. See `tests/chaos/README.md`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.campaign import Campaign
from tests.chaos.places import places
from tests.chaos.plan import Kill, Run

AT_ONCE = 8
"""Requests that a worker has under way."""


@pytest.mark.parametrize(("program", "is_killed"), [("few-shot", False), ("few-shot", True), ("omega", True)])
def test_three_workers_pay_what_one_pays(tmp_path: Path, program: str, is_killed: bool) -> None:
    """All requests that were answered count once, whichever worker made them. Others were under way at a kill."""
    kills = (Kill(how="SIGKILL", event="answered", count=25, delay=0.005),) if is_killed else ()
    with places(tmp_path, store="dir", coordinator="file") as made:
        run = Run(
            seed=3,
            program=program,
            save_freq="epoch",
            is_shuffled=False,
            deletes=False,
            keeps_all=False,
            kills=(kills,) * 3,
        )
        result = Campaign(tmp_path, made).carry_out(run)
    assert result.violations == []
    answered = [token for life in result.lives for token in life.answered]
    counted = {token for life in result.lives for tokens in life.seen.values() for token in tokens}
    assert len(set(answered) - counted) <= AT_ONCE * result.kills.total()
    if not is_killed:
        assert sum(bool(life.answered) for life in result.lives) == 1, "more than one worker has paid"
        assert set(answered) == counted
        # Also of a follower that never leads: "calls saved" is the sum of these events.
        assert [life.events["replayed"] for life in result.lives] == [
            0 if life.answered else 1 for life in result.lives
        ]
    else:
        assert result.kills.total() > 0, "no worker was killed"
