"""How a demonstration is shown: one live table with the event log below it, or one plain line per event.

Both say the same, see `words`. Where it is printed is the command line's business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from distributed_backup.clock import Clock, SystemClock
from distributed_backup.demo.messages import REFERENCE, Message, Plan
from distributed_backup.demo.process_table import Cast, Life
from distributed_backup.demo.text import narrate

_STYLES: Final = {
    "leader": "bold green",
    "follower": "cyan",
    "training": "cyan",
    "leaving": "bold yellow",
    "gone": "bold red",
    "finished": "green",
    "starting": "dim",
}
_LEGEND: Final = (
    "Each worker is a process that runs the same synalinks fit on one backup directory. One of them, the leader, "
    "writes checkpoints; the others train along, ready to take over. Each leadership has a term of its own, and of "
    "two checkpoints that of the higher term counts. The reference runs the same fit alone: all must end as it does."
)
_WIDE: Final = 110
_BAR: Final = 16
_SHORT_BAR: Final = 8


class PlainScreen:
    """One line per event, without control characters, for logs and pipes.

    Args:
        plan: What is trained.
        write: Takes a line.
        clock: Where time comes from.
    """

    def __init__(self, plan: Plan, write: Callable[[str], None], clock: Clock | None = None) -> None:
        self._plan = plan
        self._write = write
        self._clock = clock or SystemClock()
        self._began = self._clock.now()

    def step(self, text: str) -> None:
        """The director goes on to the next step."""
        self._write(f"{self._clock.now() - self._began:6.2f} s  -- {text}")

    def message(self, message: Message, cast: Cast) -> None:  # noqa: ARG002 - the audience's signature
        """Something happened."""
        text = narrate(message, self._plan)
        if text:
            self._write(f"{message.at - self._began:6.2f} s  {message.name:<10} {text}")

    def __enter__(self) -> PlainScreen:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class LiveScreen:
    """One table that changes, and below it the newest events; needs a terminal.

    Each update is a picture of its own: the thread that draws never looks at what the director changes.

    Args:
        plan: What is trained.
        console: A `rich.console.Console`.
        clock: Where time comes from.
    """

    def __init__(self, plan: Plan, console: Any, clock: Clock | None = None) -> None:
        from rich.live import Live

        self._plan = plan
        self._console = console
        self._clock = clock or SystemClock()
        self._began = self._clock.now()
        self._step = ""
        self._lines: deque[tuple[str, str, str]] = deque(maxlen=200)
        self._last: dict[str, str] = {}
        self._cast = Cast()
        self._live = Live(console=console, refresh_per_second=8, vertical_overflow="crop")

    def step(self, text: str) -> None:
        """The director goes on to the next step."""
        self._step = text
        self._lines.append((f"{self._clock.now() - self._began:.2f}", "", f"-- {text}"))
        self._draw()

    def message(self, message: Message, cast: Cast) -> None:
        """Something happened."""
        self._cast = cast
        text = narrate(message, self._plan)
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

        # The legend's lines, one more where words wrap; heading, frame of the table and empty lines are 8.
        legend = len(_LEGEND) // self._console.width + 2
        room = max(3, self._console.height - len(self._cast.lives) - legend - 8)
        parts = [self._heading(), "", *([self._table()] if self._cast.lives else []), "", self._log(room)]
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
        table.add_column("Role", no_wrap=True, min_width=10)
        table.add_column("Term", justify="right", no_wrap=True)
        table.add_column("Training completed", no_wrap=True, min_width=bar + 22)
        table.add_column("LM calls", justify="right", no_wrap=True)
        if wide:
            table.add_column("Last event", no_wrap=True, ratio=1)
        for lives in self._cast.lives.values():
            cells = self._cells(lives[-1], sum(life.calls for life in lives), bar)
            table.add_row(*(cells if wide else cells[:-1]))
        return table

    def _cells(self, life: Life, calls: int, bar: int) -> list[Any]:
        from rich.text import Text

        style = _STYLES[life.part]
        alone = life.name == REFERENCE and life.part == "training"
        return [
            Text(life.name),
            Text("on its own" if alone else life.part, style=style),
            Text(str(life.term or "") if life.part in {"leader", "leaving"} else "", style=style),
            self._progress(life, bar),
            Text(str(calls)),
            Text(self._last.get(life.name, ""), style="dim"),
        ]

    def _progress(self, life: Life, bar: int) -> Any:
        from rich.text import Text

        done = round(self._plan.progress(life.position) * bar)
        text = Text("━" * done, style=_STYLES[life.part]) + Text("╌" * (bar - done), style="grey37")
        return text + Text(f" {self._plan.describe(life.position)}", style="default")

    def _log(self, room: int) -> Any:
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 1))
        grid.add_column(justify="right", no_wrap=True, min_width=8)
        grid.add_column(no_wrap=True, min_width=9)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        for at, name, text in list(self._lines)[-room:]:
            style = "bold" if not name else "bold yellow" if text.startswith("<==") else ""
            grid.add_row(Text(f"{at} s", style="dim"), Text(name or "director"), Text(text, style=style))
        return grid
