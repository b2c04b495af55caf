"""The newest result of each parser, and their table in this folder's README."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.fuzz.engine import COLUMNS, cells
from tests.support.figures import Document, Results, origins, table

PARSERS: Final = "parsers"
"""The name of the table."""


def _tables(results: Results) -> dict[str, str]:
    if not results:
        return {}
    rows = [cells(name, results[name]) for name in sorted(results, key=str.lower)]
    return {PARSERS: f"{table(COLUMNS, rows, COLUMNS[:1])}\n{origins(results.values())}"}


DOCUMENT: Final = Document(folder=Path(__file__).parent, tables=_tables)
