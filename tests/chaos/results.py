"""The figures of campaigns, and their tables: faults that have hit, operators' commands, and sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.chaos.campaign import Result
from tests.chaos.excuses import is_recorded
from tests.support.figures import Document, Results, origins, own_tables, table

CAMPAIGNS: Final = "campaigns"
PLANTED: Final = "planted"
"""The names of the tables."""

_WHAT: Final = "what"
_FAULTS: Final = "all faults"


def name_of(coordinator: str, store: str) -> str:
    """Return the name of the campaigns over these. A new campaign replaces the one of its name."""
    return f"{coordinator} coordinator" + ("" if store == "dir" else f", files in {store}")


def figures(results: Sequence[Result], minutes: float) -> dict[str, Any]:
    """Return how often each fault and each command has happened, and the sums."""
    return {
        "faults": sum((each.faults for each in results), Counter[str]()),
        "commands": sum((each.commands for each in results), Counter[str]()),
        "sums": {
            "runs": len(results),
            "runs without an excuse": sum(is_recorded(each.story) for each in results),
            "processes of workers": sum(len(each.lives) for each in results),
            "minutes": round(minutes),
            "violations": sum(len(each.violations) for each in results),
        },
    }


def summary(campaigns: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table with a row for each kind of fault, and for each sum. Each campaign has a column."""
    found = list(campaigns.values())

    def counts(part: str, form: str = "{}") -> list[list[str]]:
        names = sorted({name for each in found for name in each[part]})
        return [[form.format(name), *(str(each[part].get(name, 0)) for each in found)] for name in names]

    rows = [
        *counts("faults"),
        [_FAULTS, *(str(sum(each["faults"].values())) for each in found)],
        *counts("commands", "`{}`"),
        *counts("sums"),
    ]
    return table([_WHAT, *campaigns], rows, [_WHAT])


def _tables(results: Results) -> dict[str, str]:
    planted = {name: result for name, result in results.items() if name == PLANTED}
    campaigns = {name: result for name, result in results.items() if name != PLANTED}
    made = f"{summary(campaigns)}\n{origins(campaigns.values())}"
    return own_tables(planted) | ({CAMPAIGNS: made} if campaigns else {})


DOCUMENT: Final = Document(folder=Path(__file__).parent, tables=_tables)
