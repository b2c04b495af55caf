"""`distributed-backup demo`: the command line of the demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distributed_backup.cli.terminal import (
    INTERRUPTED,
    PROBLEM,
    console,
    exit_on_error,
    print_json,
    sigterm_as_exit,
)
from distributed_backup.errors import ConfigError

if TYPE_CHECKING:
    from distributed_backup.demo.messages import Plan
    from distributed_backup.demo.verdict import Verdict


def demo(
    workers: Annotated[int, typer.Option(min=2, max=16, help="How many workers.")] = 3,
    latency: Annotated[
        float, typer.Option(min=0.05, max=60.0, help="Seconds that a call of the language model takes.")
    ] = 0.2,
    grace: Annotated[
        float, typer.Option(min=0.5, max=600.0, help="Seconds between SIGTERM and the end of a worker.")
    ] = 10.0,
    plain: Annotated[
        bool, typer.Option("--plain", help="One line per event; the default where there is no terminal.")
    ] = False,
    backup_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the backup here; left out, it is deleted as usual.")
    ] = None,
    coordinator: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="How the workers agree on a leader: file:, a lock in the backup directory; the URL of a Redis or "
            "Valkey server, as redis://host:6379/0; or embedded-redis, a server that is started for this.",
        ),
    ] = "file:",
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON, all else to stderr.")] = False,
) -> None:
    """Watch a real fit survive SIGTERM and SIGKILL: real processes, an offline language model, under a minute.

    Starts workers that train the same program, ends two leaders, one politely and one not, restarts them, and
    compares the final states with an uninterrupted run's. Uses no network but a coordinator's. Calls of the language
    model count as repeated if a worker's earlier life had begun them beyond the position at which its next life
    resumed.

    On a Redis server nothing is left of it; there, another worker leads when the killed leader's lease has run out.

    JSON: {"holds", "final_state_equal", "coordinator": without credentials, "workers", "differences",
    "checkpoints_written", "calls_uninterrupted", "calls_by_worker", "sigterm": {"worker", "last_boundary", "on_disk",
    "durable_ms", "in_flight_durable_ms", "gone_ms", "next_leader_ms", "grace_period_ms", "exit_code",
    "calls_repeated", "calls_in_flight"}, "sigkill": {"worker", "next_leader_ms", "lease_ms", "limit_ms": of the lease
    and one tick, both null with file:, "calls_repeated"}, "backup_deleted": null if it is kept, "problems"}.

    Exit code: 0 everything that is promised held, 1 something did not, or the demonstration failed, 2 wrong usage.
    """
    from distributed_backup.demo.messages import Plan
    from distributed_backup.demo.text import pronounce

    plan = Plan(latency=latency, grace_period=grace)
    with exit_on_error():
        try:
            verdict = _perform(
                plan, coordinator, workers=workers, backup_dir=backup_dir, plain=plain, quiet_stdout=as_json
            )
        except KeyboardInterrupt:
            typer.echo("interrupted: all workers were stopped", err=True)
            raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json(verdict.as_json())
    else:
        for line in ("", *pronounce(verdict, plan)):
            typer.echo(line if plain else typer.style(line, **_emphasis(line, verdict)))
        if backup_dir is not None:
            typer.echo(f"Have a look: distributed-backup checkpoints list {backup_dir}")
    if not verdict.holds:
        raise typer.Exit(PROBLEM)


def _emphasis(line: str, verdict: Verdict) -> dict[str, Any]:
    if line.startswith("VERDICT"):
        return {"bold": True, "fg": "green" if verdict.holds else "red"}
    return {"fg": "red"} if line.startswith("  PROBLEM") else {}


def _perform(
    plan: Plan, coordinator: str, *, workers: int, backup_dir: Path | None, plain: bool, quiet_stdout: bool
) -> Verdict:
    from dataclasses import replace
    from tempfile import TemporaryDirectory

    from distributed_backup.demo.coordinator_setup import arranged
    from distributed_backup.demo.process import end_server
    from distributed_backup.demo.scenario import Director
    from distributed_backup.demo.screen import LiveScreen, PlainScreen
    from distributed_backup.demo.verdict import judge
    from distributed_backup.storage import storage_from_url

    keep = backup_dir is not None
    if backup_dir is not None:
        storage_from_url(backup_dir)  # refuses a URL, which is a path by now
    if backup_dir is not None and backup_dir.exists() and not (backup_dir.is_dir() and not any(backup_dir.iterdir())):
        raise ConfigError(f"--backup-dir must be empty or not exist yet: {backup_dir}")
    paper = console(stderr=quiet_stdout)
    screen = (
        PlainScreen(plan, lambda line: typer.echo(line, err=quiet_stdout))
        if plain or not paper.is_terminal
        else LiveScreen(plan, paper)
    )
    with (
        sigterm_as_exit(),
        TemporaryDirectory(prefix="distributed-backup-demo-") as scratch,
        arranged(coordinator, plan, scratch=Path(scratch)) as arrangement,
        screen,
    ):
        plan = replace(plan, coordination=arrangement.coordination)
        director = Director(
            plan,
            workers=workers,
            backup_dir=backup_dir or Path(scratch) / "run",
            keep=keep,
            logs=Path(scratch),
            audience=screen,
        )
        try:
            recording = director.run()
            recording.left_behind += arrangement.left_behind()
        finally:
            end_server()
    return judge(recording, plan, keep=keep)
