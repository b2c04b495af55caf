"""Test our callback as a drop-in for synalinks' own `BackupAndRestore`, and the failures of that which it corrects.

The numbers are those of the list of the host's failures. Cheap tests show that the host fails.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distributed_backup.position import Position
from tests.support.processes import Child

SCENARIOS = "tests.integration.host_scenarios"


def result(tmp_path: Path, name: str, *arguments: Any) -> Any:
    with Child(f"{SCENARIOS}:{name}", *arguments, log=tmp_path / "log") as child:
        return child.result()


# ---------------------------------------------------------------- arguments


def test_the_first_four_arguments_and_their_defaults_are_the_hosts(tmp_path: Path) -> None:
    """Names, order and defaults are the same as in synalinks."""
    host, ours = result(tmp_path, "signatures")
    assert ours == host
    assert [name for name, _ in ours] == ["backup_dir", "save_freq", "double_checkpoint", "delete_checkpoint"]


def test_what_the_host_refuses_is_refused_with_its_words(tmp_path: Path) -> None:
    """Our ValueErrors begin with the same sentence as synalinks'."""
    cases = [("",), (None,), ("run", "batch"), ("run", 0.15), ("run", None)]
    pairs = result(tmp_path, "refused", cases)
    for host, ours in pairs:
        assert host
        assert ours.split(". ")[0] == host.split(". ")[0]


def test_whole_numbers_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    """`True`, 0 and negative numbers of batches are refused. synalinks accepts them."""
    pairs = result(tmp_path, "refused", [("run", True), ("run", 0), ("run", -1)])
    assert [host for host, _ in pairs] == ["", "", ""]
    assert all(ours.startswith("ValueError: Invalid value for argument `save_freq`") for _, ours in pairs)


# ---------------------------------------------------------------- what the host gets wrong


def test_1_without_a_schedule_nothing_is_written_before_the_end(tmp_path: Path) -> None:
    """With `save_freq=False` only the final state is written. synalinks saves at each batch."""
    found = result(tmp_path, "saves_without_schedule")
    assert found["looks"] == 42
    assert found["seen"] == []
    assert found["left"] == ["0000000001-00000003-00000000.final.ckpt"]
    assert found["host"] == ["latest.variables.json", "training_metadata.json"]


def test_2_a_damaged_checkpoint_is_skipped_with_a_warning_for_the_one_before(tmp_path: Path) -> None:
    """With `double_checkpoint` the run resumes an epoch earlier and ends exactly."""
    found = result(tmp_path, "damaged", True)
    assert len(found["names"]) == 2
    assert found["epochs"] == [1, 2]
    assert found["wrong"] == []
    assert {message.partition(" reason=")[0] for message in found["logged"]} == {
        f"checkpoint skipped name={found['names'][0]}"
    }


def test_2_a_damaged_checkpoint_with_none_before_it_is_an_error_that_deletes_nothing(tmp_path: Path) -> None:
    """The error names the checkpoint, nothing is deleted, and no new run begins."""
    found = result(tmp_path, "damaged", False)
    assert found["left"] == found["names"]
    assert found["names"][0] in found["error"]
    assert "Nothing was deleted" in found["error"]


def test_3_a_stop_because_of_a_preemption_is_no_finish(tmp_path: Path) -> None:
    """If the user's handler sets `stop_training` too, the backup is kept and the run resumes to its end."""
    found = result(tmp_path, "graceful_stop")
    assert found["wrong"] == []
    assert found["kept"] == [(epoch, batch) for epoch in range(3) for batch in (1, 2, 3)]


def test_4_5_a_resume_keeps_the_population_and_pays_for_no_answer_twice(tmp_path: Path) -> None:
    """A resume inside an epoch ends exactly and repeats no request. synalinks does neither."""
    found = result(tmp_path, "resumed_by_both")
    ours, host = found["ours"], found["host"]
    assert ours["interrupted"]
    assert host["interrupted"]
    assert ours["exact"]
    assert ours["in_flight"] > 0
    assert ours["repeated"] == 0
    assert not host["exact"]
    assert host["repeated"] > host["in_flight"]


def test_6_a_second_interruption_in_the_first_resumed_epoch_is_saved_under_that_epoch(tmp_path: Path) -> None:
    """Our checkpoint has the third epoch. synalinks' metadata has the first."""
    assert result(tmp_path, "second_interruption") == {"ours": (2, 2), "host": 0}


def test_7_a_checkpoint_is_one_file(tmp_path: Path) -> None:
    """A copy of that file in another directory is enough to resume exactly."""
    found = result(tmp_path, "files_of_a_checkpoint")
    assert [name for name in found["files"] if name.endswith(".ckpt")] == ["0000000001-00000001-00000003.ckpt"]
    assert found["wrong"] == []


# ---------------------------------------------------------------- a backup of the host's


def test_a_directory_of_the_hosts_callback_is_restored_from_and_cleared_at_the_end(tmp_path: Path) -> None:
    """Variables and epoch are restored, with the population, which synalinks itself loses."""
    found = result(tmp_path, "legacy")
    assert found["interrupted"]
    assert found["written"] == [
        "latest.variables.json",
        "latest.variables.json.bkp",
        "training_metadata.json",
        "training_metadata.json.bkp",
    ]
    assert found["epochs"] == [2]
    assert found["population"] > 0
    assert found["wrong"] == []
    assert found["logged"] == found["left"] == []


def test_a_torn_backup_of_the_hosts_is_skipped_for_the_one_before(tmp_path: Path) -> None:
    """The run resumes from the older pair of files, with one warning."""
    found = result(tmp_path, "legacy", True)
    assert found["epochs"] == [1, 2]
    assert found["resumed_population"] > 0
    assert [message.partition(" reason=")[0] for message in found["logged"]] == [
        "backup skipped name=latest.variables.json"
    ]
    assert found["left"] == []


# ---------------------------------------------------------------- the end of a run


@pytest.mark.parametrize("early", [False, True], ids=["to the end", "EarlyStopping"])
@pytest.mark.parametrize("delete", [False, True], ids=["kept", "deleted"])
def test_a_finished_run_deletes_its_backup_if_it_is_to(tmp_path: Path, delete: bool, early: bool) -> None:
    """A stop by EarlyStopping finishes the run. `delete_checkpoint=False` keeps the last checkpoint."""
    found = result(tmp_path, "finish", delete, early)
    epochs = 1 if early else 3
    assert found["epochs"] == list(range(epochs))
    assert found["exists"] is not delete
    assert found["position"] == (None if delete else Position(epochs))


# ---------------------------------------------------------------- a sink of a subclass


def test_a_subclass_receives_the_events_that_the_event_log_has(tmp_path: Path) -> None:
    """`_event_sinks` adds sinks to the event log and the metrics, and they are closed like these."""
    found = result(tmp_path, "event_sinks")
    assert {"joined", "elected", "committed", "finished"} <= set(found["received"])
    assert found["received"][: len(found["logged"])] == found["logged"]
    assert found["closed"]


# ---------------------------------------------------------------- how callbacks are given


def test_it_does_not_matter_where_our_callback_stands(tmp_path: Path) -> None:
    """At any place of the list, in a tuple or alone, our callback is exact and called in the training thread."""
    found = result(tmp_path, "order")
    assert found["wrong"] == []
    assert found["threads"] == ["MainThread"]
