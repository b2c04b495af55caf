"""The verdict of the demonstration on invented recordings. No process is started, and synalinks is not imported."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distributed_backup.demo.messages import REFERENCE, Plan
from distributed_backup.demo.scenario import Recording
from distributed_backup.demo.text import format_verdict
from distributed_backup.demo.verdict import Verdict, judge
from distributed_backup.position import Position
from tests.support.demo_story import CALLS, ON_REDIS, PLAN, STATE, record_of, whole_story


@pytest.fixture
def recording() -> Recording:
    return whole_story()[1]


def verdict_of(recording: Recording, *, keep: bool = False, plan: Plan = PLAN) -> Verdict:
    return judge(recording, plan, keep=keep)


# -------------------------------------------------------------------- figures


def test_the_verdict_on_a_run_in_which_everything_held(recording: Recording) -> None:
    verdict = verdict_of(recording)
    assert verdict.problems == ()
    assert verdict.holds
    assert verdict.final_state_equal
    assert verdict.workers == 2
    assert verdict.checkpoints_written == 2
    assert verdict.calls_uninterrupted == verdict.calls_paid == 6 * CALLS
    assert (verdict.calls_repeated, verdict.calls_missing) == (0, 0)
    assert verdict.backup_deleted is True


def test_the_figures_of_the_preemption_are_counted_from_the_signal(recording: Recording) -> None:
    found = verdict_of(recording).sigterm
    assert (found.worker, found.last_boundary, found.on_disk) == ("worker-1", (1, 1), (1, 1))
    # One invented message each 10 ms: notice, commit, exit, election.
    assert (found.durable_ms, found.gone_ms, found.next_leader_ms) == (20.0, 30.0, 40.0)
    assert found.in_flight_durable_ms is None
    assert found.exit_code == 143


def test_calls_that_were_cut_off_are_counted_apart_from_those_that_were_paid(recording: Recording) -> None:
    """Each signal cut one call off. Worker 2 led for three answers."""
    verdict = verdict_of(recording)
    assert verdict.calls_cut_off == 2
    assert verdict.calls_by_worker == {"worker-1": 6 * CALLS - 3, "worker-2": 3}


def test_a_boundary_that_was_on_the_disk_before_the_signal_was_durable_at_once(recording: Recording) -> None:
    victim = recording.sigterm.record
    victim.commits = [(1.0, Position(1, 2))]
    found = verdict_of(recording).sigterm
    assert (found.durable_ms, found.in_flight_durable_ms) == (0.0, 0.0)


# -------------------------------------------------------------------- promises


def only_problem(recording: Recording, *, keep: bool = False) -> str:
    verdict = verdict_of(recording, keep=keep)
    assert not verdict.holds
    (problem,) = verdict.problems
    return problem


def test_a_different_final_state_is_a_problem_that_names_worker_and_part(recording: Recording) -> None:
    record_of(recording, "worker-2").final_state = {**STATE, "metrics": "cc"}
    assert "worker-2: metrics" in only_problem(recording)
    assert verdict_of(recording).differences == ("worker-2: metrics",)


def test_a_part_of_the_state_that_is_missing_is_a_difference(recording: Recording) -> None:
    record_of(recording, "worker-1").final_state = {"metrics": "bb"}
    assert "worker-1: program_trainable" in only_problem(recording)


def test_nothing_to_compare_with_is_a_problem(recording: Recording) -> None:
    record_of(recording, REFERENCE).final_state = {}
    verdict = verdict_of(recording)
    assert not verdict.final_state_equal
    assert "the final state differs from the uninterrupted run's in worker-1: metrics" in verdict.problems


def test_a_worker_that_did_not_finish_is_a_problem(recording: Recording) -> None:
    record_of(recording, "worker-2").final_state = {}
    verdict = verdict_of(recording)
    assert (verdict.workers, verdict.final_state_equal) == (1, False)
    assert [problem.rpartition(" ")[2] for problem in verdict.problems] == list(STATE)[::-1]
    assert any("1 of 2 workers ended in exactly the state" in line for line in format_verdict(verdict, PLAN))


def test_a_last_boundary_that_never_became_durable_is_a_problem(recording: Recording) -> None:
    record_of(recording, "worker-1", 0).commits.pop()
    assert "not durable within the grace period" in only_problem(recording)


def test_a_last_boundary_that_became_durable_too_late_is_a_problem(recording: Recording) -> None:
    victim = record_of(recording, "worker-1", 0)
    at, position = victim.commits.pop()
    victim.commits.append((at + 6, position))
    assert "not durable within the grace period" in only_problem(recording)


@pytest.mark.parametrize("on_disk", [None, Position(1)])
def test_a_disk_that_does_not_hold_the_last_boundary_is_a_problem(
    recording: Recording, on_disk: Position | None
) -> None:
    recording.sigterm = replace(recording.sigterm, on_disk=on_disk)
    assert "the disk held" in only_problem(recording)


@pytest.mark.parametrize(("code", "delay"), [(1, 0), (-9, 0), (143, 6)])
def test_an_end_that_is_late_or_not_by_preemption_is_a_problem(recording: Recording, code: int, delay: float) -> None:
    victim = record_of(recording, "worker-1", 0)
    assert victim.exited_at is not None
    victim.exit_code, victim.exited_at = code, victim.exited_at + delay
    assert "did not exit with code 143 within the grace period" in only_problem(recording)


@pytest.mark.parametrize(
    ("plan", "seconds", "holds"), [(ON_REDIS, 3.49, True), (ON_REDIS, 3.51, False), (PLAN, 9, True)]
)
def test_with_a_lease_the_next_leader_has_its_duration_and_a_tick(
    recording: Recording, plan: Plan, seconds: float, holds: bool
) -> None:
    recording.sigkill = replace(recording.sigkill, next_leader_at=recording.sigkill.at + seconds)
    verdict = verdict_of(recording, plan=plan)
    assert verdict.holds is holds
    assert verdict.sigkill.next_leader_ms == pytest.approx(seconds * 1000)
    limits = (verdict.sigkill.lease_ms, verdict.sigkill.limit_ms)
    assert limits == ((3000.0, 3500.0) if plan is ON_REDIS else (None, None))
    assert all("more than 3500 ms" in problem for problem in verdict.problems)


def test_an_answer_that_is_paid_again_is_a_problem(recording: Recording) -> None:
    """The killed worker had the answer, and its successor asks for it again."""
    (request, *_) = record_of(recording, "worker-2", 0).answers
    record_of(recording, "worker-2").answers[request] += 1
    assert only_problem(recording) == "LM calls paid more often than in the uninterrupted run: 1"
    verdict = verdict_of(recording)
    assert (verdict.calls_paid, verdict.calls_repeated) == (6 * CALLS + 1, 1)


def test_workers_that_each_pay_for_their_own_answers_are_a_problem() -> None:
    """So it is without a journal: the follower asks, too, and the restarted workers ask again."""
    story, recording = whole_story()
    story.answer(record_of(recording, "worker-2", 0), Position(0, 1), range(CALLS))
    story.answer(record_of(recording, "worker-2"), Position(1, 1), range(CALLS))
    assert only_problem(recording) == f"LM calls paid more often than in the uninterrupted run: {2 * CALLS}"


def test_a_repetition_is_not_hidden_by_a_call_that_is_missing(recording: Recording) -> None:
    """As many calls are paid as in the uninterrupted run, and they are others."""
    answers = record_of(recording, "worker-1").answers
    first, second = list(answers)[:2]
    answers[first], answers[second] = 2, 0
    verdict = verdict_of(recording)
    assert (verdict.calls_paid, verdict.calls_repeated, verdict.calls_missing) == (6 * CALLS, 1, 1)
    assert verdict.problems == (
        "LM calls paid more often than in the uninterrupted run: 1",
        "LM calls of the uninterrupted run that no worker has paid: 1",
    )


def test_equal_requests_of_the_uninterrupted_run_may_be_paid_as_often(recording: Recording) -> None:
    (request, *_) = record_of(recording, "worker-1").answers
    for record in (record_of(recording, REFERENCE), record_of(recording, "worker-1")):
        record.answers[request] += 1
    assert verdict_of(recording).holds


def test_a_worker_that_leaves_the_journal_is_a_problem() -> None:
    story, recording = whole_story()
    fields = {"reason": "the state differs in metrics", "epoch": 1, "batch": 1}
    story.add(record_of(recording, "worker-2"), "diverged", fields)
    assert only_problem(recording) == "worker-2 stopped following the journal: the state differs in metrics"


def test_a_backup_left_behind_is_a_problem_unless_it_was_to_be_kept(recording: Recording) -> None:
    recording.leftovers = ("run.json",)
    assert verdict_of(recording, keep=True).holds
    assert verdict_of(recording, keep=True).backup_deleted is None
    assert only_problem(recording) == "the last worker out did not delete the backup: run.json"


def test_a_checkpoint_that_does_not_verify_is_a_problem(recording: Recording) -> None:
    recording.unreadable = ("some.ckpt",)
    assert only_problem(recording) == "checkpoint some.ckpt does not verify"


def test_neither_the_verdict_nor_the_plan_shows_credentials(recording: Recording) -> None:
    verdict = verdict_of(recording, plan=ON_REDIS)
    assert verdict.as_json()["coordinator"] == "redis://host/0"
    assert verdict_of(recording).as_json()["coordinator"] == "file:"
    for shown in (repr(ON_REDIS), repr(verdict), *format_verdict(verdict, ON_REDIS)):
        assert "secret" not in shown


# -------------------------------------------------------------------- texts


def test_the_text_of_the_verdict_names_the_problems(recording: Recording) -> None:
    assert format_verdict(verdict_of(recording), PLAN)[0] == "VERDICT: everything that is promised held"
    record_of(recording, "worker-2").final_state = {**STATE, "metrics": "cc"}
    lines = format_verdict(verdict_of(recording), PLAN)
    assert lines[0] == "VERDICT: NOT everything that is promised held"
    assert "worker-2: metrics" in lines[1]
    assert any("1 of 2 workers ended in exactly the state" in line for line in lines)


def test_the_text_of_the_verdict_shows_one_bill(recording: Recording) -> None:
    lines = format_verdict(verdict_of(recording), PLAN)
    assert "  LM calls             60 uninterrupted, 60 paid by all workers together, 0 repeated" in lines
    assert "    by worker          worker-1 57, worker-2 3, with all restarts" in lines
    assert "    under way          2 at the signals, and asked again by the next leader" in lines
    record_of(recording, "worker-1", 0).asked -= 1
    record_of(recording, "worker-2", 0).asked -= 1
    assert "    under way          0 at the signals" in format_verdict(verdict_of(recording), PLAN)


def test_the_text_of_the_verdict_says_why_the_timeline_shows_another_time(recording: Recording) -> None:
    """The timeline counts from the last event of the killed leader, the verdict from the signal."""
    lines = format_verdict(verdict_of(recording), PLAN)
    (sigkill,) = (number for number, line in enumerate(lines) if line.startswith("  SIGKILL"))
    assert lines[sigkill + 1].endswith("20.0 ms, exact: the demo sent the signal. `timeline` shows an upper bound")


def test_the_text_of_the_verdict_says_that_a_lease_had_to_run_out(recording: Recording) -> None:
    words = "It took over when the lease had run out, 3.0 s after its last renewal"
    assert sum(words in line for line in format_verdict(verdict_of(recording, plan=ON_REDIS), ON_REDIS)) == 1
    assert not any("lease" in line for line in format_verdict(verdict_of(recording), PLAN))
