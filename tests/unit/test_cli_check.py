"""`distributed-backup check` on directories: what it prints, its exit codes, and that it leaves nothing behind."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest

from distributed_backup.inspection import files, meeting, mounts
from distributed_backup.inspection.directory import MEETING
from tests.support.check_names import OF_DIRECTORIES, OF_PAIRS
from tests.support.cli_runs import assert_refused, call, call_json
from tests.support.servers import wait_for


@pytest.fixture(autouse=True)
def on_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that runs the tests may be slow, or have its temporary files in memory."""
    monkeypatch.setattr(mounts, "_TABLE", Path("/nowhere"))
    monkeypatch.setattr(files, "_SLOW_COMMIT", 60.0)
    monkeypatch.setattr(files, "_SLOW_APPEND", 60.0)
    monkeypatch.setattr(files, "_SLOW_RATE", 0.0)
    monkeypatch.setattr(meeting, "_SOON", 60.0)


def tree(root: Path) -> list[tuple[str, int]]:
    """Return names and modification times of all files below a directory."""
    return sorted((str(path), path.stat().st_mtime_ns) for path in root.rglob("*"))


def test_a_line_for_each_check_and_a_verdict(tmp_path: Path) -> None:
    result = call("check", tmp_path)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    *checks, verdict, rest = [line for line in lines if not line.startswith(" ")]
    assert [line[9:].partition(":")[0] for line in checks] == OF_DIRECTORIES
    assert [line.split()[0] for line in checks] == ["unknown", *["ok"] * (len(OF_DIRECTORIES) - 1)]
    assert verdict == f"Nothing dangerous was found. {len(OF_DIRECTORIES)} checks, 0 warning(s), 1 not checked"
    assert rest.startswith("Not shown: what another machine sees.")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("as_url", [False, True])
def test_a_run_in_the_same_directory_is_not_touched(run: Path, as_url: bool) -> None:
    before = tree(run)
    assert call("check", f"file://{run}" if as_url else run).exit_code == 0
    assert tree(run) == before


def test_a_directory_that_is_missing_is_checked_in_the_one_above(tmp_path: Path) -> None:
    """It is not made. A second missing directory may be a volume that is not mounted."""
    [_, one, *_] = call_json("check", tmp_path / "run-42")["checks"]
    assert (one["status"], one["found"]) == (
        "ok",
        f"{tmp_path}/run-42 does not exist yet and can be made in {tmp_path}",
    )
    [_, two, *_] = call_json("check", tmp_path / "mnt" / "run-42")["checks"]
    assert (two["status"], "volume is not mounted" in two["advice"]) == ("warning", True)
    assert os.listdir(tmp_path) == []


# -------------------------------------------------------------------- wrong usage


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["file:"], "names nothing that can be checked"),
        (["memory:"], "names nothing that can be checked"),
        (["memory://run"], "names nothing that can be checked"),
        (["s3:/bucket/run"], "has lost a slash"),
        (["ftp-of-the-moon://a/b"], "the scheme is unknown"),
        (["redis://user:secret@host:99999"], "can't be used as the URL of a Redis server"),
        (["redis://user:secret@host", "--wait", "1"], "--wait is for directories and buckets"),
        ([".", "--wait", "0"], "--wait must be a positive number"),
    ],
)
def test_what_can_not_be_checked_is_wrong_usage(words: list[str], said: str) -> None:
    result = call("check", *words)
    assert_refused(result, 2, said)
    assert "secret" not in result.output


def planted(path: Path, kind: str) -> Path:
    if kind == "file":
        path.write_text("x")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("away")
    return path


@pytest.mark.parametrize("below", ["", "run-42"])
@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_a_file_is_wrong_usage(tmp_path: Path, kind: str, below: str) -> None:
    path = planted(tmp_path / kind, kind)
    assert_refused(call("check", path / below), 2, f"{path} is not a directory: name one, or a path where one can be")
    assert_refused(call("check", "/dev/null"), 2, "/dev/null is not a directory: name one, or a path where one can be")


@pytest.mark.parametrize("below", ["", "run-42"])
def test_a_link_that_leads_nowhere_is_wrong_usage(tmp_path: Path, below: str) -> None:
    """Its target may be on a volume that is not mounted."""
    path = planted(tmp_path / "link", "link")
    said = f"{path} is a link to away, where this user finds nothing: mount or make that directory, or name another one"
    assert_refused(call("check", path / below), 2, said)


# -------------------------------------------------------------------- faults


def refusing(code: int) -> Any:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.mark.parametrize(
    ("module", "name", "fault", "check", "said"),
    [
        (os, "link", refusing(errno.EPERM), "exclusive create", "SMB and some FUSE file systems have no hard links"),
        (os, "fsync", refusing(errno.EIO), "directory", "Input/output error"),
        (os, "mkdir", refusing(errno.EROFS), "directory", "Read-only file system"),
        (fcntl, "flock", lambda *_: None, "file lock", "would elect two leaders"),
    ],
)
def test_a_directory_with_a_fault_is_dangerous(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, fault: Any, check: str, said: str
) -> None:
    """Only this process has the fault, as one of two clients of a file server may."""
    monkeypatch.setattr(module, name, fault)
    result = call("check", tmp_path)
    monkeypatch.undo()
    assert result.exit_code == 1
    assert f"danger   {check}: " in result.stdout
    assert said in result.stdout
    assert "dangerous: do not start a run here." in result.stdout
    assert os.listdir(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB, in memory."""
    point = tmp_path / "disk"
    point.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(point)], check=False)
    if done.returncode:
        pytest.skip("this user may not mount")
    yield point
    done = subprocess.run(["umount", str(point)], check=False)
    if done.returncode:
        subprocess.run(["umount", "-l", str(point)], check=True)
    assert done.returncode == 0, "a file is still open"


def test_a_disk_that_is_full_is_dangerous(small_disk: Path) -> None:
    found = {each["name"]: each for each in call_json("check", small_disk, code=1)["checks"]}
    assert {name for name, each in found.items() if each["status"] == "danger"} == {"space", "large write"}
    assert "No space left on device" in found["large write"]["found"]
    assert os.listdir(small_disk) == []


def test_a_disk_that_is_read_only_is_dangerous(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    found = call_json("check", small_disk, code=1)["checks"]
    assert [each["name"] for each in found] == ["file system", "directory", "other checks"]
    assert "Read-only file system" in found[1]["found"]
    assert found[1]["advice"].endswith("Mount it read-write.")


def test_a_disk_without_any_room_is_dangerous(small_disk: Path) -> None:
    with suppress(OSError):
        (small_disk / "full").write_bytes(bytes(5 * 2**20))
    for number in range(1000):  # also what a folder needs
        with suppress(OSError):
            (small_disk / f"{number}").write_bytes(b"1")
    result = call("check", small_disk, "--wait", "600")  # no other machine is waited for
    assert result.exit_code == 1
    assert "No space left on device" in result.stdout
    assert "A run can't keep checkpoints here. Make room." in result.stdout
    assert "2 not checked" in result.stdout


# -------------------------------------------------------------------- as a program

PROGRAM = [sys.executable, "-m", "distributed_backup", "check"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_who_interrupts_it_finds_nothing_left(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """Neither files, nor the second process, which is stopped here, so that the command waits for it."""
    program = subprocess.Popen([*PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children")
    wait_for(lambda: any(tmp_path.rglob("*.b.log")), "the second process says something")
    other = int(children.read_text())
    os.kill(other, signal.SIGSTOP)
    program.send_signal(number)
    _, stderr = program.communicate(timeout=60)
    assert program.returncode == code
    assert "Traceback" not in stderr
    assert not Path(f"/proc/{other}").exists()
    assert os.listdir(tmp_path) == []


def test_who_interrupts_the_wait_for_a_second_machine_finds_nothing_left(tmp_path: Path) -> None:
    program = subprocess.Popen([*PROGRAM, str(tmp_path), "--wait", "600"], stdout=subprocess.PIPE, text=True)
    wait_for(lambda: any(tmp_path.glob(f"{MEETING}/*.greeting")), "the greeting")
    program.send_signal(signal.SIGINT)
    program.communicate(timeout=60)
    assert program.returncode == 130
    assert os.listdir(tmp_path) == []


def test_two_machines_meet_by_the_same_command(tmp_path: Path) -> None:
    """Both have all checks of one machine, and those of the two. The place where they met is gone."""
    words = [*PROGRAM, str(tmp_path), "--wait", "60", "--json"]
    programs = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [program.communicate(timeout=100)[0] for program in programs]
    assert [program.returncode for program in programs] == [0, 0]
    reports = [json.loads(output)["checks"] for output in outputs]
    for report in reports:
        assert [each["name"].partition(", with ")[0] for each in report] == [*OF_DIRECTORIES, *OF_PAIRS, "file lock"]
    assert reports[0][-5:] == reports[1][-5:]
    assert os.listdir(tmp_path) == []


def test_a_command_that_meets_no_other_fails(tmp_path: Path) -> None:
    """The checks of this machine are printed all the same."""
    result = call("check", tmp_path, "--wait", "0.1")
    assert result.exit_code == 1
    assert "lock of a killed process" in result.stdout
    assert result.stderr.startswith(f"error: no other machine was met in {tmp_path}/{MEETING} within 0.1 s: ")
    assert os.listdir(tmp_path) == []
