"""The options of the commands of the tests, and that a command which is stopped leaves nothing behind."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

from tests.chaos import __main__ as chaos
from tests.fuzz import __main__ as fuzz
from tests.support.servers import wait_for

# It has a child that is suspended, as a worker of a campaign may be, and which has a child of its own. A thread writes
# without an end. It makes the folder anew, and logs.
_COMMAND = """
import logging, signal, subprocess, sys, threading, time
from contextlib import suppress
from pathlib import Path
from tests.support.commands import leaving_nothing
folder = Path(sys.argv[1])
with leaving_nothing(folder):
    folder.mkdir()
    code = "import subprocess, sys; subprocess.Popen(['sleep', '600']); print(1, flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    child.send_signal(signal.SIGSTOP)
    print(child.pid, flush=True)
    def write():
        number = 0
        with suppress(OSError):
            while True:
                (folder / str(number)).mkdir()
                number += 1
                time.sleep(0.001)
        folder.mkdir()
        logging.error("gone")
        child.wait()
    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
"""

# A parser says where its records are, and does not return.
_FUZZER = """
import sys, threading
from tests.fuzz import __main__ as fuzz, records

def read(_):
    print(records._records.root(), file=sys.stderr, flush=True)
    threading.Event().wait()

fuzz.parsers_of = lambda *_: [fuzz.Parser(name="records", seeds=(b"x",), call=read)]
sys.argv = ["fuzz"]
fuzz.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_stopped_leaves_no_process_and_no_file(tmp_path: Path, number: signal.Signals) -> None:
    """Its threads wait for a worker, and would start it again."""
    folder = tmp_path / "made"
    command = [sys.executable, "-c", _COMMAND, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        child = int(program.stdout.readline())
        (grandchild,) = map(int, Path(f"/proc/{child}/task/{child}/children").read_text().split())
        program.send_signal(number)
        _, said = program.communicate(timeout=60)
    assert program.returncode == 128 + number
    assert said == f"stopped by {number.name}: what was started is killed, and the results are not complete\n"
    wait_for(lambda: not any(map(_lives, (child, grandchild))), "both are killed")
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_is_stopped_says_where_files_stay(tmp_path: Path) -> None:
    """They are those of `--keep`."""
    line = [sys.executable, "-m", "tests.chaos", "--keep", str(tmp_path)]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as program:
        (root,) = wait_for(lambda: list(tmp_path.glob("chaos-*")), "its folder is there")
        wait_for(lambda: Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text(), "it has begun")
        program.terminate()
        _, said = program.communicate(timeout=60)
    assert program.returncode == 143
    assert said.endswith(f"and the results are not complete. Files stay in {root}\n")


def test_a_fuzzer_that_is_stopped_leaves_no_file() -> None:
    """Its records are in memory, where nothing else removes them."""
    with subprocess.Popen([sys.executable, "-c", _FUZZER], stderr=subprocess.PIPE, text=True) as program:
        assert program.stderr is not None
        root = Path(program.stderr.readline().strip())
        assert root.is_dir()
        program.terminate()
        _, said = program.communicate(timeout=60)
    assert (program.returncode, root.exists(), said.count("\n")) == (143, False, 1), said


def _lives(pid: int) -> bool:
    """Whether a process has not ended. Its exit code may be there still."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        (chaos, "--runs 0", "want a whole number from 1 on, got 0"),
        (chaos, "--runs -1", "want a whole number from 1 on, got -1"),
        (chaos, "--minutes nan", "want a positive number, got nan"),
        (chaos, "--minutes 0", "want a positive number, got 0"),
        (chaos, "--minutes inf", "want a positive number, got inf"),
        (chaos, "--workers 0", "want a whole number from 1 on, got 0"),
        (chaos, "--programs nosuch", "no program 'nosuch': want all, or some of few-shot,"),
        (chaos, "--programs omega,", "no program '': want all, or some of few-shot,"),
        (chaos, "--bug nosuch", "invalid choice: 'nosuch'"),
        (chaos, "--workers 1.5", "want a whole number from 1 on, got 1.5"),
        (chaos, "--minutes many", "want a positive number, got many"),
        (chaos, "--plant-all --bug litter", "--plant-all has campaigns of its own: leave out --bug"),
        (chaos, "--plant-all --seed 3 --workers 2", "--plant-all has campaigns of its own: leave out --seed --workers"),
        (fuzz, "--inputs 0", "want a whole number from 1 on, got 0"),
        (fuzz, "--module notices --parser nosuch", "no parser has nosuch in its name: want a part of one of metadata"),
    ],
)
def test_wrong_words_are_refused(
    command: ModuleType, words: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["command", *shlex.split(words)])
    with pytest.raises(SystemExit) as raised:
        command.main()
    assert raised.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("words", "code", "said"), [(["-h"], 0, "fanout"), (["nosuch"], 2, "no benchmark nosuch")])
def test_a_benchmark_is_named(words: list[str], code: int, said: str) -> None:
    done = _bench(words, os.environ)
    assert (done.returncode, said in done.stdout + done.stderr) == (code, True)


@pytest.mark.parametrize("words", ["bench nosuch", "chaos --runs 1", "fuzz --inputs 1", "simulation --runs 1"])
@pytest.mark.parametrize("disk", ["/missing", "/proc"])
def test_a_disk_that_is_not_there_is_refused(words: str, disk: str) -> None:
    """Python would take another one."""
    done = _called(words.split(), os.environ | {"TMPDIR": disk})
    assert (done.returncode, f"TMPDIR names {disk}, which is no directory" in done.stderr) == (2, True)


def _bench(words: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return _called(["bench", *words], environment)


def _called(words: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", f"tests.{words[0]}", *words[1:]]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=60)
