"""Wait while it is in doubt whether this worker still leads.

A process that was suspended past its lease learns at its next heartbeat that another worker leads. Until then it sends
no request, and its training sees no new answer. The successor asks for the same, and has not read what is recorded now.

A successor reads the journal after the lease of its predecessor has expired. So it has read each record that was
durable while its predecessor led for certain.

The limit: the fit goes on after `DOUBT_LOOKS` looks, which take 5 s, because a coordinator may hang. Then nothing waits
until the next heartbeat has ended. The fit also goes on while the coordinator is out of reach. Two workers may then ask
for the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from distributed_backup.checkpoints.journal_writer import DOUBT_LOOKS, DOUBT_PERIOD


class Doubt:
    """What a fit knows of its lead. The functions may be called from any thread, and do no I/O.

    `is_certain`: no other worker can have led since this one began to. `exists`: the lease has run out since the last
    heartbeat. `may_ask`: training is not about to be cancelled. `give_up`: let there be no doubt before the next
    heartbeat has ended.
    """

    def __init__(
        self,
        *,
        is_certain: Callable[[], bool],
        exists: Callable[[], bool],
        give_up: Callable[[], None],
        may_ask: Callable[[], bool] = lambda: True,
    ) -> None:
        self.is_certain = is_certain
        self._exists = exists
        self._give_up = give_up
        self._may_ask = may_ask

    async def end(self) -> None:
        """Wait until there is no doubt. A standby waits for its cancellation, which comes in milliseconds.

        What is asked outside the batches of a fit is not cancelled. So that wait ends after `DOUBT_LOOKS`, too.
        """
        for _ in range(DOUBT_LOOKS):
            if self._exists():
                over = asyncio.Event()
                self.call_after(over.set)
                await over.wait()
            if self._may_ask():
                return
            await asyncio.sleep(DOUBT_PERIOD)

    def call_after(self, call: Callable[[], object]) -> None:
        """Call `call` from the running event loop when there is no doubt."""
        loop = asyncio.get_running_loop()
        self._look(loop, call, DOUBT_LOOKS)

    def after_append(
        self, call: Callable[[], object], call_from_thread: Callable[[Callable[[], object]], None]
    ) -> Callable[[], None]:
        """Return what an append calls when it is durable, from any thread.

        It has `call` called in the event loop, once no other worker can have begun to lead before the append.
        """

        def done() -> None:
            # Here and not in the loop: this worker may lead again by then.
            is_certain = self.is_certain()
            call_from_thread(call if is_certain else lambda: self.call_after(call))

        return done

    def _look(self, loop: asyncio.AbstractEventLoop, call: Callable[[], object], left: int) -> None:
        if self._exists():
            if left > 0:
                loop.call_later(DOUBT_PERIOD, self._look, loop, call, left - 1)
                return
            self._give_up()
        call()
