"""Test that no answer is asked for twice: fits that are killed, and run to their end. See `tests/chaos/README.md`.

Each run is one of the harness, with kills that are written here. Their instants are random all the same: the provider
answers at random after random times.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.chaos.campaign import Campaign, Result
from tests.chaos.places import places
from tests.chaos.plan import Event, How, Kill, Run


def kill(how: How, count: int, event: Event = "answered") -> Kill:
    return Kill(how=how, event=event, count=count, delay=0.005)


KILLED = (kill("SIGKILL", 45), kill("SIGKILL", 30, "seen"))
# Every way to be interrupted is there twice or more. The other programs are those of the campaigns in `test_chaos`.
KILLS = {
    "omega": (kill("SIGKILL", 70), kill("Ctrl-C", 20)),
    "agent": (kill("cut off", 70), kill("SIGKILL", 20)),
    "stream": (kill("exception", 30), kill("SIGTERM", 20)),
    "client": (kill("Ctrl-C", 30), kill("cut off", 90)),
    "failing": KILLED,
    "refused": (kill("SIGKILL", 60), kill("exception", 40)),
    "twins": KILLED,
}


def carried_out(root: Path, program: str, kills: tuple[Kill, ...], **fields: Any) -> Result:
    defaults = {"seed": 3, "save_freq": "epoch", "is_shuffled": False, "deletes": False, "keeps_all": False}
    with places(root, store="dir", coordinator="file") as made:
        run = Run(**{**defaults, **fields}, program=program, kills=(kills,))
        return Campaign(root, made).carry_out(run)


@pytest.mark.parametrize("program", KILLS)
def test_no_answer_is_asked_for_twice_after_interruptions(tmp_path: Path, program: str) -> None:
    """All lives see the same answers in the same order, and pass the same states."""
    result = carried_out(tmp_path, program, KILLS[program], is_shuffled=program in {"omega", "client"})
    assert result.violations == []
    assert result.kills.total() == 2, "a kill did not happen"
    assert result.replayed > 0


def test_the_journal_of_a_whole_run_leads_to_its_final_state(tmp_path: Path) -> None:
    """A run that is started again from its first checkpoint asks for nothing."""
    result = carried_out(tmp_path, "few-shot", KILLED, save_freq=3, keeps_all=True)
    assert result.violations == []


def test_a_fit_that_saves_at_notices_only_asks_for_no_answer_twice(tmp_path: Path) -> None:
    """With `save_freq=False`, the answers of the batch that is cut off are written at the notice."""
    result = carried_out(tmp_path, "few-shot", (kill("cut off", 42), kill("SIGTERM", 20)), save_freq=False)
    assert result.violations == []
    assert result.replayed > 0


def test_a_finished_run_leaves_nothing(tmp_path: Path) -> None:
    """The last worker out also deletes the journal."""
    result = carried_out(tmp_path, "twins", (kill("SIGKILL", 60),), deletes=True)
    assert result.violations == []


@pytest.mark.parametrize(
    ("bug", "program", "check"),
    [
        ("entry dropped", "few-shot", "lost"),
        ("exit code", "twins", "ends"),
        ("torn commit", "few-shot", "newest"),
    ],
)
def test_an_error_is_found(tmp_path: Path, bug: str, program: str, check: str) -> None:
    """A harness that finds nothing would prove nothing. What a fit has seen is durable, so there is one to drop."""
    how: How = "SIGKILL" if check == "lost" else "SIGTERM"
    result = carried_out(tmp_path, program, (kill(how, 45, "seen"),), bug=bug)
    assert any(found.startswith(f"{check}: ") for found in result.violations), result.violations
