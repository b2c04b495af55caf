"""What is said of errors of the Redis driver."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from distributed_backup.errors import CoordinatorUnavailableError
from distributed_backup.redis_client.address import RedisAddress
from distributed_backup.redis_client.client import RedisClient
from distributed_backup.redis_client.errors import translate

PATIENCE = 30.0
INFO = b"redis_version:7.0.0\r\nmaxmemory_policy:noeviction\r\n"


class HalfReply:
    """A server that answers GET with the beginning of a reply, and sets `begun`."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=self._listener.accept()[:1], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection, connection.makefile("rb") as requests:
            while count := requests.readline():
                words = [requests.read(int(requests.readline()[1:]) + 2) for _ in range(int(count[1:]))]
                if words[0] == b"GET\r\n":
                    connection.sendall(b"$100\r\nx")
                    self.begun.set()
                else:
                    connection.sendall(b"$%d\r\n%s\r\n" % (len(INFO), INFO) if words[0] == b"INFO\r\n" else b"+OK\r\n")


@pytest.fixture
def server() -> Iterator[HalfReply]:
    made = HalfReply()
    yield made
    made.close()


def test_a_call_whose_connection_this_process_closes_does_not_blame_the_server(server: HalfReply) -> None:
    """As at the end of a fit, while a thread reads."""
    client = RedisClient(RedisAddress.of_url(server.url), PATIENCE)
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(client.command, "GET", "a")
        assert server.begun.wait(PATIENCE)
        client.close()
        with pytest.raises(CoordinatorUnavailableError) as caught:
            call.result(PATIENCE)
    assert str(caught.value) == f"this process has closed its connection to {server.url}, during a call"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("I/O operation on closed file."),
        OSError(9, "Bad file descriptor"),
        AttributeError("'NoneType' object has no attribute 'readline'"),
    ],
)
@pytest.mark.parametrize("reached", [False, True])
def test_the_errors_of_a_connection_that_was_closed_here_are_known(error: Exception, reached: bool) -> None:
    translated = translate(error, where="redis://r", limit=1.0, reached=reached)
    assert isinstance(translated, CoordinatorUnavailableError)
    assert str(translated) == "this process has closed its connection to redis://r, during a call"
