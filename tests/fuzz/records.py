"""The records of coordinators: files of a machine, and what a Redis server replies or keeps."""

from __future__ import annotations

import atexit
import io
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import orjson
import redis

from distributed_backup.coordination.base import Announcement, Heartbeat
from distributed_backup.coordination.file_records import FileRecords
from distributed_backup.coordination.record_files import UnreadableRecordError
from distributed_backup.coordination.redis import RedisCoordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import BackupError
from distributed_backup.position import Position
from distributed_backup.redis_client.address import RedisAddress
from distributed_backup.redis_client.client import RedisClient
from distributed_backup.storage.redis import RedisStorage
from tests.fuzz.engine import Parser
from tests.fuzz.files import JSON_MEMORY, NAMES_MEMORY
from tests.support.clocks import FakeClock

URL: Final = "redis://redis:6379/0"
_ANNOUNCED: Final = Announcement(
    term=3,
    worker_id="w-1",
    position=Position(1, 3),
    checkpoint="0000000003-00000001-00000003.ckpt",
    digest="ab" * 32,
    acknowledged=("n-1",),
)
_TERM: Final = orjson.dumps({"worker_id": "w-1", "resigned": False, "announcement": _ANNOUNCED.to_fields()})


# -------------------------------------------------------------------- files of the machine


class _Records:
    """The folder of a file coordinator with one record of each kind, and one foreign record at a time."""

    def __init__(self) -> None:
        # Made at the first use: most parsers need no disk.
        self._root: Path | None = None

    def root(self) -> Path:
        if self._root is None:
            base = "/dev/shm" if Path("/dev/shm").is_dir() else None
            self._root = Path(tempfile.mkdtemp(prefix="fuzz-", dir=base))
            atexit.register(shutil.rmtree, self._root, ignore_errors=True)
            for folder in ("terms", "members", "notices"):
                (self._root / folder).mkdir()
        return self._root

    def read(self, folder: str, data: bytes) -> None:
        """Read a record in the place where a worker finds it, and do what a worker does with it."""
        root = self.root()
        name = "0000000003" if folder == "terms" else "w-1"
        path = root / folder / f"{name}.json"
        path.write_bytes(data)
        records = FileRecords(root, FakeClock())
        try:
            {"terms": self._use_term, "members": self._use_member, "notices": self._use_notice}[folder](records)
        finally:
            path.unlink(missing_ok=True)
            for left in (root / "terms").iterdir():
                left.unlink()

    def _use_term(self, records: FileRecords) -> None:
        with suppress(UnreadableRecordError):
            records.term(3)
        announced = records.newest_announcement(records.terms())
        if announced is not None:
            orjson.dumps(announced.to_fields())
            assert announced.term == 3, "the term is that of the file"
        records.resign_term(3, "w-1")

    def _use_member(self, records: FileRecords) -> None:
        records.members()
        records.age("w-1")
        records.touch_member("w-1")
        records.claim_term("w-2", 0)
        records.remove_member("w-1")

    def _use_notice(self, records: FileRecords) -> None:
        for notice in records.notices():
            notice.to_wish()
        records.remove_member("w-2")
        records.claim_term("w-2", 0)


_records: Final = _Records()


def _reads(folder: str) -> Callable[[bytes], None]:
    return lambda data: _records.read(folder, data)


# -------------------------------------------------------------------- replies of scripts


class _Replies:
    """In the place of `RedisClient`: each script has this reply."""

    def __init__(self, reply: Any) -> None:
        self._reply = reply

    def run(self, *_: Any) -> Any:
        return self._reply


def _reply_of(data: bytes) -> Any:
    """Return JSON as a reply with `decode_responses`: text, whole numbers, None and lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value if isinstance(value, int | str | None) else str(value)

    try:
        return plain(orjson.loads(data))
    except ValueError:
        return data.decode(errors="replace")


class _Server:
    """A coordinator whose scripts have one reply at a time. Making a client takes milliseconds, so it is made once."""

    def __init__(self) -> None:
        self._coordinator: RedisCoordinator | None = None

    def coordinator(self, client: Any) -> RedisCoordinator:
        """Return the coordinator, which uses `client` from now on."""
        if self._coordinator is None:
            self._coordinator = RedisCoordinator(URL)
            self._coordinator.open("job-42", LeaseTimings())
        assert self._coordinator._opened is not None
        self._coordinator._opened = (client, self._coordinator._opened[1])
        return self._coordinator


_server: Final = _Server()
_BEAT: Final = Heartbeat(worker_id="w-1", campaign=True, floor=0, duration=15.0)


def _read_view(data: bytes) -> None:
    view = _server.coordinator(_Replies(_reply_of(data))).heartbeat(_BEAT)
    if view.announcement is not None:
        view.announcement.to_fields()


def _read_members(data: bytes) -> None:
    _server.coordinator(_Replies(_reply_of(data))).members()


# -------------------------------------------------------------------- bytes of a server


class _Socket:
    """A connection whose other end has sent these bytes, and nothing after them."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def recv(self, size: int, *_: Any) -> bytes:
        return self._data.read(size)

    def recv_into(self, buffer: Any, *_: Any) -> int:
        return self._data.readinto(buffer)

    def sendall(self, _: bytes) -> None: ...
    def settimeout(self, _: float) -> None: ...
    def setsockopt(self, *_: Any) -> None: ...
    def shutdown(self, _: int) -> None: ...
    def close(self) -> None: ...
    def fileno(self) -> int:
        return -1


class _Wire:
    """A client each of whose connections gets the bytes of one input."""

    def __init__(self) -> None:
        self._data = b""
        self._pool: redis.ConnectionPool | None = None
        self._client = RedisClient(RedisAddress(URL, self._connect), 1.0)

    def client(self, data: bytes) -> RedisClient:
        """Return the client, whose connections get `data` from now on."""
        self._data = data
        self._client._checked = self._client._reached = False
        if self._pool is not None:
            self._pool.disconnect()
        return self._client

    def _connect(self, options: dict[str, Any]) -> Any:
        wire = self

        class Connection(redis.Connection):
            def _connect(self) -> Any:
                return _Socket(wire._data)

            def can_read(self, timeout: float | None = 0, **_: Any) -> bool:
                return False

        self._pool = redis.ConnectionPool(connection_class=Connection, **options)
        return redis.Redis(connection_pool=self._pool)


_wire: Final = _Wire()


def _read_resp(data: bytes) -> None:
    _server.coordinator(_wire.client(data)).view()


# -------------------------------------------------------------------- files on a server


class _Commands:
    """In the place of the client of a `RedisStorage`: each command has this reply."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def get(self) -> _Commands:
        return self

    def command(self, name: str, *_: Any) -> Any:
        match name:
            case "HKEYS":
                return self._data.split(b"\n")
            case "HSTRLEN" | "STRLEN":
                return len(self._data)
            case _:
                return self._data


def _read_stored(data: bytes) -> None:
    storage = RedisStorage(URL, run_id="job-42", limit=10.0)
    storage._client = _Commands(data)  # type: ignore[assignment]
    errors = []
    for call in (storage.names, lambda: storage.read("a"), lambda: storage.size("a")):
        try:
            call()
        except BackupError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _view() -> list[Any]:
    announced = orjson.dumps(_ANNOUNCED.to_fields()).decode()
    return [
        3,
        "w-1",
        100,
        14900,
        announced,
        "n-1",
        20000,
        "w-2",
        "save@1,3",
        "SIGTERM",
        "n-2",
        1,
        "w-3",
        "resign",
        "x y",
    ]


def _resp(value: Any) -> bytes:
    if isinstance(value, list):
        return b"*%d\r\n" % len(value) + b"".join(map(_resp, value))
    if isinstance(value, int):
        return b":%d\r\n" % value
    data = value.encode()
    return b"$%d\r\n%s\r\n" % (len(data), data)


def _stored(content: bytes) -> bytes:
    from distributed_backup.storage.redis import _packed

    return _packed([content])


# The driver first sends its name and its version.
_HELLO: Final = b"+OK\r\n+OK\r\n"
_INFO: Final = "# Server\r\nredis_version:7.0.15\r\nmaxmemory_policy:allkeys-lru\r\nrole:slave\r\naof_enabled:0\r\n"

GOOD_REPLY: Final = _HELLO + _resp(_INFO) + _resp(_view())

PARSERS: Final = (
    Parser(name="term record", seeds=(_TERM,), call=_reads("terms"), memory=JSON_MEMORY),
    Parser(
        name="member record",
        seeds=(b'{"seen":999.5,"duration":15.0,"role":"leader","position":[1,3]}',),
        call=_reads("members"),
        memory=JSON_MEMORY,
    ),
    Parser(
        name="notice record",
        seeds=(b'{"worker_id":"w-2","reason":"SIGTERM","wish":"save@1,3","since":900.0,"until":1030.0}',),
        call=_reads("notices"),
        memory=JSON_MEMORY,
    ),
    Parser(
        name="view from Redis",
        seeds=(orjson.dumps(_view()), orjson.dumps([0, "", 0, 0, ""])),
        call=_read_view,
        memory=JSON_MEMORY,
    ),
    Parser(
        name="members from Redis",
        seeds=(orjson.dumps(["w-1", 100, "leader 1 3", "w-2", -5, "standby - -"]),),
        call=_read_members,
        memory=JSON_MEMORY,
    ),
    Parser(
        name="bytes of a Redis server",
        seeds=(
            GOOD_REPLY,
            *(_HELLO + reply for reply in (_resp(_INFO) + b"-ERR no\r\n", b"-NOAUTH x\r\n", b"*-1\r\n")),
        ),
        call=_read_resp,
        memory=JSON_MEMORY,
    ),
    Parser(
        name="file in Redis",
        seeds=(_stored(b'{"x":1}' * 50), b"append", b"a\nb"),
        call=_read_stored,
        memory=NAMES_MEMORY,
    ),
)
