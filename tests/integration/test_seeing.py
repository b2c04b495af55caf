"""Events and metrics of real fits."""

from __future__ import annotations

import re
from pathlib import Path

from distributed_backup.observability.events import Event
from tests.support.processes import Child
from tests.support.servers import free_port

SCENARIOS = "tests.integration.seeing_scenarios"


def test_a_fit_that_was_preempted_and_resumed_can_be_seen(tmp_path: Path) -> None:
    """Each start has a log, both have one endpoint, and the last worker out deletes the logs too."""
    with Child(f"{SCENARIOS}:preempted_and_resumed", free_port(), log=tmp_path / "log") as child:
        found = child.result()
    logs = sorted(([Event.from_line(line) for line in lines] for lines in found["logs"]), key=lambda log: log[0].at)
    first, second = ([event.kind for event in log if event.kind != "progress"] for log in logs)
    assert first[:3] == ["joined", "elected", "restored"]
    assert set(first[3:-2]) == {"notice", "committed"}
    assert first[-2:] == ["preempted", "resigned"]
    assert second == ["joined", "elected", "restored", "committed", "finished", "resigned"]
    assert logs[1][2].fields["checkpoint"] == logs[0][-2].fields["checkpoint"]
    assert len({event.worker for log in logs for event in log}) == 2
    run = logs[0][0].fields["run"]
    expected = {"leader": 1, "term": 2, "elections_total": 2, "restores_total": 1, "commits_total": len(first) - 6}
    for name, value in expected.items():
        assert re.search(rf'^distributed_backup_{name}{{run="{run}"}} {value}\.0$', found["scraped"][-1], re.MULTILINE)
    for name in ("answers_recorded_total", "journal_bytes_total"):
        assert re.search(rf'^distributed_backup_{name}{{run="{run}"}} [1-9]', found["scraped"][-1], re.MULTILINE)
    assert found["warnings"] == []
    assert found["deleted"]


def test_metrics_without_the_client_are_refused_before_the_fit(tmp_path: Path) -> None:
    """A job's manifest asks for them: that it gets none must not be found out a week later."""
    with Child(f"{SCENARIOS}:refused_without_the_client", log=tmp_path / "log") as child:
        message = child.result()
    assert "pip install 'distributed-backup[metrics]'" in message
