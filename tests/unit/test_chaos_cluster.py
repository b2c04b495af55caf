"""Test that each check of a cluster's promises can fail, on falsified histories. See `tests/chaos/README.md`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from distributed_backup.position import Position
from tests.chaos import faults
from tests.chaos.cluster_checks import cluster_violations
from tests.chaos.excuses import excuse
from tests.chaos.history import Command, Fault, Life, Sample, Story, read_life
from tests.chaos.plan import Kill, Run

RUN = Run(seed=0, program="twins", save_freq=1, is_shuffled=False, deletes=False, keeps_all=False, kills=((), ()))
FIRST = "0000000001-00000000-00000001.ckpt"
SECOND = "0000000002-00000000-00000002.ckpt"
FINAL = "0000000002-00000003-00000000.final.ckpt"
COMMITTED = 'event committed {"term":1,"checkpoint":"0000000001-00000000-00000001.ckpt"}'
SAMPLES = [
    Sample(at=1.0, name=None),
    Sample(at=3.0, name=FIRST, writer="w0-0-aa"),
    Sample(at=14.0, name=SECOND, writer="w1-0-bb"),
    Sample(at=20.0, name=FINAL, writer="w1-0-bb"),
]
# The first worker leads, is preempted and leaves. The second takes over and finishes.
LEADER = [
    "1 event joined {}",
    '2 event elected {"term":1}',
    '2.1 event restored {"checkpoint":null}',
    "2.5 boundary 0 1 S1",
    f"3 {COMMITTED}",
    '10 event notice {"reason":"SIGTERM"}',
    "10.4 event preempted {}",
    '10.5 event resigned {"term":1}',
]
FOLLOWER = [
    "1 event joined {}",
    '2.2 event restored {"checkpoint":null}',
    "3.5 boundary 0 1 S1",
    '11 event elected {"term":2}',
    "13 asked w1-0.1",
    "13.5 boundary 0 2 S2",
    '14 event committed {"term":2}',
    "19 event finished {}",
    "20 event left {}",
]


def life(tmp_path: Path, name: str, lines: list[str], **fields: Any) -> Life:
    path = tmp_path / f"{name}.log"
    path.write_text("".join(f"{line}\n" for line in lines))
    made = read_life(path, exit_code=fields.pop("exit_code", 0), how=None)
    for field, value in {"began": 0.5, "ended": 21.0, **fields}.items():
        setattr(made, field, value)
    return made


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(lives=[preempted(tmp_path), life(tmp_path, "w1-0", FOLLOWER)], samples=[*SAMPLES])


def preempted(tmp_path: Path, **fields: Any) -> Life:
    defaults = {"exit_code": 143, "ended": 11.0, "notice": 10.0, "grace": 30.0, "newest": Position(0, 1)}
    return life(tmp_path, "w0-0", LEADER, **defaults | fields)


def found(story: Story, run: Run = RUN) -> set[str]:
    return {violation.partition(":")[0] for violation in cluster_violations(story, run)}


def test_a_run_with_a_preempted_leader_passes(story: Story) -> None:
    """Two terms, one after the other."""
    assert found(story) == set()


@pytest.mark.parametrize(
    "line",
    ['11 event elected {"term":1}', '14 event committed {"term":1}', '11 event elected {"term":0}'],
    ids=["two holders", "two writers", "smaller"],
)
def test_a_term_that_is_used_twice_or_goes_back_is_found(tmp_path: Path, story: Story, line: str) -> None:
    """By elections, by commits, and by the order of elections over a file lock."""
    kind = line.split()[2]
    lines = [line if kind in each else each for each in FOLLOWER]
    story.lives[1] = life(tmp_path, "w1-0", lines)
    assert found(story) == {"terms"}


def test_a_checkpoint_by_another_writer_of_its_term_is_found(story: Story) -> None:
    """The observer reads who has written it."""
    story.samples[2] = replace(story.samples[2], writer="w0-0-aa")
    assert found(story) == {"terms"}


@pytest.mark.parametrize(
    "samples",
    [
        [SAMPLES[2], SAMPLES[1], SAMPLES[3]],
        [SAMPLES[1], Sample(at=5.0, name=None), SAMPLES[3]],
        [replace(SAMPLES[1], problem="it is empty"), SAMPLES[3]],
        [SAMPLES[1], SAMPLES[2]],
        [],
    ],
    ids=["back", "gone", "torn", "not final", "none"],
)
def test_a_newest_checkpoint_that_goes_back_is_torn_or_is_not_the_last_one_is_found(
    story: Story, samples: list[Sample]
) -> None:
    """Also one that is missing for a moment only."""
    story.samples = samples
    assert found(story) == {"newest"}


LATE = "0000000001-00000003-00000000.final.ckpt"


@pytest.mark.parametrize(("at", "wanted"), [(10.9, {"newest"}), (11.1, set())])
def test_a_newest_checkpoint_may_go_back_if_the_next_leader_began_before_it(
    story: Story, at: float, wanted: set[str]
) -> None:
    """A leader that reached no server has finished, and saved its final state. The next one was elected at 11 s."""
    story.samples = [*SAMPLES[:2], Sample(at=at, name=LATE, writer="w0-0-aa"), *SAMPLES[2:]]
    assert found(story) == wanted


def test_a_newest_checkpoint_may_go_back_where_it_was_damaged(story: Story) -> None:
    """Then an older one is used."""
    story.samples = [SAMPLES[2], SAMPLES[1], SAMPLES[3]]
    story.faults = [Fault(kind="damage", at=2.0, until=3.0, is_hit=True, detail=f"checkpoint flipped {SECOND}")]
    assert found(story) == set()


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"newest": Position(0, 0)}, {"durability"}),
        ({"newest": None}, {"durability"}),
        ({"newest": Position(0, 2)}, set()),
        ({"newest": None, "ended": 38.0}, set()),
        ({"newest": None, "refused": 1}, set()),
        ({"newest": None, "is_lost": True}, set()),
        ({"ended": 43.0}, {"times"}),
        ({"ended": 43.0, "pauses": 1}, set()),
    ],
)
def test_a_worker_that_leaves_early_without_its_last_boundary_is_found(
    tmp_path: Path, story: Story, fields: dict[str, Any], wanted: set[str]
) -> None:
    """And one that takes longer than its grace period. A disk that refuses, and a lost lead, are reasons."""
    story.lives[0] = preempted(tmp_path, **fields)
    assert found(story) == wanted


def test_a_run_that_is_to_be_kept_is_not_deleted(story: Story) -> None:
    """Also not by the last worker to finish."""
    story.samples.append(Sample(at=20.5, name=None, is_gone=True))
    assert "deletion" in found(story)


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        ([], ["20.5 event deleted {}"], set()),
        ([], ["18 event deleted {}"], {"deletion"}),
        (["10.2 event finished {}", "10.3 event deleted {}"], [], {"deletion"}),
        (["5 event finished {}", "6 event deleted {}"], [], {"deletion"}),
    ],
    ids=["last one", "not finished", "preempted", "not the last one"],
)
def test_a_deletion_by_another_than_the_last_one_to_finish_is_found(
    tmp_path: Path, story: Story, first: list[str], second: list[str], wanted: set[str]
) -> None:
    """A worker that is being preempted, that has not finished, or that others go on beside."""
    story.lives[0] = life(tmp_path, "w0-0", LEADER + first)
    story.lives[1] = life(tmp_path, "w1-0", FOLLOWER + second)
    story.samples = [*SAMPLES, Sample(at=20.5, name=None, is_gone=True)]
    assert found(story, replace(RUN, deletes=True)) == wanted


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ([], set()),
        (["10 asked w1-0.0"], {"standby"}),
        (["3 asked w1-0.0"], set()),
        (["10 asked w1-0.0", "9 paused 2"], set()),
    ],
    ids=["none", "another leads", "it can't know yet", "it was stopped"],
)
def test_a_standby_that_asks_while_another_worker_leads_is_found(
    tmp_path: Path, story: Story, lines: list[str], wanted: set[str]
) -> None:
    """A deposed leader has 1.5 s to learn it."""
    story.lives[1] = life(tmp_path, "w1-0", lines + FOLLOWER)
    assert found(story, replace(RUN, standby=True)) == wanted
    assert found(story) == set()


@pytest.mark.parametrize(
    ("output", "ways", "events", "wanted"),
    [
        (f"skipped {SECOND}", set(), 3, set()),
        ("", set(), 3, {"damage"}),
        ("", {"SIGKILL"}, 3, {"damage"}),
        # It ended by itself before it restored: it refuses to start, and must say why. A kill may have come before.
        ("", set(), 2, {"damage"}),
        ("", {"SIGKILL"}, 2, set()),
    ],
)
def test_a_start_that_does_not_name_a_damaged_checkpoint_is_found(
    tmp_path: Path, story: Story, output: str, ways: set[str], events: int, wanted: set[str]
) -> None:
    """It is the newest one, and stays damaged until the start is over."""
    story.faults = [Fault(kind="damage", at=14.5, until=19.0, is_hit=True, detail=f"checkpoint flipped {SECOND}")]
    lines = ["15.5 event joined {}", '15.6 event elected {"term":3}', '16 event restored {"checkpoint":null}']
    fields = {"began": 15.0, "ended": 18.0, "output": output, "ways": ways}
    story.lives.append(life(tmp_path, "w0-1", lines[:events], **fields))
    assert found(story) == wanted
    # It restored as a follower, as of what the leader had announced.
    story.lives[-1] = life(tmp_path, "w0-1", [*lines[:1], "15.55 event restored {}", lines[1]], **fields)
    assert found(story) == set()


SAVED = '{"checkpoint": "x", "epoch": 0, "batch": %d, "leader": "w0-0-aa", "term": 1, "seconds": 0.1}'
HANDED = '{"leader": "%s", "term": 2, "previous": "w0-0-aa", "seconds": 0.1}'


@pytest.mark.parametrize(
    ("words", "code", "output", "wanted"),
    [
        ("status", 0, "", set()),
        ("status", 1, "error: x", {"commands"}),
        ("status", 0, "Traceback", {"commands"}),
        ("status", -11, "", {"commands"}),
        ("preempt", 0, SAVED % 1, set()),
        ("preempt", 0, SAVED % 0, {"commands"}),
        ("preempt", 0, (SAVED % 1).replace("w0-0", "w9-9"), {"commands"}),
        ("preempt", 1, "error: x", {"commands"}),
        ("resign", 0, HANDED % "w1-0-bb", set()),
        ("resign", 0, HANDED % "w0-0-aa", {"commands"}),
    ],
)
def test_a_command_that_fails_without_a_reason_or_says_what_is_not_is_found(
    story: Story, words: str, code: int, output: str, wanted: set[str]
) -> None:
    """The leader had come to the first boundary before the command."""
    story.commands = [Command(words=words, at=5.0, until=6.0, code=code, output=output)]
    assert found(story) == wanted


def test_a_command_may_fail_while_something_else_happens(story: Story) -> None:
    """The server may be away, and the leader may be about to leave."""
    command = Command(words="preempt", at=9.5, until=12.0, code=1, output="error: x")
    story.commands = [command]
    assert found(story) == set()
    story.commands = [replace(command, words="status", at=5.0, until=6.0)]
    story.faults = [Fault(kind="cut", at=4.0, until=5.5, is_hit=True)]
    assert found(story) == set()


@pytest.mark.parametrize(("at", "wanted"), [(5.5, set()), (7.5, set()), (1.5, {"commands"})])
def test_a_pause_excuses_only_a_command_near_to_it(story: Story, tmp_path: Path, at: float, wanted: set[str]) -> None:
    """The election goes on after the first heartbeat."""
    story.lives[1] = life(tmp_path, "w1-0", [*FOLLOWER, f"{at} paused 1"])
    story.commands = [Command(words="resign", at=5.0, until=6.0, code=1, output="error: x")]
    assert found(story) == wanted


def test_keys_that_do_not_belong_or_stay_for_ever_are_found(story: Story) -> None:
    """The files of a run in Redis stay, and its lease does not."""
    story.keys = {"lease": 1000, "files": -1, "append:x": -1}
    assert found(story) == set()
    for keys in ({"lease": -1}, {"other": 1000}):
        story.keys = keys
        assert found(story) == {"leftovers"}


CUT = Fault(kind="cut", at=4.0, until=5.5, is_hit=True)
FLUSHED = Fault(kind="FLUSHALL", at=4.0, until=4.0, is_hit=True)
UNREAD = 'event diverged {"reason":"the new leader has not recorded all answers that this worker has used"}'
ASKED_TO = 'event resigned {"term":1,"reason":"asked to let another worker lead"}'


@pytest.mark.parametrize(
    ("lines", "faults", "fields", "wanted"),
    [
        ([], [], {}, None),
        ([], [CUT], {}, None),
        (["5 event unreachable {}"], [], {}, "two leaders"),
        (["5 event lost {}"], [CUT], {}, "two leaders"),
        (["5 event lost {}"], [], {}, None),
        ([], [FLUSHED], {"store": "redis"}, "emptied storage"),
        ([], [FLUSHED], {}, None),
        (["5 event lost {}"], [], {"store": "s3"}, "late bucket"),
        ([f"5 {ASKED_TO}", f"6 {UNREAD}"], [], {}, None),
        (["5 full x"], [], {}, "full disk"),
        (["5 event voided {}"], [], {}, None),
        (["22 seen w0-0.1"], [], {"samples": [Sample(at=21.0, name=None, is_gone=True)]}, "begun anew"),
        ([], [], {"samples": [Sample(at=21.0, name=None, is_gone=True)]}, None),
        (["21 event deleted {}", "22 seen w0-0.1"], [], {}, "begun anew"),
        (["22 seen w0-0.1", "23 event deleted {}"], [], {}, None),
    ],
)
def test_an_excuse_needs_its_sign_in_the_history(
    tmp_path: Path, story: Story, lines: list[str], faults: list[Fault], fields: dict[str, Any], wanted: str | None
) -> None:
    """A fault alone excuses nothing, nor does what a worker reports without one."""
    story.lives[0] = life(tmp_path, "w0-0", LEADER + lines, exit_code=143)
    story.faults = faults
    assert excuse(replace(story, **fields)) == wanted


def test_a_damaged_checkpoint_that_is_removed_before_it_is_mended_was_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit has pruned it. The observer may have seen the damage."""
    path = tmp_path / FIRST
    path.write_bytes(b"whole")
    seen: list[bytes] = []

    def pruned(_: float) -> None:
        seen.append(path.read_bytes())
        path.unlink()

    monkeypatch.setattr(faults, "_for", pruned)
    kill = Kill(how="damage", event="seen", count=1, delay=0.0, detail="checkpoint emptied")
    target = SimpleNamespace(directory=tmp_path)
    assert faults._damage(kill, cast("Any", target)) == FIRST
    assert (seen, list(tmp_path.iterdir())) == ([b""], [])


@pytest.mark.parametrize("how", ["emptied", "truncated", "flipped"])
def test_a_file_that_is_empty_already_can_not_be_damaged(tmp_path: Path, how: str) -> None:
    (tmp_path / FIRST).touch()
    kill = Kill(how="damage", event="seen", count=1, delay=0.0, detail=f"checkpoint {how}")
    assert faults._damage(kill, cast("Any", SimpleNamespace(directory=tmp_path))) == ""
