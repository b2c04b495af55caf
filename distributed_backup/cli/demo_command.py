"""Define `distributed-backup demo`, the demonstration of a preempted run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distributed_backup.cli.terminal import (
    PROBLEM,
    console,
    exit_on_error,
    exit_on_stop,
    print_json,
)
from distributed_backup.errors import ConfigError

if TYPE_CHECKING:
    from distributed_backup.demo.messages import Plan
    from distributed_backup.demo.verdict import Verdict

CoordinatorChoice = Annotated[
    str,
    typer.Option(
        metavar="URL",
        help="Leader election over file: (a lock in the backup directory), a Redis or Valkey server such as "
        "redis://host:6379/0, or embedded-redis (a temporary server).",
    ),
]


def demo(
    workers: Annotated[int, typer.Option(min=2, max=16, help="Number of workers.")] = 3,
    latency: Annotated[float, typer.Option(min=0.05, max=60.0, help="Seconds per call of the language model.")] = 0.2,
    grace: Annotated[float, typer.Option(min=0.5, max=600.0, help="Seconds that a worker has after SIGTERM.")] = 10.0,
    plain: Annotated[
        bool, typer.Option("--plain", help="Print one line per event. Default without a terminal.")
    ] = False,
    backup_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the backup in DIR. Default: delete it at the end.")
    ] = None,
    coordinator: CoordinatorChoice = "file:",
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON, and progress to stderr.")] = False,
) -> None:
    """Run a real fit through SIGTERM and SIGKILL, and compare its state and its calls with an uninterrupted run's.

    Real processes train with an offline language model for less than a minute. The leader asks it, and the others take
    its answers from the journal. One leader gets SIGTERM, the next one SIGKILL, and both restart. The only network
    traffic is to the coordinator. On a Redis server the next leader waits until the killed leader's lease has expired.
    All keys are deleted at the end.

    Example: distributed-backup demo --workers 4 --plain

    Exit codes: 0 all promises held, 1 they did not, 2 wrong usage, 130 Ctrl-C.
    """
    from distributed_backup.demo.messages import Plan
    from distributed_backup.demo.text import format_verdict

    plan = Plan(latency=latency, grace_period=grace)
    with exit_on_error(), exit_on_stop("all workers were stopped"):
        verdict = _run_demo(
            plan, coordinator, workers=workers, backup_dir=backup_dir, plain=plain, quiet_stdout=as_json
        )
    if as_json:
        print_json(verdict.as_json())
    else:
        for line in ("", *format_verdict(verdict, plan)):
            typer.echo(line if plain else typer.style(line, **_emphasis(line, verdict)))
        if backup_dir is not None:
            typer.echo(f"The backup is kept: distributed-backup checkpoints list {backup_dir}")
    if not verdict.holds:
        raise typer.Exit(PROBLEM)


def _emphasis(line: str, verdict: Verdict) -> dict[str, Any]:
    if line.startswith("VERDICT"):
        return {"bold": True, "fg": "green" if verdict.holds else "red"}
    return {"fg": "red"} if line.startswith("  PROBLEM") else {}


def _run_demo(
    plan: Plan, coordinator: str, *, workers: int, backup_dir: Path | None, plain: bool, quiet_stdout: bool
) -> Verdict:
    from dataclasses import replace
    from tempfile import TemporaryDirectory

    from distributed_backup.demo.coordinator_setup import coordinator_for
    from distributed_backup.demo.process import stop_fork_server
    from distributed_backup.demo.scenario import Scenario
    from distributed_backup.demo.screen import LiveScreen, PlainScreen
    from distributed_backup.demo.verdict import judge
    from distributed_backup.storage import absolute_place

    keep = backup_dir is not None
    if backup_dir is not None:
        backup_dir = Path(absolute_place(backup_dir))  # refuses a URL that was mangled into a path
        if backup_dir.exists() and not (backup_dir.is_dir() and not any(backup_dir.iterdir())):
            raise ConfigError(f"--backup-dir must be empty or not exist yet: {backup_dir}")
    terminal = console(stderr=quiet_stdout)
    screen = (
        PlainScreen(plan, lambda line: typer.echo(line, err=quiet_stdout))
        if plain or not terminal.is_terminal
        else LiveScreen(plan, terminal)
    )
    with (
        TemporaryDirectory(prefix="distributed-backup-demo-") as scratch,
        coordinator_for(coordinator, plan, scratch=Path(scratch)) as setup,
        screen,
    ):
        plan = replace(plan, coordination=setup.coordination)
        scenario = Scenario(
            plan,
            workers=workers,
            backup_dir=backup_dir or Path(scratch) / "run",
            keep=keep,
            logs=Path(scratch),
            observer=screen,
        )
        try:
            recording = scenario.run()
            recording.leftovers += setup.leftovers()
        finally:
            stop_fork_server()
    return judge(recording, plan, keep=keep)
