"""Test the program as a whole: imports, speed, and what a wrong stream or argument leads to."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import pytest
from typer.testing import CliRunner

from distributed_backup.cli.app import app
from distributed_backup.cli.terminal import exit_on_output_error
from tests.support.cli_runs import NEWEST, OLDER, assert_refused, call, damage


@pytest.mark.parametrize("words", [["nonsense"], ["status", "--nonsense", "."], ["demo", "--workers", "1"]])
def test_wrong_words_are_wrong_usage(words: list[str]) -> None:
    assert call(*words).exit_code == 2


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, timeout=60)


def test_a_warning_of_the_library_is_not_printed_besides(run: Path) -> None:
    """`show` skips a damaged checkpoint, and the store logs a warning."""
    damage(run / NEWEST)
    result = python("-m", "distributed_backup.cli.app", "checkpoints", "show", str(run))
    assert (result.returncode, result.stderr) == (0, "")
    assert OLDER in result.stdout


def written_to(output: IO[str], words: list[str]) -> tuple[int, str]:
    """Run the program with this output, and return its exit code and what it says on stderr."""
    line = [sys.executable, "-m", "distributed_backup", *words]
    done = subprocess.run(line, stdout=output, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize("words", [["status"], ["checkpoints", "list"]])
def test_who_reads_no_further_is_told_nothing(run: Path, words: list[str]) -> None:
    """A closed pipe, as with `| head`, leads to no message."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed:
        assert written_to(closed, [*words, str(run)]) == (1, "")


@pytest.mark.parametrize("words", [["status"], ["checkpoints", "list"], ["check"]])
def test_output_that_can_not_be_written_is_no_finding(run: Path, words: list[str]) -> None:
    said = "error: the output can't be written: No space left on device. Write it to another place\n"
    with open("/dev/full", "w") as full:
        assert written_to(full, [*words, str(run)]) == (2, said)


@pytest.mark.parametrize(
    "words", [["check", "."], ["check", ".", "--json"], ["status", "/nowhere"], ["check", "--nonsense"]]
)
def test_a_program_that_can_write_nowhere_ends_as_wrong_usage(tmp_path: Path, words: list[str]) -> None:
    """Its sentence can't be written either."""
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "distributed_backup", *words],
            cwd=tmp_path,
            stdout=full,
            stderr=full,
            check=False,
            timeout=60,
        )
    assert result.returncode == 2


def test_an_error_that_can_not_be_written_is_no_finding(run: Path) -> None:
    """The command has found a problem, and could not say so."""
    damage(run / NEWEST)
    damage(run / OLDER)
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "distributed_backup", "checkpoints", "show", str(run)],
            stdout=subprocess.PIPE,
            stderr=full,
            check=False,
            timeout=60,
        )
    assert (result.returncode, result.stdout) == (2, b"")


def test_an_error_of_a_file_is_not_said_to_be_one_of_the_output() -> None:
    with pytest.raises(FileNotFoundError), exit_on_output_error():
        Path("/nowhere/file").read_bytes()
    with pytest.raises(ConnectionRefusedError), exit_on_output_error():
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["-c", "import distributed_backup"], 0),
        (["-m", "distributed_backup.cli.app", "--help"], 0),
        (["-m", "distributed_backup.cli.app", "status", "/nowhere"], 2),
        (["-m", "distributed_backup.cli.app", "preempt", "/nowhere"], 2),
        (["-c", "import distributed_backup.demo.scenario, distributed_backup.demo.screen"], 0),
    ],
)
def test_nothing_imports_synalinks_or_redis_that_does_not_need_them(words: list[str], code: int) -> None:
    result = python("-X", "importtime", *words)
    assert result.returncode == code, result.stderr
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert "distributed_backup" in imported
    assert not imported & {"synalinks", "redis", "litellm", "numpy"}


@pytest.mark.parametrize(
    "words",
    [
        *(("status", "--json"), ("checkpoints", "list", "--json"), ("checkpoints", "show", "--json")),
        *(("preempt",), ("preempt", "--json"), ("resign",), ("checkpoints", "verify"), ("events",)),
    ],
)
def test_rich_is_imported_for_tables_only(run: Path, words: tuple[str, ...]) -> None:
    """JSON output and preStop hooks must not wait for that import."""
    result = python("-X", "importtime", "-m", "distributed_backup", *words, str(run))
    assert "distributed_backup.cli.locate" in result.stderr
    assert not any("rich.table" in line or "rich.console" in line for line in result.stderr.splitlines())


def test_the_version_is_printed_without_what_the_commands_import() -> None:
    """It names the installed distribution. The packages that commands need are not imported."""
    result = python("-X", "importtime", "-m", "distributed_backup", "--version")
    assert (result.returncode, result.stdout) == (0, f"distributed-backup {metadata.version('distributed-backup')}\n")
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "distributed_backup.cli.app" in imported
    heavy = {"rich", "redis", "fsspec", "filelock", "numpy", "synalinks", "distributed_backup.checkpoints"}
    assert not imported & heavy


def test_help_is_quick_and_does_without_rich() -> None:
    """The limit is 0.4 s of processor time. Other processes of the machine do not count."""
    result = python("-X", "importtime", "-m", "distributed_backup.cli.app", "--help")
    assert "checkpoints" in result.stdout
    assert not any(" rich" in line or "filelock" in line for line in result.stderr.splitlines())
    assert min(_processor_time_of_help() for _ in range(3)) < 0.4


def _processor_time_of_help() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    python("-m", "distributed_backup.cli.app", "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_an_unreadable_directory_is_a_problem(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    # As root, file permissions would not refuse the read.
    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    assert_refused(call("checkpoints", "list", run), 1, "can't list", "Permission denied")


@pytest.mark.parametrize("command", [("status", "DIR"), ("preempt", "DIR"), ("resign", "DIR"), ("demo",)])
@pytest.mark.parametrize("url", ["redis://user:s3cr3t@host/0", "redis://host?password=s3cr3t", "--x=redis://:s3cr3t@h"])
def test_a_url_where_none_is_wanted_is_not_quoted_with_its_password(command: tuple[str, ...], url: str) -> None:
    """A forgotten --coordinator must not print the password to the screen or a job's log."""
    result = CliRunner().invoke(app, [*command, url])
    assert result.exit_code == 2
    assert "s3cr3t" not in result.output
    assert "rror" in result.output


@pytest.mark.parametrize("command", ["status", "preempt", "resign", "events", "check"])
@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("redis:/user:s3cr3t@host/0", "redis://host/0 has lost a slash"),
        ("rediss:/:s3cr3t@host/0", "rediss://host/0 has lost a slash"),
        ("redis:s3cr3t@host", "…@host looks like the address of a server"),
        (":s3cr3t@host", "does not begin with a scheme"),
        (" redis://u:s3cr3t@host", "redis://host looks like the address of a server and has a blank"),
        ("redis://host?password=s3cr3t ", "redis://host looks like the address of a server and has a blank"),
    ],
)
def test_a_mistyped_url_is_not_quoted_with_its_password(command: str, target: str, said: str) -> None:
    """Each target would be taken for a directory."""
    result = call(command, target)
    assert_refused(result, 2, said)
    assert "s3cr3t" not in result.output


@pytest.mark.parametrize("place", ["s3://bucket/x", "redis://user:s3cr3t@host/0"])
def test_the_demonstration_keeps_its_backup_in_a_directory_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The error comes before the workers start."""
    monkeypatch.chdir(tmp_path)
    result = call("demo", "--backup-dir", place)
    assert_refused(result, 2, "has lost a slash, as a URL does that is made a path")
    assert "s3cr3t" not in result.output
    assert list(tmp_path.iterdir()) == []
