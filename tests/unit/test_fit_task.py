"""Test that a wait which blocks the event loop finds out about a cancellation of its task."""

from __future__ import annotations

import asyncio
import signal

import pytest

from distributed_backup.worker.fit_task import FitTask


def test_without_an_event_loop_nothing_is_cancelled() -> None:
    FitTask().raise_if_cancelled()


def test_ctrl_c_ends_a_wait_that_blocks_the_event_loop() -> None:
    async def fit() -> None:
        task = FitTask()
        task.raise_if_cancelled()
        signal.raise_signal(signal.SIGINT)
        task.raise_if_cancelled()
        pytest.fail("Ctrl-C was not noticed")

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(fit())


def test_an_earlier_cancellation_that_the_program_caught_does_not_count() -> None:
    async def program() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(0)
        FitTask().raise_if_cancelled()

    asyncio.run(program())
