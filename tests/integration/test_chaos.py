"""Short campaigns of real processes over both coordinators. See `tests/chaos/README.md`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.chaos import __main__ as command
from tests.chaos.campaign import Campaign
from tests.chaos.places import places
from tests.chaos.plan import ENDS, Setting, plan
from tests.chaos.results import DOCUMENT
from tests.support.figures import Document

# A standby, one that is kept, and one that is deleted. Each has the program that its seed takes its turn with.
SEEDS = (27, 43, 59)
PROGRAMS = ("few-shot", "judge", "decision")


def test_a_campaign_over_a_file_lock_keeps_all_promises(tmp_path: Path) -> None:
    """Two workers, which are killed, interrupted and suspended, while operators look on."""
    setting = Setting(workers=2, programs=PROGRAMS, is_long=False, themes=("processes",))
    runs = [plan(seed, setting) for seed in SEEDS]
    assert {run.program for run in runs} == set(PROGRAMS)
    assert {run.standby for run in runs} == {run.deletes for run in runs} == {True, False}
    with places(tmp_path, store="dir", coordinator="file") as made:
        campaign = Campaign(tmp_path, made)
        results = [campaign.carry_out(run) for run in runs]
    assert [violation for result in results for violation in result.violations] == []
    assert any(life.ways & ENDS for result in results for life in result.lives), "no worker was killed"
    assert sum(result.faults["pause"] for result in results) > 0, "no worker was suspended"


def test_a_campaign_over_redis_ends_with_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its exit code says whether there was a violation. The network breaks, and the server loses its data."""
    line = "chaos --runs 1 --seed 22 --workers 2 --coordinator redis --programs embeddings"
    monkeypatch.setattr(sys, "argv", [*line.split(), "--keep", str(tmp_path / "kept"), "--write"])
    monkeypatch.setattr(command, "DOCUMENT", document := Document(folder=tmp_path, tables=DOCUMENT.tables))
    (tmp_path / "README.md").write_text("<!-- results of campaigns -->\n<!-- end of results -->\n")
    assert command.main() == 0
    output = capsys.readouterr().out
    assert list(document.read()) == ["redis coordinator"]
    made = (tmp_path / "README.md").read_text()
    assert "| violations | 0 |" in made
    assert "--runs 1 --seed 22 --programs embeddings --store dir --coordinator redis --workers 2`, " in made
    assert str(tmp_path) not in made
    assert "| runs | 1 |" in output
    assert "| all faults | 0 |" not in output
    assert "| violations | 0 |" in output
