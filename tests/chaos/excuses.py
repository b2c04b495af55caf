"""What a history excuses: the cases in which GUARANTEES.md promises less. Imports no synalinks.

Each excuse rests on what was seen to happen, not on what was planned.
"""

from __future__ import annotations

import math
from typing import Final

from distributed_backup.checkpoints.format import parse_name
from distributed_backup.position import Position
from tests.chaos.history import Life, Story
from tests.chaos.plan import NETWORK, VIOLENT

# What may keep a worker from its coordinator, its storage or its files.
ENVIRONMENT: Final = (*sorted(NETWORK), "FLUSHALL", "store busy", "store reply lost", "disk full", "damage")
# Starts that die in the replay of one batch, after which its answers are void. So many exceptions have the same effect.
_MOST_DEATHS: Final = 3
_MOST_EXCEPTIONS: Final = 2


def is_recorded(story: Story) -> bool:
    """Whether all answers are recorded, and no two workers can lead without knowing of each other."""
    return excuse(story) is None


def excuse(story: Story) -> str | None:
    """Return why answers may be missing or asked for again, None if they may not."""
    lives = story.lives
    is_cut_off = any(life.events["unreachable"] for life in lives)
    has_lost = any(life.events["lost"] for life in lives)
    # What is written again after that has no past.
    is_emptied = story.has("FLUSHALL") and story.store == "redis" and any(life.exit_code for life in lives)
    excuses = {
        # A busy machine may cut a worker off, too.
        "two leaders": is_cut_off or (story.has(*NETWORK, "FLUSHALL") and has_lost),
        # The answers of the last second of a leader that was stopped are in no part of the bucket yet.
        "late bucket": story.store == "s3" and any(life.events["lost"] for life in lives),
        "emptied storage": is_emptied,
        "full disk": any(life.refused for life in lives),
        "damage": story.has("damage"),
        "void": is_void(story),
        "begun anew": is_begun_anew(story),
    }
    return next((name for name, holds in excuses.items() if holds), None)


def is_void(story: Story) -> bool:
    """Whether answers were declared void, after as many deaths as that takes."""
    deaths = sum(bool(life.ways & VIOLENT) for life in story.lives)
    exceptions = sum("exception" in life.ways for life in story.lives)
    is_due = deaths >= _MOST_DEATHS or exceptions >= _MOST_EXCEPTIONS
    return is_due and any(life.events["voided"] for life in story.lives)


def is_begun_anew(story: Story) -> bool:
    """Whether a worker went on, or came back, after another one had deleted the finished run."""
    # The next run may be there before a look finds that the last one is gone.
    deleted = [at for life in story.lives for at, _, _ in life.reported("deleted")]
    gone = min((*deleted, *(sample.at for sample in story.samples if sample.is_gone)), default=math.inf)
    works = ("asked", "seen", "boundary", "start")
    return any(moment.at > gone and moment.kind in works for life in story.lives for moment in life.moments)


def is_kept_in_doubt(story: Story) -> bool:
    """Whether the last worker could not ask the coordinator for others, and so did not delete the run."""
    return any("backup kept, the coordinator failed" in life.output for life in story.lives)


def has_overlap(story: Story, began: float, ended: float, *kinds: str) -> bool:
    """Whether a fault of one of these kinds has hit in this time."""
    return any(f.is_hit and f.kind in kinds and f.at < ended and began < f.until for f in story.faults)


def is_preempted_in_vain(story: Story, life: Life) -> bool:
    """Whether the storage or the server kept a preempted worker from a save, or it had left the run before."""
    assert life.notice is not None
    is_hindered = has_overlap(story, life.notice - 1.0, life.ended, *ENVIRONMENT) or life.refused > 0
    return is_hindered or life.is_lost or life.events["diverged"] > 0 or is_begun_anew(story)


def position_of(name: str | None) -> Position | None:
    """Return the position in the name of a checkpoint."""
    parsed = None if name is None else parse_name(name)
    return None if parsed is None else parsed[1]
