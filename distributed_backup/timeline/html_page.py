"""Write the picture and the table of incidents as one page of HTML that loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from distributed_backup.timeline.chart import draw
from distributed_backup.timeline.history import History
from distributed_backup.timeline.incidents import IncidentCost
from distributed_backup.timeline.labels import HEADINGS, cells, title
from distributed_backup.timeline.svg import clean

_STYLE: Final = """
:root { color-scheme: light dark; background: #ffffff; color: #1f2328 }
body { margin: 0 auto; max-width: 1200px; font: 14px system-ui, -apple-system, 'Segoe UI', sans-serif }
svg { width: 100%; height: auto }
table { border-collapse: collapse; margin: 0 20px 40px }
th, td { text-align: left; padding: 4px 16px 4px 0; border-bottom: 1px solid #8884; font-variant-numeric: tabular-nums }
caption { text-align: left; font-weight: 600; padding: 4px 0 }
th[scope=row] { font-weight: normal }
.skip { position: absolute; left: -9999px }
.skip:focus { left: 20px; top: 0; padding: 4px; background: Canvas }
@media (prefers-color-scheme: dark) {
:root { background: #0d1117; color: #e6edf3 }
a { color: #58a6ff }
}
"""


# The picture has a stop of the Tab key for each of its marks.
_SKIP: Final = '<a class="skip" href="#incidents">Skip the picture</a>\n'
_CAPTION: Final = "Incidents and their costs, in order of time"


def page(history: History, costs: Sequence[IncidentCost]) -> str:
    """Return the page."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_safe(title(history))}</title>
<style>{_STYLE}</style>
</head>
<body>
{_SKIP if costs else ""}<main>
{draw(history, costs)}{_table(history, costs) if costs else ""}</main>
</body>
</html>
"""


def _table(history: History, costs: Sequence[IncidentCost]) -> str:
    head = "".join(f'<th scope="col">{_safe(heading)}</th>' for heading in HEADINGS)
    body = "\n".join(_row(cells(history, cost)) for cost in costs)
    return (
        f'<table id="incidents">\n<caption>{_CAPTION}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table>\n"
    )


def _row(texts: Sequence[str]) -> str:
    number, *rest = texts
    columns = "".join(f"<td>{_safe(text)}</td>" for text in rest)
    return f'<tr><th scope="row">{number}</th>{columns}</tr>'


def _safe(text: str) -> str:
    return escape(clean(text))
