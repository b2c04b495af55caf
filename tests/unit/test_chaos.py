"""Test that each check of the harness of chaos can fail. See `tests/chaos/README.md`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.chaos.checks import AT_ONCE, Reference, violations
from tests.chaos.history import Journalist, Life, Story, read_life

REFERENCE = Reference(boundaries=((0, 1), (1, 0)), answers=3)
FIRST = ["asked a", "answered a", "durable a", "seen a"]
STAGE = [*FIRST, "asked b", "answered b", "durable b", "seen b", "boundary 0 1 S1"]
REST = ["asked c", "answered c", "durable c", "seen c", "boundary 1 0 S2", "end S2"]


def life(tmp_path: Path, lines: list[str], *, how: str | None = None, exit_code: int = 0) -> Life:
    path = tmp_path / f"w0-{len(list(tmp_path.iterdir()))}.log"
    journalist = Journalist(path)
    for line in lines:
        journalist.note(*line.split(" "))
    return read_life(path, exit_code=exit_code, how=how)


def killed(tmp_path: Path, lines: list[str], how: str = "SIGKILL", exit_code: int = -9) -> Life:
    return life(tmp_path, lines, how=how, exit_code=exit_code)


def checks_that_fail(lives: list[Life], left: tuple[str, ...] = ("run.json",)) -> set[str]:
    return {found.partition(":")[0] for found in violations(Story(lives=lives, left=list(left)), REFERENCE)}


def test_a_run_that_is_resumed_exactly_passes(tmp_path: Path) -> None:
    """The second life replays the first answer, and then asks."""
    resumed = ["seen a", *STAGE[4:], *REST]
    assert checks_that_fail([killed(tmp_path, FIRST), life(tmp_path, resumed)]) == set()
    later = ["start 0 1", *REST]
    assert checks_that_fail([killed(tmp_path, [*STAGE, "asked x"]), life(tmp_path, later)]) == set()


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        (FIRST, [*STAGE, *REST], set()),
        (["asked x", "answered x", "durable x", "seen x"], [*STAGE, *REST], {"order", "lost"}),
        (["asked x", "answered x", "durable x"], [*STAGE, *REST], {"lost"}),
        (["asked b", "answered b", "durable b", "seen b"], [*STAGE, *REST], {"order"}),
        ([*FIRST, "boundary 0 1 S1"], [*STAGE, *REST], {"order"}),
        ([*STAGE[:-1], "boundary 0 1 S9"], [*STAGE, *REST], {"states"}),
        (FIRST, [*STAGE, *REST[:-2]], {"whole"}),
        (FIRST, [*STAGE, "seen d", *REST], {"whole"}),
        (FIRST, [*STAGE, "event diverged {}", *REST], {"events"}),
        (FIRST, [*STAGE, "event voided {}", *REST], {"events"}),
        (FIRST, [*STAGE, *REST[:-1], "event finished {}", "asked d", "end S2"], {"late"}),
        (FIRST, [*STAGE, *REST, "event finished {}", "asked d", "answered d"], {"late"}),
    ],
)
def test_each_check_finds_its_error(tmp_path: Path, first: Any, second: Any, wanted: set[str]) -> None:
    """Answers that are asked for again, dropped, exchanged or added, other states, and a replay that was given up."""
    assert checks_that_fail([killed(tmp_path, first), life(tmp_path, second)]) == wanted


def test_only_a_sigkill_may_lose_answers_and_only_those_of_one_instant(tmp_path: Path) -> None:
    """All other interruptions leave time to write what has arrived."""
    arrived = [f"answered x{number}" for number in range(AT_ONCE)]
    whole = life(tmp_path, [*STAGE, *REST])
    assert checks_that_fail([killed(tmp_path, arrived), whole]) == set()
    assert checks_that_fail([killed(tmp_path, [*arrived, "answered y"]), whole]) == {"lost"}
    assert checks_that_fail([killed(tmp_path, arrived[:1], "SIGTERM", 143), whole]) == {"lost"}
    after = ["event left {}", *arrived]
    assert checks_that_fail([killed(tmp_path, after, "Ctrl-C", 1), whole]) == set()


def test_only_requests_that_were_under_way_at_a_loss_of_the_lease_need_not_count(tmp_path: Path) -> None:
    """Of a worker that goes on after a pause. An answer that its training has seen counts in any case."""
    whole = life(tmp_path, [*STAGE, *REST])
    lost = "event lost {}"
    for lines, wanted in (
        (["asked x", "paused 2", lost, "answered x"], set()),
        (["asked x", "answered x", "paused 2", lost, "durable x"], set()),
        (["asked x", "answered x", "paused 2", "durable x"], {"lost"}),
        (["paused 2", lost, "asked x", "answered x", "durable x"], {"lost"}),
        (["asked x", "answered x", "paused 2", "durable x", "seen x", lost], {"order", "lost"}),
    ):
        rest = ["seen a", *STAGE[4:], *REST] if "seen x" not in lines else []
        assert checks_that_fail([whole, life(tmp_path, [*lines, *rest], how="pause")]) == wanted, lines


@pytest.mark.parametrize(
    ("reason", "pauses", "wanted"),
    [
        ("the leader has begun another log", 1, set()),
        ("the leader has begun another log", 0, {"events"}),
        ("x", 1, {"events"}),
    ],
)
def test_a_worker_that_was_suspended_may_lose_its_leader(
    tmp_path: Path, reason: str, pauses: int, wanted: set[str]
) -> None:
    """For the two reasons that a pause can have. Then it returns with the final state, or is started again."""
    lines = [*["paused 2"] * pauses, f"event diverged {reason}", "event stood_down {}", "seen x", "end S2"]
    for exit_code in (0, 143):
        lives = [life(tmp_path, [*STAGE, *REST]), life(tmp_path, lines, how="pause", exit_code=exit_code)]
        assert checks_that_fail(lives) == wanted


@pytest.mark.parametrize(
    ("reason", "resigned", "wanted"),
    [
        ("while this one read the stream of an answer", '{"term":1,"reason":"asked"}', set()),
        ("while this one read the stream of an answer", '{"term":1}', {"events"}),
        ("the leader has begun another log", '{"term":1,"reason":"asked"}', {"events"}),
    ],
)
def test_a_worker_that_was_asked_to_resign_may_have_to_leave_a_stream(
    tmp_path: Path, reason: str, resigned: str, wanted: set[str]
) -> None:
    """Its training has seen a part of the chunks, and its successor asks again."""
    lines = [f"event resigned {resigned}", f"event diverged {reason}", "event stood_down {}", "seen x", "end S2"]
    lives = [life(tmp_path, [*STAGE, *REST]), life(tmp_path, lines)]
    assert checks_that_fail(lives) == wanted


@pytest.mark.parametrize(
    ("last", "wanted"),
    [(["event finished {}", "event deleted {}"], set()), (["event finished {}"], {"ends"})],
)
def test_a_signal_has_its_default_effect_when_the_run_is_deleted_and_not_before(
    tmp_path: Path, last: list[str], wanted: set[str]
) -> None:
    """The fit has returned by then, and has taken its handlers back."""
    lines = ["event joined {}", *STAGE, *REST[:-1], *last]
    lives = [life(tmp_path, [*STAGE, *REST]), killed(tmp_path, lines, "eviction", -15)]
    assert checks_that_fail(lives) == wanted


@pytest.mark.parametrize("again", [(), ("seen a", "seen b")])
def test_a_standby_that_leads_again_repeats_its_batch_only_if_it_was_cancelled(
    tmp_path: Path, again: tuple[str, ...]
) -> None:
    """The batch may have ended before."""
    waits = ["event stood_down {}", "event progress {}", *again]
    lines = [*STAGE[:-1], *waits, STAGE[-1], *REST]
    assert checks_that_fail([life(tmp_path, lines)]) == set()


def test_a_cancelled_fit_may_see_its_answers_in_another_order(tmp_path: Path) -> None:
    """It must be the same ones."""
    whole = life(tmp_path, [*STAGE, *REST])
    for token, wanted in (("b", set()), ("x", {"order"})):
        lines = [f"seen {token}"]
        assert checks_that_fail([killed(tmp_path, lines, "cut off", 143), whole]) == wanted


@pytest.mark.parametrize(
    ("how", "exit_code", "is_fine"),
    [("SIGTERM", 143, True), ("SIGTERM", 1, False), ("SIGKILL", -9, True), ("exception", 0, False), (None, 1, False)],
)
def test_each_interruption_has_its_exit_code(tmp_path: Path, how: str | None, exit_code: int, is_fine: bool) -> None:
    """A life that was not interrupted ends with 0."""
    lives = [life(tmp_path, FIRST, how=how, exit_code=exit_code), life(tmp_path, [*STAGE, *REST])]
    assert checks_that_fail(lives) == (set() if is_fine else {"ends"})


@pytest.mark.parametrize("name", [".partial-0000000001-00000001-00000000.journal-aa", "notes.tmp", "x.ckpt"])
def test_a_foreign_file_is_found(tmp_path: Path, name: str) -> None:
    """A partial file of a segment is litter, too."""
    assert checks_that_fail([life(tmp_path, [*STAGE, *REST])], (name,)) == {"leftovers"}
