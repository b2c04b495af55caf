"""Test `process_exit.is_exiting`: which code after `Preempted` is on its way out, and which one goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from distributed_backup.preemption.exit import Preempted
from distributed_backup.preemption.process_exit import is_exiting

PATIENCE = 30.0


def fit() -> None:
    """End as a fit that was preempted."""
    raise Preempted(143, position=None, checkpoint=None, seconds=0.0)


def test_a_program_that_has_caught_the_exit_goes_on() -> None:
    """Also if it keeps the exception."""
    assert not is_exiting(None)
    with pytest.raises(Preempted) as kept:
        fit()
    assert not is_exiting(None)
    assert kept.value.code == 143


def fail() -> None:
    raise ValueError


def fit_with_cleanup(found: list[bool]) -> None:
    """End as a fit that was preempted, with a cleanup that looks, and that meets an error of its own."""
    try:
        fit()
    finally:
        found.append(is_exiting(None))
        try:
            fail()
        except ValueError:
            found.append(is_exiting(None))


def test_cleanup_on_the_way_out_is_an_exit() -> None:
    """In a `finally` block, and in the handling of another error there."""
    found: list[bool] = []
    with pytest.raises(Preempted):
        fit_with_cleanup(found)
    assert found == [True, True]
    assert not is_exiting(None)


def test_cleanup_in_another_thread_is_an_exit() -> None:
    """A fit may run off the main thread."""
    inside, leave = threading.Event(), threading.Event()

    def run() -> None:
        try:
            fit()
        except Preempted:
            inside.set()
            leave.wait(PATIENCE)

    thread = threading.Thread(target=run)
    thread.start()
    assert inside.wait(PATIENCE)
    assert is_exiting(None)
    leave.set()
    thread.join()
    assert not is_exiting(None)


def seen_by_another_task(program: Callable[[Awaitable[object]], Awaitable[None]]) -> bool:
    """Run a program that awaits what it is given. Return what another task finds meanwhile."""

    async def run() -> bool:
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        leave = asyncio.Event()

        async def wait() -> None:
            reached.set_result(None)
            await leave.wait()

        async def main() -> None:
            with suppress(Preempted):
                await program(wait())

        task = asyncio.create_task(main())
        await reached
        found = is_exiting(task)
        leave.set()
        await task
        assert not is_exiting(task)
        return found

    return asyncio.run(run())


async def in_finally(work: Awaitable[object]) -> None:
    try:
        fit()
    finally:
        await work


async def in_a_context(work: Awaitable[object]) -> None:
    @asynccontextmanager
    async def client() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await work

    async with client():
        fit()


async def in_except(work: Awaitable[object]) -> None:
    try:
        fit()
    except Preempted as preempted:
        await work
        raise preempted from None


async def after_except(work: Awaitable[object]) -> None:
    kept = None
    try:
        fit()
    except Preempted as preempted:
        kept = preempted
    await work
    assert kept is not None


@pytest.mark.parametrize(
    ("program", "exits"), [(in_finally, True), (in_a_context, True), (in_except, True), (after_except, False)]
)
def test_a_coroutine_that_waits_in_its_cleanup_is_an_exit(
    program: Callable[[Awaitable[object]], Awaitable[None]], exits: bool
) -> None:
    """No thread shows the exception while the coroutine waits. One that has caught it goes on."""
    assert seen_by_another_task(program) is exits
