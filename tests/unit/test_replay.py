"""What the log says about each stage of a fit: answers, the boundary at its end, and when it is followed no further."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from distributed_backup.checkpoints.journal_format import (
    Boundary,
    Record,
    Void,
)
from distributed_backup.errors import StoreError
from distributed_backup.position import Position
from tests.support.answering import END, Fit, answer, boundary, ended, keys, led, quiet, stage


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(main())  # type: ignore[arg-type]


# ---------------------------------------------------------------- a log that has ended


def test_a_log_is_replayed_stage_by_stage_and_continued_at_its_end() -> None:
    async def main() -> None:
        fit = Fit()
        fit.begin(stage(answer("a", 1), end=boundary(1)), stage(answer("b", 2)))
        fit.ask("a")
        await quiet()
        fit.boundary(1)
        assert fit.writer.names == ["replay_begins", "boundary", "continue_log"]
        assert fit.writer.steps[-1][1:] == (END, boundary(1), None)
        assert fit.replay.is_active
        fit.ask("b")
        await quiet()
        assert (fit.got, fit.asked, fit.replay.is_active) == ([1, 2], [], False)
        assert fit.events == [("replayed", {"answers": 2, "epoch": 0, "batch": 1})]
        fit.ask("c")
        await quiet()
        assert fit.asked == ["c"]

    run(main)


def test_a_log_that_ends_at_its_begin_is_continued_at_once() -> None:
    async def main() -> None:
        fit = Fit()
        fit.begin()
        assert (fit.writer.names, fit.events, fit.replay.is_active) == (["replay_begins", "continue_log"], [], False)

    run(main)


def test_a_log_that_can_not_be_read_changes_nothing() -> None:
    """So the caller may find it again and begin anew."""

    async def main() -> None:
        fit = Fit()
        with pytest.raises(StoreError):
            fit.begin(StoreError("busy", path="p"))
        assert (fit.writer.names, fit.replay.is_active) == ([], False)
        fit.begin(stage(answer("a", 1)))
        fit.ask("a")
        await quiet()
        assert fit.got == [1]

    run(main)


def test_answers_are_handed_out_in_the_order_of_the_log() -> None:
    async def main() -> list[Any]:
        fit = Fit()
        fit.begin(stage(answer("a", 1), answer("b", 2), answer("a", 3, 1)))
        for key in ("a", "a", "b"):
            fit.ask(key)
        await quiet()
        return fit.got

    assert run(main) == [1, 2, 3]


def test_the_last_answer_with_a_ticket_counts() -> None:
    """The one before could not be used, for example after an upgrade, and its request was sent again."""

    async def main() -> None:
        fit = Fit()
        fit.begin(stage(answer("a", "old"), answer("b", 2), answer("a", "new")))
        fit.ask("a")
        fit.ask("b")
        await quiet()
        assert (fit.got, fit.asked, fit.replay.is_active) == ([2, "new"], [], False)

    run(main)


def test_answers_that_are_left_over_do_not_hold_up_the_next_stage() -> None:
    async def main() -> None:
        fit = Fit()
        fit.begin(stage(answer("a", 1), answer("b", 2), end=boundary(1)), stage(answer("c", 3)))
        fit.ask("b")
        await quiet()
        fit.boundary(1)
        fit.ask("c")
        await quiet()
        assert fit.got == [2, 3]
        fit.boundary(2)
        fit.ask("d")
        await quiet()
        assert fit.asked == ["d"]

    run(main)


# ---------------------------------------------------------------- divergence


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        (boundary(1, "other"), "the state differs in trainable"),
        (boundary(1, random="x"), "the state differs in random"),
        (boundary(2), "this worker is at epoch 0, batch 2, and the log at epoch 0, batch 1"),
    ],
)
def test_a_fit_in_another_state_is_reported_and_asks_from_there_on(
    caplog: pytest.LogCaptureFixture, own: Boundary, reason: str
) -> None:
    """The error names the position and the group of variables. Only this once."""

    async def main() -> None:
        fit = Fit()
        fit.begin(stage(answer("a", 1), end=boundary(1)), stage(answer("a", 2), end=boundary(2)))
        fit.ask("a")
        await quiet()
        fit.answers.boundary(own.position, lambda: own.digests, due=False)
        assert [fields["reason"] for kind, fields in fit.events if kind == "diverged"] == [reason]
        assert fit.writer.names[-1] == "give_up"
        fit.ask("a")
        await quiet()
        fit.boundary(3, "another")
        assert (fit.asked, fit.events_seen.count("diverged"), fit.lost) == (["a"], 1, [])

    with caplog.at_level(logging.ERROR):
        run(main)
    [record] = caplog.records
    assert reason in record.getMessage()
    assert "asks for the answers that follow" in record.getMessage()


def test_a_log_that_is_missing_is_not_reported_as_another_state(caplog: pytest.LogCaptureFixture) -> None:
    """The error names no tool, reward or data as the cause."""

    async def main() -> None:
        fit = Fit()
        fit.follow()
        fit.replay.cut_off("the leader has begun another log")
        assert (fit.events_seen, fit.lost) == (["diverged"], ["the leader has begun another log"])

    with caplog.at_level(logging.ERROR):
        run(main)
    assert [record.getMessage() for record in caplog.records] == [
        "the fit can't follow the journal any further, after epoch 0, batch 0: the leader has begun another log. "
        "It asks for nothing any more"
    ]


def test_a_request_that_is_not_made_any_more_is_a_divergence() -> None:
    """What waits behind it is handed out."""

    async def main() -> None:
        fit = Fit()
        fit.begin(stage(answer("a", 1), answer("b", 2), end=boundary(1)))
        fit.ask("b")
        await quiet()
        fit.replay.delivery._stalled()
        await quiet()
        assert (fit.got, fit.events_seen) == ([2], ["diverged"])
        fit.ask("c")
        await quiet()
        assert fit.asked == ["c"]

    run(main)


# ---------------------------------------------------------------- poison


@pytest.mark.parametrize(("failures", "deaths", "is_void"), [(1, 0, False), (2, 0, True), (0, 2, False), (0, 3, True)])
def test_answers_are_void_after_two_exceptions_or_three_deaths(failures: int, deaths: int, is_void: bool) -> None:
    async def main() -> None:
        fit = Fit()
        fit.begin(stage(answer("a", 1), failures=failures, deaths=deaths))
        fit.ask("a")
        await quiet()
        assert fit.asked == (["a"] if is_void else [])
        assert ("voided" in fit.events_seen) is is_void
        assert fit.writer.steps[-1] == ("continue_log", END, boundary(0), Void() if is_void else None)

    run(main)


def test_a_stage_that_was_passed_is_never_void() -> None:
    async def main() -> list[Any]:
        fit = Fit()
        fit.begin(stage(answer("a", 1), end=boundary(1), failures=9, deaths=9), stage())
        fit.ask("a")
        await quiet()
        return fit.got

    assert run(main) == [1]


# ---------------------------------------------------------------- following


def test_a_follower_takes_records_that_come_before_and_after_its_requests() -> None:
    async def main() -> None:
        fit = Fit()
        fit.follow(answer("a", 1))
        fit.ask("a")
        fit.ask("b")
        await quiet()
        assert fit.got == [1]
        fit.replay.extend([answer("b", 2)])
        await quiet()
        assert (fit.got, fit.asked) == ([1, 2], [])

    run(main)


@pytest.mark.parametrize("is_ahead", [False, True])
def test_a_follower_compares_each_boundary_with_the_marker(is_ahead: bool) -> None:
    """It comes to the boundary before or after the marker is read. What follows the marker is the next stage's."""

    async def main() -> None:
        fit = Fit()
        fit.follow(answer("a", 1))
        fit.ask("a")
        await quiet()
        records: list[Record] = [boundary(1), answer("a", 2)]
        if is_ahead:
            fit.boundary(1)
            fit.replay.extend(records)
        else:
            fit.replay.extend(records)
            fit.boundary(1)
        fit.ask("a")
        await quiet()
        assert (fit.got, fit.lost) == ([1, 2], [])
        if is_ahead:
            fit.boundary(2, "other")
            fit.replay.extend([boundary(2)])
        else:
            fit.replay.extend([boundary(2)])
            fit.boundary(2, "other")
        assert fit.lost == ["the state differs in trainable"]

    run(main)


def test_a_marker_that_is_repeated_is_one_boundary() -> None:
    """A new segment begins with the boundary that the last one ended with."""

    async def main() -> list[Any]:
        fit = Fit()
        fit.follow(boundary(0), answer("a", 1), boundary(1), boundary(1), answer("a", 2))
        fit.ask("a")
        await quiet()
        fit.boundary(1)
        fit.ask("a")
        await quiet()
        return fit.got

    assert run(main) == [1, 2]


def test_a_follower_that_is_lost_asks_nothing_and_says_so_once() -> None:
    async def main() -> None:
        fit = Fit()
        fit.follow(boundary(1))
        waits = fit.ask("a")
        await quiet()
        fit.replay.diverged("again")
        fit.replay.extend([answer("a", 1)])
        fit.boundary(1)
        await quiet()
        assert (waits.done(), fit.asked) == (False, [])
        assert fit.lost == ["this worker asks for what the leader has not asked for"]
        assert fit.events_seen == ["diverged"]
        waits.cancel()

    run(main)


def test_a_request_of_a_follower_that_is_cancelled_gives_its_ticket_back() -> None:
    """So did that of the leader, and its retry was recorded."""

    async def main() -> Any:
        fit = Fit()
        fit.follow()
        attempt = fit.ask("a")
        await quiet()
        attempt.cancel()
        await quiet()
        retry = fit.ask("a")
        await quiet()
        fit.replay.extend([answer("a", 1)])
        return await retry

    assert run(main) == 1


def test_a_request_that_is_cancelled_as_the_boundary_comes_does_not_lose_the_follower() -> None:
    """The leader did not need it in the end either."""

    async def main() -> None:
        fit = Fit()
        fit.follow()
        attempt = fit.ask("a")
        await quiet()
        attempt.cancel()
        fit.replay.extend([boundary(1)])
        await quiet()
        assert (attempt.cancelled(), fit.lost) == (True, [])

    run(main)


def test_a_request_that_is_cancelled_as_the_leader_changes_keeps_nothing_of_the_former_log() -> None:
    """Its retry takes what the new leader has recorded."""

    async def main() -> Any:
        fit = Fit()
        fit.follow()
        attempt = fit.ask("a")
        await quiet()
        fit.replay.extend([answer("a", "of the former")])
        attempt.cancel()
        fit.step_down()
        fit.replay.extend([answer("b", "first"), answer("a", "of the new")])
        await quiet()
        fit.ask("b")
        retry = fit.ask("a")
        await quiet()
        assert retry.done()
        return fit.got

    assert run(main) == ["first", "of the new"]


def test_a_void_mark_loses_a_follower_only_if_it_has_used_the_answers() -> None:
    async def main() -> None:
        new = Fit()
        new.follow(answer("a", "void"), Void(), answer("a", 1))
        assert await new.ask("a") == 1
        old = Fit()
        old.follow(answer("a", "void"))
        await old.ask("a")
        old.replay.extend([Void(), answer("a", 1)])
        assert old.lost == ["the leader asks again for what this worker has used"]

    run(main)


def test_a_void_mark_loses_a_worker_that_has_used_the_answers_as_a_leader() -> None:
    """It can't use the answers that come in their place."""

    async def main() -> None:
        fit = led()
        await fit.answered("a", 1)
        fit.step_down()
        fit.replay.extend([Void()])
        assert fit.lost == ["the leader asks again for what this worker has used"]
        unused = led()
        unused.step_down()
        unused.replay.extend([Void(), answer("a", 1)])
        assert await unused.ask("a") == 1

    run(main)


def test_an_answer_that_can_not_be_used_loses_a_follower() -> None:
    """It runs other versions of the libraries. It must not ask."""

    async def main() -> None:
        fit = Fit()
        record = answer("a", 1)
        object.__setattr__(record, "value", b"{")
        fit.follow(record)
        waits = fit.ask("a")
        await quiet()
        assert (waits.done(), fit.asked, len(fit.lost)) == (False, [], 1)
        waits.cancel()

    run(main)


def test_a_request_that_outlives_its_batch_is_not_sent_by_a_follower() -> None:
    """It takes the answer when the leader has it, in the next stage."""

    async def main() -> None:
        fit = Fit()
        fit.follow()
        late = fit.ask("a")
        await quiet()
        fit.boundary(1)
        await quiet()
        assert fit.asked == []
        fit.replay.extend([boundary(1), answer("a", 1)])
        assert (await late, fit.lost) == (1, [])

    run(main)


# ---------------------------------------------------------------- a follower that leads


def test_a_follower_that_leads_continues_the_log_and_asks() -> None:
    async def main() -> None:
        fit = Fit()
        fit.follow(answer("a", 1), answer("b", 2))
        fit.ask("a")
        fit.ask("c")
        await quiet()
        fit.replay.end_of_log(ended(END))
        await quiet()
        assert (fit.asked, fit.got, fit.writer.names[-1]) == (["c"], [1], "continue_log")
        assert fit.writer.steps[-1] == ("continue_log", END, boundary(0), None)
        fit.respond("c", 3)
        await quiet()
        # New answers come after those of the log.
        assert fit.got == [1]
        fit.ask("b")
        await quiet()
        assert (fit.got, keys(fit.writer.records)) == ([1, 2, 3], ["c"])

    run(main)


def test_a_follower_that_is_far_behind_leads_when_it_has_come_to_the_end() -> None:
    async def main() -> None:
        fit = Fit()
        fit.follow(answer("a", 1), boundary(1), answer("a", 2))
        fit.replay.end_of_log(ended(END))
        fit.ask("a")
        await quiet()
        assert fit.replay.is_following
        fit.boundary(1)
        fit.ask("a")
        fit.ask("b")
        await quiet()
        assert (fit.got, fit.asked, fit.replay.is_following) == ([1, 2], ["b"], False)
        assert ("continue_log", END, boundary(1), None) in fit.writer.steps

    run(main)


def test_a_follower_ahead_of_the_last_marker_writes_it() -> None:
    """The leader died before it wrote the marker."""

    async def main() -> None:
        fit = Fit()
        fit.follow(answer("a", 1))
        await fit.ask("a")
        fit.boundary(1)
        fit.replay.end_of_log(ended(END))
        name, position, digests, due = fit.writer.steps[-1]
        assert (name, position, digests(), due) == ("boundary", Position(0, 1), boundary(1).digests, False)
        assert fit.writer.names[-2] == "continue_log"

    run(main)


def test_a_follower_without_a_log_begins_one() -> None:
    async def main() -> None:
        fit = Fit()
        fit.follow()
        fit.ask("a")
        await quiet()
        fit.replay.end_of_log(ended(None))
        await quiet()
        assert (fit.asked, fit.writer.steps[-1]) == (["a"], ("begin_at", boundary(0), ()))

    run(main)


def test_a_log_that_begins_behind_a_lost_one_has_all_answers_since_its_beginning() -> None:
    """A restart finds nothing before it, and would pay for them again. What is not used yet waits for the segment."""

    async def main() -> None:
        fit = led()
        await fit.answered("led", 0)
        fit.step_down()
        fit.replay.extend([answer("a", 1), answer("b", 2)])
        await fit.ask("a")
        fit.writer.is_durable = False
        fit.replay.end_of_log(ended(None))
        waits = fit.ask("b")
        await quiet()
        assert fit.writer.steps[-1] == ("begin_at", boundary(0), (answer("led", 0), answer("a", 1), answer("b", 2)))
        assert not waits.done()
        fit.writer.flush()
        await quiet()
        assert (fit.got, fit.asked, keys(fit.writer.records)) == ([0, 1, 2], ["led"], ["led"])

    run(main)


def test_a_log_that_begins_behind_a_lost_one_begins_at_the_last_boundary_of_the_fit() -> None:
    """The fit was ahead of its log. The answers before this boundary are in none that is left."""

    async def main() -> None:
        fit = Fit()
        fit.follow(answer("a", 1))
        await fit.ask("a")
        fit.boundary(1)
        fit.replay.end_of_log(ended(None))
        assert (fit.writer.steps[-1], fit.writer.records) == (("begin_at", boundary(1), ()), [])

    run(main)


# ---------------------------------------------------------------- a leader that is deposed


def test_a_leader_that_is_deposed_in_a_replay_follows_from_the_last_boundary() -> None:
    """An answer that waits for its turn comes again, and in its turn."""

    async def main() -> None:
        fit = Fit()
        fit.begin(stage(answer("a", 1), answer("b", 2), answer("c", 3), end=boundary(1)), stage(answer("d", 4)))
        fit.ask("a")
        fit.ask("c")
        await quiet()
        assert fit.got == [1]
        since = fit.answers.since_boundary()
        assert since == (boundary(0), [answer("a", 1)])
        fit.replay.follow(boundary(0))
        await quiet()
        assert fit.got == [1]
        fit.replay.extend([answer("b", 2), answer("c", 3), boundary(1)])
        await fit.ask("b")
        await quiet()
        fit.boundary(1)
        assert (fit.got, fit.asked, fit.replay.is_following) == ([1, 2, 3], [], True)
        fit.ask("d")
        await quiet()
        assert (fit.asked, fit.replay.is_following) == ([], True)
        fit.replay.extend([answer("d", "of the new leader")])
        await quiet()
        assert fit.got[-1] == "of the new leader"

    run(main)


def test_a_follower_that_is_elected_and_deposed_before_it_leads_still_follows() -> None:
    """It was far behind, and the end of the log that it had read is no end any more."""

    async def main() -> None:
        fit = Fit()
        fit.follow(answer("a", 1), boundary(1))
        fit.replay.end_of_log(ended(END))
        await fit.ask("a")
        fit.replay.follow(boundary(0))
        fit.boundary(1)
        fit.ask("b")
        await quiet()
        assert (fit.asked, fit.replay.is_following) == ([], True)
        fit.replay.extend([boundary(1), answer("b", 2)])
        await quiet()
        assert (fit.got, fit.lost) == ([1, 2], [])

    run(main)


def test_the_end_of_a_fit_lets_every_request_go_on() -> None:
    """Those that wait for the leader, for their turn, and for the journal. Later ones are sent as without a journal."""

    async def main() -> None:
        fit = Fit()
        fit.writer.is_durable = False
        fit.follow(answer("a", 1), answer("b", 2))
        waits_for_turn, waits_for_leader = fit.ask("b"), fit.ask("c")
        await quiet()
        fit.answers.close()
        await quiet()
        assert waits_for_turn.done()
        fit.respond("c", 3)
        await quiet()
        assert waits_for_leader.done()
        later = await fit.answered("d", 4)
        assert (later.done(), fit.got, fit.writer.records) == (True, [2, 3, 4], [])

    run(main)
