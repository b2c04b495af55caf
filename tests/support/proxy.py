"""A TCP proxy before a Redis server that injects faults on command, and counts them.

It runs in one thread of the test process. A fault is in effect when its method returns, on open and on new connections.
To cut off one worker alone, give it its own proxy. The limit: replies are not parsed. `drop_replies` assumes clients
that wait for each reply (a pipeline counts as one), and no messages pushed by the server in between.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from tests.support.servers import HOST, PATIENCE, free_port

type Direction = Literal["requests", "replies"]

BOTH: tuple[Direction, ...] = ("requests", "replies")
_CHUNK = 65536


class Proxy:
    """Forwards connections to `target`, at first without faults. Use it as a context manager, or `close` it.

    Args:
        target: Host and port, or a unix socket's path: `RedisServer.address`.
        tls: Speak TLS to the clients, with this server-side context. The server is spoken to in the clear.

    While the server is down, clients are connected and then reset, rather than refused: see `refuse`.
    """

    def __init__(self, target: tuple[str, int] | Path, *, tls: ssl.SSLContext | None = None) -> None:
        self._target = target
        self._tls = tls
        self._changed = threading.Condition()
        self._counts = {"requests": 0, "dropped": 0, "held": 0}
        self._links: set[_Link] = set()
        self._delays: dict[Direction, float] = {}
        self._gates: dict[Direction, asyncio.Event] = {direction: asyncio.Event() for direction in BOTH}
        self._to_drop = 0
        self._containing = b""
        for gate in self._gates.values():
            gate.set()
        self._listener = _listen()
        self.port: int = self._listener.getsockname()[1]
        self._accepting: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()
        self._do(self._open())

    def url(self, db: int = 0) -> str:
        return f"redis{'s' if self._tls else ''}://{HOST}:{self.port}/{db}"

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return len(self._links)

    @property
    def requests(self) -> int:
        """How many commands were forwarded to the server so far, those of the clients' greetings included."""
        return self._counts["requests"]

    @property
    def dropped(self) -> int:
        """How many replies were dropped so far."""
        return self._counts["dropped"]

    @property
    def held(self) -> int:
        """How many pieces of data, ends or new connections ran into a black hole so far."""
        return self._counts["held"]

    def wait_dropped(self, count: int = 1, timeout: float = PATIENCE) -> None:
        """Wait until `dropped` is at least `count`."""
        self._wait("dropped", count, timeout)

    def wait_held(self, count: int = 1, timeout: float = PATIENCE) -> None:
        """Wait until `held` is at least `count`."""
        self._wait("held", count, timeout)

    def wait_requests(self, count: int, timeout: float = PATIENCE) -> None:
        """Wait until `requests` is at least `count`."""
        self._wait("requests", count, timeout)

    def drop_replies(self, count: int = 1, *, containing: bytes | None = None) -> None:
        """Execute the next `count` requests (with these bytes in them), and send a reset in place of the reply."""
        self._do(self._drop(count, containing or b""))

    def delay(self, seconds: float, *directions: Direction) -> None:
        """Hold each chunk of data back that long, in these directions (default: both)."""
        self._do(self._slow(seconds, directions or BOTH))

    def black_hole(self, *directions: Direction) -> None:
        """Accept connections and data, and forward nothing in these directions (default: both).

        New connections get nothing through in any direction, as their handshake needs both.
        """
        self._do(self._shut(directions or BOTH))

    def half_close(self) -> None:
        """End the replies of the current connections: their clients read an end, what they write is still executed."""
        self._do(self._half_close())

    def cut(self) -> None:
        """Reset the current connections."""
        self._do(self._cut(None))

    def refuse(self) -> None:
        """Stop listening: new connections are refused, current ones stay (see `cut`)."""
        self._do(self._refuse())

    def heal(self, *, deliver: bool = False) -> None:
        """End all faults, on the same port.

        Args:
            deliver: Forward what a black hole held, late, as TCP does after a partition. By default the connections
                that a black hole held something of are reset, and what it held is lost.
        """
        self._do(self._heal(deliver))

    def close(self) -> None:
        """Reset all connections, stop listening, end the thread."""
        if self._loop.is_closed():
            return
        self._do(self._refuse())
        self._do(self._cut(None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _do(self, action: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(action, self._loop).result(PATIENCE)

    def _wait(self, name: str, count: int, timeout: float) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._counts[name] >= count, timeout):
                raise AssertionError(f"{name} is {self._counts[name]} after {timeout} s, want {count}")

    # All below runs in the proxy's thread.

    def _count(self, name: str) -> None:
        with self._changed:
            self._counts[name] += 1
            self._changed.notify_all()

    async def _open(self) -> None:
        self._listener.setblocking(False)
        self._accepting = self._loop.create_task(self._accept())

    async def _accept(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            link = _Link(client)
            self._links.add(link)
            link.task = self._loop.create_task(self._serve(link))

    async def _serve(self, link: _Link) -> None:
        try:
            for direction in BOTH:
                await self._pass_gate(link, direction)
            client = await link.open_client(self._tls)
            server = await link.open_server(self._target)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._requests(link, client[0], server[1]))
                group.create_task(self._replies(link, server[0], client[1]))
        except* (OSError, EOFError):
            pass
        finally:
            self._links.discard(link)
            link.close()

    async def _requests(self, link: _Link, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        commands = _Commands()
        while True:
            data = await self._read(link, source, "requests")
            for command in commands.feed(data):
                self._count("requests")
                if self._to_drop and self._containing in command:
                    self._to_drop -= 1
                    link.drops = True
            sink.write(data)
            await sink.drain()

    async def _replies(self, link: _Link, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while True:
            data = await self._read(link, source, "replies")
            if link.drops:
                link.reset()
                self._count("dropped")
                raise ConnectionResetError
            if not link.half_closed:
                sink.write(data)
                await sink.drain()

    async def _read(self, link: _Link, source: asyncio.StreamReader, direction: Direction) -> bytes:
        data = await source.read(_CHUNK)
        await asyncio.sleep(self._delays.get(direction, 0.0))
        await self._pass_gate(link, direction)
        if not data:
            raise EOFError
        return data

    async def _pass_gate(self, link: _Link, direction: Direction) -> None:
        if not self._gates[direction].is_set():
            link.held = True
            self._count("held")
            await self._gates[direction].wait()

    async def _drop(self, count: int, containing: bytes) -> None:
        self._to_drop, self._containing = count, containing

    async def _slow(self, seconds: float, directions: tuple[Direction, ...]) -> None:
        self._delays.update(dict.fromkeys(directions, seconds))

    async def _shut(self, directions: tuple[Direction, ...]) -> None:
        for direction in directions:
            self._gates[direction].clear()

    async def _half_close(self) -> None:
        for link in self._links:
            link.half_close()

    async def _refuse(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
            self._accepting = None
            self._listener.close()

    async def _cut(self, links: set[_Link] | None) -> None:
        links = set(self._links) if links is None else links
        for link in links:
            link.reset()
        if tasks := [link.cancel() for link in links]:
            await asyncio.wait(tasks)
        # The transports close their sockets in the next round of the loop.
        await asyncio.sleep(0)

    async def _heal(self, deliver: bool) -> None:
        self._to_drop = 0
        self._delays.clear()
        held = {link for link in self._links if link.held}
        if not deliver:
            await self._cut(held)
        for link in held:
            link.held = False
        for gate in self._gates.values():
            gate.set()
        if self._accepting is None:
            self._listener = _listen(self.port)
            await self._open()


class _Link:
    """One client's connection and the server's side of it."""

    def __init__(self, client: socket.socket) -> None:
        self.task: asyncio.Task[None] | None = None
        self.drops = self.held = self.half_closed = False
        self._socket = client
        self._writers: list[asyncio.StreamWriter] = []

    async def open_client(self, tls: ssl.SSLContext | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_CHUNK)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, self._socket, ssl=tls)
        self._writers.append(asyncio.StreamWriter(transport, protocol, reader, loop))
        return reader, self._writers[-1]

    async def open_server(self, target: tuple[str, int] | Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        opening = asyncio.open_unix_connection(target) if isinstance(target, Path) else asyncio.open_connection(*target)
        reader, writer = await opening
        self._writers.append(writer)
        return reader, writer

    def cancel(self) -> asyncio.Task[None]:
        assert self.task is not None
        self.task.cancel()
        return self.task

    def reset(self) -> None:
        # A close that does not linger sends a reset.
        with suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def half_close(self) -> None:
        self.half_closed = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        if not self._writers:
            self._socket.close()


class _Commands:
    """Cuts a client's bytes into commands: arrays of bulk strings, as all clients send them."""

    def __init__(self) -> None:
        self._bytes = b""

    def feed(self, data: bytes) -> list[bytes]:
        self._bytes += data
        found = []
        while (end := self._end()) is not None:
            found.append(self._bytes[:end])
            self._bytes = self._bytes[end:]
        return found

    def _end(self) -> int | None:
        line = self._line(0)
        if line is None:
            return None
        end, count = line
        for _ in range(count):
            line = self._line(end)
            if line is None:
                return None
            end = line[0] + line[1] + len(b"\r\n")
        return end if end <= len(self._bytes) else None

    def _line(self, start: int) -> tuple[int, int] | None:
        end = self._bytes.find(b"\r\n", start)
        return None if end < 0 else (end + len(b"\r\n"), int(self._bytes[start + 1 : end]))


def _listen(port: int | None = None) -> socket.socket:
    while True:
        try:
            return socket.create_server((HOST, port or free_port()))
        except OSError:
            if port is not None:
                raise
