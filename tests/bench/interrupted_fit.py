"""One fit of the benchmark `interruptions`, in a child that may be killed. Imports synalinks.

OMEGA with 3 batches of 8 and 32 validation samples in each of 3 epochs. The model answers each prompt in the same way
at each time, after 20 ms, so an uninterrupted fit always makes the same number of calls.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import synalinks

from distributed_backup import BackupAndRestore
from distributed_backup.demo.offline_model import OfflineLanguageModel
from tests.bench.interruptions import Case
from tests.support import programs
from tests.support.programs import build_program, samples

_LATENCY: Final = 0.02
_GRACE_PERIOD: Final = 1.5


class CountedLanguageModel(OfflineLanguageModel):
    """Notes each answer in a file, reports one of them, and may answer no request after that one."""

    calls_file: int
    report: Callable[..., None]
    reported: int | None = None
    hangs = False
    cache: str | None = None
    _answered = 0

    def __init__(self, latency: float = 0.0) -> None:
        super().__init__(latency=_LATENCY)
        if self.cache is not None:
            self.cache_dir = self.cache
            self._file_cache = synalinks.LanguageModel(model="openai/offline", cache_dir=self.cache)._file_cache

    async def _acompletion(self, formatted_messages: Any, **kwargs: Any) -> dict[str, Any]:
        model = CountedLanguageModel
        answer = await super()._acompletion(formatted_messages, **kwargs)
        if model.hangs and model._answered == model.reported:
            await asyncio.sleep(600.0)
        model._answered += 1
        os.write(model.calls_file, b".")
        if model._answered == model.reported:
            model.report("kill")
        return answer


def live(report: Callable[..., None], case: Case, root: Path, kill_at: int | None) -> None:
    """Run the fit until it ends or is killed."""
    logging.getLogger("synalinks").setLevel(logging.ERROR)
    model = CountedLanguageModel
    model.calls_file = os.open(root / "calls", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    model.report, model.reported, model.hangs = report, kill_at, case.is_cut_off
    model.cache = str(root / "cache") if case.keeper == "synalinks and cache_dir" else None
    vars(programs)["OfflineLanguageModel"] = model
    asyncio.run(_fit(case, root))


async def _fit(case: Case, root: Path) -> None:
    program, _ = await build_program(optimizer="omega")
    x, y = samples(24)
    callback = (
        synalinks.callbacks.BackupAndRestore(str(root / "backup"), save_freq=case.save_freq)
        if case.keeper.startswith("synalinks")
        else BackupAndRestore(
            root / "backup",
            save_freq=case.save_freq,
            journal=case.keeper == "ours",
            grace_period=_GRACE_PERIOD,
        )
    )
    await program.fit(
        x, y, validation_data=samples(32, offset=1000), epochs=3, batch_size=8, minibatch_size=None, verbose=0,
        callbacks=[callback],
    )  # fmt: skip
