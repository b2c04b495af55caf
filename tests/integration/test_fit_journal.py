"""The journal of a fit at its edges: a storage that fails, a lease that moves, and the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Child


def result(tmp_path: Path, name: str) -> Any:
    arguments = (str(tmp_path / "run"), name)
    with Child("tests.integration.fit_journal_scenarios:scenario", *arguments, log=tmp_path / "log") as child:
        return child.result()


def test_a_storage_that_fails_for_a_while_costs_no_answer(tmp_path: Path) -> None:
    """It fails at the start, while the log is read, and at a boundary in the middle."""
    assert result(tmp_path, "storage_that_fails") == ([1, 2], [], ["replayed"])


def test_a_storage_that_stays_away_ends_the_replay(tmp_path: Path) -> None:
    """After 30 s, with a look each half a second."""
    got, events, last, looks = result(tmp_path, "storage_that_stays_away")
    assert (got, events, last) == ([1, "new b"], ["diverged", "replayed"], "give_up")
    assert 50 < looks < 80


def test_a_log_that_is_removed_while_it_is_read_is_looked_for_again(tmp_path: Path) -> None:
    """Its worker was suspended, and a successor has committed meanwhile."""
    assert result(tmp_path, "log_that_is_removed") == (["new a"], ["a"])


def test_a_log_that_no_retry_makes_readable_refuses_the_start(tmp_path: Path) -> None:
    """It holds what was paid for. The error says what to do, and nothing is asked."""
    message, asked = result(tmp_path, "log_that_can_not_be_read")
    assert message.startswith(
        "permission denied. It may hold answers that were paid for. Make it readable, or remove it"
    )
    assert asked == []


def test_a_worker_that_must_stand_by_sends_no_request_before_its_training_is_cancelled(tmp_path: Path) -> None:
    """Other tasks of the event loop may run first, and the leader asks for the same."""
    assert result(tmp_path, "standby_whose_training_is_about_to_be_cancelled") == (["a"], ["a", "c"])


def test_a_follower_without_a_journal_is_warned_of_its_bill(tmp_path: Path) -> None:
    """Its leader may run with journal=False."""
    [message] = result(tmp_path, "follower_without_a_log")
    assert "pays a bill of its own" in message


def test_a_new_leader_uses_what_it_reads_when_it_has_a_segment_of_its_own(tmp_path: Path) -> None:
    """Until then, a leader that was suspended may begin a log without that."""
    assert result(tmp_path, "elected_before_its_segment_is_there") == ([], [1], [])


def test_a_follower_that_is_elected_before_its_journal_begins_takes_all_of_the_log(tmp_path: Path) -> None:
    """In one look. Its answers wait for a segment of its own, as when it is elected later."""
    found = result(tmp_path, "elected_between_its_restore_and_its_begin")
    assert found == ([True], [], [1, "new b"], ["b"], [])


def test_a_follower_that_is_elected_before_its_journal_begins_asks_nothing_behind_a_checkpoint(tmp_path: Path) -> None:
    """It exits to be started again from there. What it would ask for was paid for."""
    asked, [reason] = result(tmp_path, "elected_between_its_restore_and_its_begin_behind_a_checkpoint")
    assert (asked, reason) == ([], "another worker has come further, and its journal is not there")


def test_a_leader_without_a_log_saves_its_boundary(tmp_path: Path) -> None:
    """No other segment leads to the one that it begins."""
    assert result(tmp_path, "elected_where_no_log_is") == ["saves"]


def test_a_leader_without_a_log_commits_the_boundary_that_its_fit_takes_the_last_record_at(tmp_path: Path) -> None:
    """Its segment begins there."""
    assert result(tmp_path, "elected_where_no_log_is_left") == ([False, True, False], ["c"], ["replayed"])


def test_a_second_call_of_one_election_holds_nothing_back(tmp_path: Path) -> None:
    """The segment that its answers have waited for is there."""
    assert result(tmp_path, "told_twice_that_it_is_elected") == [1]


def test_a_leader_that_is_deposed_while_it_reads_the_journal_follows(tmp_path: Path) -> None:
    assert result(tmp_path, "deposed_while_it_begins") == ([], True, [1])


def test_a_leader_that_leads_again_takes_what_another_has_recorded_in_between(tmp_path: Path) -> None:
    """The loop of the fit was blocked, so both changes are seen at the same time."""
    assert result(tmp_path, "deposed_and_elected_in_one_step") == (["of the other", "new b"], ["b"], [])


def test_a_leader_that_is_deposed_takes_its_answers_back_and_asks_for_nothing(tmp_path: Path) -> None:
    """What its training has not seen comes from the new leader."""
    assert result(tmp_path, "deposed_with_an_answer_and_a_request") == (["A", "B"], ["a"], [])


def test_a_leader_that_leads_again_does_not_leave_out_what_its_successor_has_recorded(tmp_path: Path) -> None:
    """It is lost, so it exits to be started again from the newest checkpoint."""
    [reason] = result(tmp_path, "elected_behind_a_successor")
    assert reason == "the leader has begun another log"


def test_a_leader_that_is_deposed_before_its_first_boundary_stands_down(tmp_path: Path) -> None:
    """The new leader has begun in another state."""
    [reason] = result(tmp_path, "deposed_before_its_first_boundary")
    assert "before this one came to its first boundary" in reason


@pytest.mark.parametrize("leads_again", ["", "_and_elected"])
def test_a_leader_without_a_checkpoint_that_is_deposed_before_its_journal_begins_stands_down(
    tmp_path: Path, leads_again: str
) -> None:
    """Without this, it pays a bill of its own, from a start that no other worker has."""
    [reason] = result(tmp_path, f"deposed_between_its_restore_and_its_begin{leads_again}")
    assert "before this one came to its first boundary" in reason


def test_after_the_end_nothing_waits_and_nothing_runs(tmp_path: Path) -> None:
    assert result(tmp_path, "end") == (["new a"], None, False)
