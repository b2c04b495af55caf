"""The fencing rule: which checkpoint counts, and which worker may write one.

A lease says which worker should write. The rule below decides which checkpoint counts, so a leader that was paused or
cut off can't overwrite newer work. It needs no lock and no compare-and-swap.

1. A checkpoint's name is (term, position), zero-padded, so names sort as these pairs do. The final state of a run
   sorts after the boundary that it follows.
2. The newest checkpoint is the greatest name that verifies. A writer of an older term writes a lower name. It can
   never win.
3. A worker claims its term in the run's directory, with an exclusive create, before it leads under it. Claims outlive
   the coordinator, so a coordinator that loses its data can't have a term used twice.
4. A commit is refused if a newer term has committed, or another worker under the same term. A claim alone refuses no
   commit: until the newer leader commits, the older leader's checkpoint is still useful. The exception: a final state
   that was durable after a claim may be unknown to the newer leader, so it does not end the run.
5. Progress never goes backwards: a leader commits nothing that the newest checkpoint supersedes.
6. After a preemption notice, and when its fit is complete, the last holder may commit under its last term while the
   coordinator is unreachable. That checkpoint sorts below every later term. A final state ends the run for its
   writer then, though another worker may lead that has not seen it.

The rule is enforced in these places:

    claim         `TermClaims.claim_term`            here
    grant         `Elector._may_lead_under`          coordination/election.py: leads only under a term it has claimed
    writer check  `CheckpointStore.commit`           store.py: calls `check_writer` and `check_final`, here
    reading       `CheckpointReader.newest_header`   reader.py: and `latest`
    progress      `is_superseded`                    here: called by the saver and the worker
    last resort   `Elector.term_of_last_resort`      coordination/election.py: used by `WorkerContext`

The assertions of `Observer.elected` in tests/unit/test_promises.py are the executable form of the first promise: a term
has one holder, and terms only grow.

The limit: two workers may believe to lead at the same time, and both may write. Only a reader that goes by names is
protected. One that goes by file times is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from distributed_backup.checkpoints.format import MAX_TERM, CheckpointHeader, Snapshot, term_of
from distributed_backup.errors import StaleTermError, StoreError
from distributed_backup.storage.base import Storage

_CLAIM: Final = re.compile(r"(\d{10})\.term")
_CLAIMS_KEPT: Final = 8


class TermClaims:
    """The terms of one run, claimed with one exclusive file each in its directory."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def highest_term(self) -> int:
        """Return the highest term that was claimed or committed under, 0 if there is none.

        No term up to this one may be granted again.

        Raises:
            StoreError: The directory can't be read.
        """
        return highest_term_among(self._storage.names())

    def claim_term(self, term: int) -> bool:
        """Claim `term` for one worker, which may then lead under it.

        The newest 8 claims stay (`_CLAIMS_KEPT`), so that a machine with an outdated directory listing still finds the
        name taken.

        Returns:
            False if this term was claimed before, or a newer term was claimed or committed under.

        Raises:
            StoreError: The directory can't be read or written.
        """
        location = self._storage.location
        if term > MAX_TERM:
            text = f"no term is left in {location}: remove the files whose names begin with {MAX_TERM}"
            raise StoreError(text, path=location)
        if term <= self.highest_term() or not self._create(f"{term:010d}.term"):
            return False
        found = self._storage.names()
        # With a newer term here, ours may have been claimed and tidied away since the first listing.
        if highest_term_among(found) > term:
            return False
        for name in sorted(filter(is_claim, found))[:-_CLAIMS_KEPT]:
            with suppress(StoreError):  # an old claim that stays does no harm
                self._storage.remove(name)
        return True

    def was_led_before(self, term: int) -> bool:
        """Whether a term below `term` was claimed here.

        Raises:
            StoreError: The directory can't be read.
        """
        return any(int(name[:10]) < term for name in filter(is_claim, self._storage.names()))

    def _create(self, name: str) -> bool:
        try:
            if not self._storage.exists():
                self._storage.prepare()  # it was removed during the run
            return self._storage.create(name)
        except StoreError as error:
            text = f"can't claim the term: {error}"
            raise StoreError(text, path=error.path, retryable=error.retryable) from error.__cause__


def is_claim(name: str) -> bool:
    """Whether `name` is the file name of a term's claim."""
    return _CLAIM.fullmatch(name) is not None


def check_writer(
    header: CheckpointHeader, names: Iterable[str], *, present: CheckpointHeader | None, location: str
) -> None:
    """Refuse a writer whose term is no longer its own, judged by the committed checkpoints in `names`.

    `present` is the checkpoint that already has the name in `header`, if it verifies and is of this run.

    Raises:
        StaleTermError: A newer term has committed, or another worker under this one.
    """
    newest = _highest_committed(names)
    if newest > header.term:
        raise StaleTermError(path=location, term=header.term, newest=newest)
    if present is not None and present.worker_id != header.worker_id:
        raise StaleTermError(path=location, term=header.term, newest=newest, writer=present.worker_id)


def check_final(header: CheckpointHeader, names: Iterable[str], *, location: str) -> None:
    """Refuse a final state that the leader of a newer term may not have seen. `names` were listed when it was durable.

    Raises:
        StaleTermError: A newer term has been claimed.
    """
    newest = highest_term_among(names)
    if newest > header.term:
        raise StaleTermError(path=location, term=header.term, newest=newest, is_claimed=True)


def is_superseded(snapshot: Snapshot, *, by: CheckpointHeader | None, term: int) -> bool:
    """Whether the checkpoint `by`, the newest, makes a commit of `snapshot` under `term` needless.

    It does at the same position or a later one. Only a final state supersedes a final state there. The exception: an
    earlier term wrote it in the same epoch from other data. That epoch began anew after a restart, so the two positions
    can't be compared.
    """
    if by is None or (by.position, by.final) < (snapshot.position, snapshot.final):
        return False
    began_anew = by.epoch == snapshot.position.epoch and by.data != snapshot.data and by.term < term
    return not began_anew


def highest_term_among(names: Iterable[str]) -> int:
    """Return the highest term that was claimed or committed under, by these file names. 0 if there is none."""
    names = list(names)
    claimed = max((int(name[:10]) for name in filter(is_claim, names)), default=0)
    return max(claimed, _highest_committed(names))


def _highest_committed(names: Iterable[str]) -> int:
    return max(map(term_of, names), default=0)
