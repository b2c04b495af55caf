"""Show a demonstration: one line per message, on a terminal above a live table of the processes.

The texts are in `text`. The command line decides where they are printed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from distributed_backup.clock import SystemClock
from distributed_backup.demo.messages import Message, Plan
from distributed_backup.demo.process_table import ProcessTable
from distributed_backup.demo.text import describe_message

_STYLES: Final = {"leader": "bold green", "exiting": "bold yellow", "exited": "bold red"}
_LEGEND: Final = (
    "Each worker is a process that runs the same synalinks fit on one backup directory. One of them, the leader, asks "
    "the language model, and writes checkpoints and a journal of the answers. The others train with these answers, "
    "ready to take over. Each leadership has a new, higher term, and of two checkpoints the one with the higher term "
    "counts. The reference runs the same fit alone. All must end in its state, and pay for no more calls together."
)
_BAR: Final = 8  # columns. The table has 80.


class PlainScreen:
    """Writes one line per message, without control characters, for logs and pipes."""

    def __init__(self, plan: Plan, write: Callable[[str], None]) -> None:
        self._plan = plan
        self._write = write
        self._clock = SystemClock()
        self._began = self._clock.now()

    def step(self, text: str) -> None:
        """Show the next step."""
        self._write(f"{self._clock.now() - self._began:6.2f} s  -- {text}")

    def message(self, message: Message, table: ProcessTable) -> None:  # noqa: ARG002 - the observer's signature
        """Show a message."""
        text = describe_message(message, self._plan)
        if text:
            self._write(f"{message.at - self._began:6.2f} s  {message.name:<10} {text}")

    def __enter__(self) -> PlainScreen:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class LiveScreen(PlainScreen):
    """Writes the same lines above one table that changes, on a `rich.console.Console` of a terminal.

    Each update renders a new table: the thread of rich that draws it never reads the process table.
    """

    def __init__(self, plan: Plan, console: Any) -> None:
        from rich.live import Live

        super().__init__(plan, self._print)
        self._console = console
        self._live = Live(console=console, refresh_per_second=8)

    def _print(self, line: str) -> None:
        from rich.text import Text

        text = Text(line)
        text.highlight_regex(r"(<==|--) .*", "bold")
        self._console.print(text)

    def message(self, message: Message, table: ProcessTable) -> None:
        """Show a message."""
        super().message(message, table)
        self._live.update(self._table(table))

    def __enter__(self) -> LiveScreen:
        self._console.print(_LEGEND, style="dim", highlight=False)
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _table(self, processes: ProcessTable) -> Any:
        from rich import box
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table(box=box.ROUNDED, border_style="dim")
        for heading in ("Worker", "Status", "Term", "Progress", "Completed", "LM calls"):
            table.add_column(heading, no_wrap=True)
        for records in processes.records.values():
            record = records[-1]
            style, progress = _STYLES.get(record.status, "default"), self._plan.progress(record.position)
            table.add_row(
                record.name,
                f"[{style}]{record.status}",
                str(record.term or "") if record.status in {"leader", "exiting"} else "",
                ProgressBar(total=1.0, completed=progress, width=_BAR, complete_style=style, finished_style=style),
                self._plan.describe(record.position),
                str(sum(item.answers.total() for item in records)),
            )
        return table
