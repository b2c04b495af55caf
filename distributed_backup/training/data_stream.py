"""Read the data of a fit again as it was read before: from the same random states, and only as far back as needed.

A data set that shuffles draws from `random` or `numpy.random`, when its iterator is made or at each batch. Training
draws from the same generators in between. So a stream records the states in which a read drew after another draw, and
sets them again when a resumed fit repeats that read. A stream also records a digest of its batches. A resumed fit
compares it, so that data in another order is reported.

The limits: a shuffle by a generator of the user's own, such as `numpy.random.default_rng()`, is detected but can't be
repeated, unless the user seeds it. The same holds for a generator object that shuffled before `fit` began.

Facts relied on (synalinks 0.10.14): `EpochIterator._get_iterator` makes each stream. Without `steps_per_epoch` every
epoch has a new one. With it, one stream serves several epochs. A stream always begins with an epoch.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from distributed_backup.once import OnceLogger
from distributed_backup.training.fingerprint import batch_content
from distributed_backup.training.method_patch import MethodPatch
from distributed_backup.training.random_states import States, get_states, set_states

logger = logging.getLogger(__name__)

# Reads of one stream whose states are kept, at 7 kB each. A data set that draws at each batch needs one for each.
_MAX_DRAWS: Final = 500


class DataStream:
    """The training data of one fit. `on_repeated(epoch, batches)` is called before each batch that is read again.

    `epochs` is synalinks' iterator over the data `x`, and `initial_epoch` the epoch that its first stream is for.
    """

    def __init__(self, epochs: Any, x: Any, *, initial_epoch: int, on_repeated: Callable[[int, int], None]) -> None:
        self._epochs = epochs
        self._is_one_shot = _is_one_shot(x, epochs.data_adapter)
        self._initial_epoch = initial_epoch
        self._on_repeated = on_repeated
        self._epoch = initial_epoch
        self._reads_in_epoch = 0
        self._first_epoch: int | None = None
        # The number of the next step of the stream. Step 0 makes it, and each further step reads a batch.
        self._step = 0
        self._draws: list[tuple[int, States]] = []
        self._after: States | None = None
        self._digest = hashlib.blake2b(digest_size=16)
        # While reads are repeated: the states of the steps that drew, of this stream and of the one after it.
        self._repeated: dict[int, States] | None = None
        self._repeated_next: dict[int, States] = {}
        self._warnings = OnceLogger(logger)
        self._patch = MethodPatch(epochs, "_get_iterator", self._make)

    def remove(self) -> None:
        """Leave the data to synalinks alone."""
        self._patch.remove()

    def epoch_begins(self, epoch: int) -> None:
        """Note the epoch that begins."""
        self._epoch, self._reads_in_epoch = epoch, 0

    def state(self) -> dict[str, Any]:
        """Return what a resumed fit needs to read up to here again, as JSON."""
        return {
            "first_epoch": self._first_epoch,
            "steps": self._step,
            "digest": self._digest.hexdigest(),
            "draws": self._draws[:],
            "batches_per_epoch": self._epochs._num_batches or 0,  # noqa: SLF001
        }

    # ---------------------------------------------------------------- reading again

    def repeat_until(self, epoch: int, saved: Mapping[str, Any], following: Mapping[str, Any]) -> None:
        """Read again what epochs before `epoch` have read, as far as `epoch` depends on it.

        `saved` is the `state` at the position to resume at, and `following` that of the next epoch's stream. Empty if
        not known. From here on, reads are repeated in the saved random states until `position_reached`.
        """
        self._repeated, self._repeated_next = _draws_of(saved), _draws_of(following)
        serves_several_epochs = self._epochs.steps_per_epoch is not None
        if not self._is_one_shot:
            # synalinks counts the batches of data without a length in the first epoch, and reads it otherwise then.
            self._epochs._num_batches = self._epochs._num_batches or saved.get("batches_per_epoch") or None  # noqa: SLF001
            if not serves_several_epochs:
                return
        first = self._initial_epoch if self._is_one_shot else saved.get("first_epoch")
        self._read_epochs(self._initial_epoch if first is None else first, epoch)
        if serves_several_epochs and first == epoch:
            # Made before this epoch began, in the random states of that time.
            self._epochs._current_iterator = iter(self._epochs._get_iterator())  # noqa: SLF001
            self._epochs._steps_seen = 0  # noqa: SLF001

    def _read_epochs(self, first: int, end: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # synalinks warned of data that ran out when it was read first
            for epoch in range(first, end):
                self.epoch_begins(epoch)
                with self._epochs.catch_stop_iteration():
                    for _ in self._epochs:
                        pass
        self.epoch_begins(end)

    def position_reached(self) -> None:
        """Record new draws from here on."""
        self._repeated = None

    # ---------------------------------------------------------------- the stream

    def _make(self, original: Callable[[], Any]) -> Iterator[Any]:
        if self._first_epoch is None or not self._is_one_shot:
            # A stream that is made after batches of this epoch is for the next one.
            is_next = self._reads_in_epoch > 0
            self._first_epoch = self._epoch + is_next
            if is_next and self._repeated is not None:
                self._repeated = self._repeated_next
            self._step, self._draws, self._after = 0, [], None
            self._digest = hashlib.blake2b(digest_size=16)
        return _Reads(self, self._take_step(lambda: iter(original())))

    def read(self, batches: Iterator[Any]) -> Any:
        """Return the next batch."""
        if self._repeated is not None:
            self._on_repeated(self._epoch, self._reads_in_epoch)
        batch = self._take_step(lambda: next(batches))
        self._reads_in_epoch += 1
        self._digest.update(batch_content(batch))
        return batch

    def _take_step[T](self, step: Callable[[], T]) -> T:
        if self._repeated is not None:
            states = self._repeated.get(self._step, self._after)
            if states is not None:
                set_states(states)
        before = get_states()
        try:
            return step()
        finally:
            after = get_states()
            # A step that goes on where the step before it ended needs no state of its own, unless it is the first.
            if after != before and (not self._draws or before != self._after):
                self._record(before)
            self._after = after
            self._step += 1

    def _record(self, before: States) -> None:
        if len(self._draws) < _MAX_DRAWS:
            self._draws.append((self._step, before))
        else:
            self._warnings.warning(
                "the data draws random numbers at each batch, and the first %d draws of a stream are kept: a fit that "
                "resumes after them may read its data in another order",
                _MAX_DRAWS,
            )


def _draws_of(saved: Mapping[str, Any]) -> dict[int, States]:
    return {step: tuple(states) for step, states in saved.get("draws", ())}


def is_same_data(saved: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Whether two states of streams may be of the same batches. True if they can't be compared."""
    return saved.get("steps") != own.get("steps") or saved.get("digest") == own.get("digest")


def _is_one_shot(x: Any, adapter: Any) -> bool:
    """Whether a second stream would go on where the first one ended. synalinks has the same rule for iterables."""
    is_iterable_again = hasattr(x, "__iter__") and not hasattr(x, "__next__")
    return not is_iterable_again and adapter.batch_size is None


class _Reads:
    """The iterator over one stream that synalinks reads from."""

    def __init__(self, stream: DataStream, batches: Iterator[Any]) -> None:
        self._stream, self._batches = stream, batches

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._stream.read(self._batches)
