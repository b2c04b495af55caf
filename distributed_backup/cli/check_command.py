"""Define `distributed-backup check`, which tests a place before a run relies on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from distributed_backup.cli.terminal import PROBLEM, AsJson, exit_on_error, exit_on_stop, print_json, printable
from distributed_backup.urls import without_credentials

if TYPE_CHECKING:
    from distributed_backup.inspection.finding import Finding

_COLORS: Final = {"ok": "green", "warning": "yellow", "danger": "red", "unknown": "cyan"}
_INDENT: Final = 9

CheckedPlace = Annotated[
    str,
    typer.Argument(metavar="URL|DIR", help="A directory, the URL of a bucket (s3://…), or of a server (redis://…)."),
]
Wait = Annotated[
    float | None,
    typer.Option(
        max=86400.0,
        metavar="SECONDS",
        help="Run the same command on a second machine within this time: also test what the two see of each other.",
    ),
]


def check(place: CheckedPlace, wait: Wait = None, as_json: AsJson = False) -> None:
    """Test a directory, bucket or server for what a run needs of it: one line for each check.

    Tested are exclusive create, rename, fsync, append, delete, locks and clocks. Of a bucket also conditional writes,
    of a server election, expiry, memory and persistence. A second process of this machine takes part. All test files
    have names of their own and are removed. A run in the same place is not disturbed.

    Of each check: ok, warning (worth knowing), danger (a run could lose or repeat work) or unknown (not checked).

    Example: distributed-backup check /mnt/shared/run-42

    Exit codes: 0 no danger, 1 danger or no meeting, 2 wrong usage, 130 Ctrl-C.
    """
    from distributed_backup.inspection.place import findings_about, is_shared

    found: list[Finding] = []
    with exit_on_stop("the test files were removed"), exit_on_error():
        try:
            # Closed here and now, because closing removes the test files.
            with closing(findings_about(place, wait=wait)) as findings:
                for finding in findings:
                    found.append(finding)
                    if not as_json:
                        _print(finding)
        finally:
            if as_json and found:
                print_json({"place": without_credentials(place), "checks": [asdict(finding) for finding in found]})
    if not as_json:
        typer.echo(_verdict(found))
        if wait is None and is_shared(place):
            typer.echo("Not shown: what another machine sees. Run this command with --wait 60 on two machines at once.")
    if any(finding.status == "danger" for finding in found):
        raise typer.Exit(PROBLEM)


def _print(finding: Finding) -> None:
    status = typer.style(f"{finding.status:{_INDENT}}", fg=_COLORS[finding.status])
    typer.echo(f"{status}{printable(f'{finding.name}: {finding.found}')}")
    if finding.advice:
        typer.echo(" " * _INDENT + printable(finding.advice))


def _verdict(found: Sequence[Finding]) -> str:
    counts = Counter(finding.status for finding in found)
    rest = f"{len(found)} checks, {counts['warning']} warning(s), {counts['unknown']} not checked"
    if counts["danger"]:
        return f"{counts['danger']} dangerous: do not start a run here. {rest}"
    return f"Nothing dangerous was found. {rest}"
