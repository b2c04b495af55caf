"""Capture and restore the state of synalinks' own callbacks, and continue the file of a `CSVLogger`.

Of their attributes, those in `_STATE` are state. The rest are settings, or belong to the process: clocks, MLflow runs,
open files. `History` and `ProgbarLogger` are left out: as with synalinks' own backup, a history has the epochs since
the resume. Attributes that a subclass adds are left out too, unless the callback is saved whole.

Facts relied on (synalinks 0.10.14):

- `EarlyStopping`, `BudgetStopping` and `Monitor` reset themselves in `on_train_begin`, so they are restored after it.
- `EarlyStopping.monitor_op` and the sign of its `min_delta` follow from its settings at the first end of an epoch.
- `CSVLogger.on_train_begin` opens its file, and empties it unless `append=True`. So a checkpoint must hold the rows.
- A `CSVLogger` writes its header with the first row if `append_header` is true, and flushes each row.
"""

from __future__ import annotations

import logging
import os
from typing import Any, Final

import synalinks

from distributed_backup.training.attributes import ObjectState, Rule
from distributed_backup.training.in_place import InPlace
from distributed_backup.training.packing import pack, unpack

logger = logging.getLogger(__name__)

_STATE: Final[dict[type, frozenset[str]]] = {
    synalinks.callbacks.EarlyStopping: frozenset({"wait", "stopped_epoch", "best", "best_epoch", "best_variables"}),
    synalinks.callbacks.ProgramCheckpoint: frozenset(
        {"best", "_batches_seen_since_last_saving", "_last_batch_seen", "_current_epoch"}
    ),
    synalinks.callbacks.BudgetStopping: frozenset(
        {
            "_cost_baseline",
            "_tokens_baseline",
            "_cost_warned",
            "_epoch",
            "stopped_epoch",
            "stopped_batch",
            "stop_reason",
        }
    ),
    synalinks.callbacks.Monitor: frozenset(
        {"_steps", "_epoch", "_model_best", "_logged_models", "_fit_counters", "_epoch_counters"}
    ),
    synalinks.callbacks.CSVLogger: frozenset({"keys"}),
}


# Of a callback that is saved whole: set anew for each fit.
_OF_THE_PROCESS: Final = frozenset(
    {
        *("params", "_program"),
        *("csv_file", "writer", "append_header"),
        *("logger", "_run", "_active_model", "_experiment_id", "_trace_mark", "_fit_t0", "_epoch_t0", "run_id"),
        *("_prompt_versions", "_prompt_hashes", "_prompt_history", "_prompt_snapshot"),
    }
)


class HostCallback:
    """The state of one of synalinks' own callbacks, or of a subclass. `kind` is the name of synalinks' class.

    `whole` saves settings and the attributes of a subclass too.
    """

    def __init__(self, callback: Any, *, whole: bool = False) -> None:
        kind = next(kind for kind in _STATE if isinstance(callback, kind))
        self.kind = kind.__name__
        names = _STATE[kind]

        def rule(name: str) -> Rule:
            return Rule.STATE if name in names or (whole and name not in _OF_THE_PROCESS) else Rule.NOT_STATE

        self._attributes = ObjectState(callback, rule)
        self._budget = _BudgetReading(callback) if kind is synalinks.callbacks.BudgetStopping else None
        self._rows = _CsvRows(callback) if kind is synalinks.callbacks.CSVLogger else None

    def begin(self) -> None:
        """Note what was there before the run. Call it before a state is restored."""
        if self._rows is not None:
            self._rows.begin()

    def fits(self, saved: dict[str, Any]) -> bool:
        """Whether `restore` can set the state."""
        return self._attributes.fits(saved)

    def capture(self) -> dict[str, Any]:
        """Return the state, packed. `restore` takes it."""
        state = self._attributes.capture()
        if self._budget is not None:
            state["read"] = self._budget.capture()
        if self._rows is not None:
            state["rows"] = self._rows.capture()
        return state

    def restore(self, saved: dict[str, Any], in_place: InPlace) -> None:
        """Set the state that `capture` returned."""
        self._attributes.restore(saved, in_place)
        if self._budget is not None and "read" in saved:
            self._budget.restore(saved["read"])
        if self._rows is not None:
            self._rows.restore(saved.get("rows"))


def is_host_callback(item: Any) -> bool:
    """Whether `item` is one of synalinks' own callbacks that have state."""
    return isinstance(item, tuple(_STATE))


class _BudgetReading:
    """The counters that a `BudgetStopping` reads. Its baselines follow them if other models are read after a resume."""

    def __init__(self, callback: Any) -> None:
        self._callback = callback

    def capture(self) -> list[Any]:
        """Return the readings: cost and tokens."""
        return [self._callback._read_cost(), self._callback._read_tokens()]  # noqa: SLF001 - no public way, as below

    def restore(self, saved: list[Any]) -> None:
        """Move the restored baselines by what the readings differ. They are equal if the counters are restored."""
        cost, tokens = self.capture()
        self._callback._cost_baseline += cost - saved[0]  # noqa: SLF001
        self._callback._tokens_baseline += tokens - saved[1]  # noqa: SLF001


class _CsvRows:
    """The rows that a `CSVLogger` has written in this run. They are in the checkpoint, and so is their header."""

    def __init__(self, callback: Any) -> None:
        self._callback = callback
        self._start: int | None = None

    def begin(self) -> None:
        """Note the end of what was in the file before the run. Only with `append=True` there is anything."""
        file = getattr(self._callback, "csv_file", None)
        self._start = None if file is None else os.fstat(file.fileno()).st_size

    def capture(self) -> dict[str, Any] | None:
        """Return the rows. None if the file can't be read: then a resume leaves it alone."""
        if self._start is None:
            return None
        try:
            with open(self._callback.filepath, "rb") as file:
                file.seek(self._start)
                return {"start": self._start, "rows": pack(file.read())}
        except OSError:
            return None

    def restore(self, saved: dict[str, Any] | None) -> None:
        """Put the rows in the place of all that follows the content before the run. The logger goes on after them."""
        callback = self._callback
        if saved is None or getattr(callback, "csv_file", None) is None:
            return
        rows = unpack(saved["rows"])
        try:
            with open(callback.filepath, "r+b") as file:
                # Less is left if the logger has emptied the file, or if this is another machine.
                self._start = min(saved["start"], file.seek(0, os.SEEK_END))
                file.seek(self._start)
                if file.read() != rows:
                    file.seek(self._start)
                    file.truncate()
                    file.write(rows)
            callback.csv_file.seek(0, os.SEEK_END)
        except OSError as error:
            logger.warning("the rows of %s are not restored: %s", callback.filepath, error)
            return
        callback.append_header = self._start + len(rows) == 0
        # It belongs to the file that an earlier fit of this process has left open.
        callback.writer = None
