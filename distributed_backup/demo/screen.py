"""Show a demonstration: as one live table above its newest messages, or as one plain line per message.

Both have the same texts, see `text`. The command line decides where they are printed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from distributed_backup.clock import SystemClock
from distributed_backup.demo.messages import REFERENCE, Message, Plan
from distributed_backup.demo.process_table import ProcessRecord, ProcessTable
from distributed_backup.demo.text import describe_message

_STYLES: Final = {
    "leader": "bold green",
    "follower": "cyan",
    "training": "cyan",
    "exiting": "bold yellow",
    "exited": "bold red",
    "finished": "green",
    "starting": "dim",
}
_LEGEND: Final = (
    "Each worker is a process that runs the same synalinks fit on one backup directory. One of them, the leader, "
    "writes checkpoints. The others train too, ready to take over. Each leadership has a new, higher term, and of two "
    "checkpoints the one with the higher term counts. The reference runs the same fit alone. All must end in its state."
)
_WIDE: Final = 110  # columns
_BAR: Final = 16
_SHORT_BAR: Final = 8


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


class LiveScreen:
    """Shows one table that changes, and the newest messages below it, on a `rich.console.Console` of a terminal.

    Each update renders a new picture: the thread of rich that draws it never reads the process table.
    """

    def __init__(self, plan: Plan, console: Any) -> None:
        from rich.live import Live

        self._plan = plan
        self._console = console
        self._clock = SystemClock()
        self._began = self._clock.now()
        self._step = ""
        self._lines: deque[tuple[str, str, str]] = deque(maxlen=200)
        self._last: dict[str, str] = {}
        self._processes = ProcessTable()
        self._live = Live(console=console, refresh_per_second=8, vertical_overflow="crop")

    def step(self, text: str) -> None:
        """Show the next step."""
        self._step = text
        self._lines.append((f"{self._clock.now() - self._began:.2f}", "", f"-- {text}"))
        self._draw()

    def message(self, message: Message, table: ProcessTable) -> None:
        """Show a message."""
        self._processes = table
        text = describe_message(message, self._plan)
        if text:
            self._last[message.name] = text
            self._lines.append((f"{message.at - self._began:.2f}", message.name, text))
        self._draw()

    def __enter__(self) -> LiveScreen:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _draw(self) -> None:
        from rich.console import Group

        # The lines of the legend, and one more where words wrap. Heading, table frame and empty lines are 8.
        legend = len(_LEGEND) // self._console.width + 2
        room = max(3, self._console.height - len(self._processes.records) - legend - 8)
        parts = [self._heading(), "", *([self._table()] if self._processes.records else []), "", self._log(room)]
        self._live.update(Group(*parts))

    def _heading(self) -> Any:
        from rich.console import Group
        from rich.spinner import Spinner
        from rich.text import Text

        return Group(Text(_LEGEND, style="dim"), "", Spinner("dots", text=Text(self._step, style="bold")))

    def _table(self) -> Any:
        from rich import box
        from rich.table import Table

        wide = self._console.width >= _WIDE
        bar = _BAR if wide else _SHORT_BAR
        table = Table(expand=wide, box=box.ROUNDED, header_style="bold", border_style="dim")
        table.add_column("Worker", no_wrap=True, min_width=9)
        table.add_column("ProcessSpec", no_wrap=True, min_width=10)
        table.add_column("Term", justify="right", no_wrap=True)
        table.add_column("Training completed", no_wrap=True, min_width=bar + 22)
        table.add_column("LM calls", justify="right", no_wrap=True)
        if wide:
            table.add_column("Last event", no_wrap=True, ratio=1)
        for records in self._processes.records.values():
            cells = self._cells(records[-1], sum(record.calls for record in records), bar)
            table.add_row(*(cells if wide else cells[:-1]))
        return table

    def _cells(self, record: ProcessRecord, calls: int, bar: int) -> list[Any]:
        from rich.text import Text

        style = _STYLES[record.status]
        alone = record.name == REFERENCE and record.status == "training"
        return [
            Text(record.name),
            Text("on its own" if alone else record.status, style=style),
            Text(str(record.term or "") if record.status in {"leader", "exiting"} else "", style=style),
            self._progress(record, bar),
            Text(str(calls)),
            Text(self._last.get(record.name, ""), style="dim"),
        ]

    def _progress(self, record: ProcessRecord, bar: int) -> Any:
        from rich.text import Text

        done = round(self._plan.progress(record.position) * bar)
        text = Text("━" * done, style=_STYLES[record.status]) + Text("╌" * (bar - done), style="grey37")
        return text + Text(f" {self._plan.describe(record.position)}", style="default")

    def _log(self, room: int) -> Any:
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 1))
        grid.add_column(justify="right", no_wrap=True, min_width=8)
        grid.add_column(no_wrap=True, min_width=9)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        for at, name, text in list(self._lines)[-room:]:
            style = "bold" if not name else "bold yellow" if text.startswith("<==") else ""
            grid.add_row(Text(f"{at} s", style="dim"), Text(name or "demo"), Text(text, style=style))
        return grid
