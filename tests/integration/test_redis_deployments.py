"""The messages of a Redis server that refuses, hangs or is misconfigured, and its passwords, access rights and TLS.

Errors are one line of the right class, without a driver's stack and without a password.
"""

from __future__ import annotations

import logging
import secrets
import socketserver
import ssl
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import redis
import redis.asyncio
import trustme

from distributed_backup.coordination.redis import RedisCoordinator
from distributed_backup.errors import BackupError, ConfigError, CoordinatorUnavailableError
from tests.integration.redis_scenarios import SHORT, Trainer, beat
from tests.support.internals import saver_of
from tests.support.proxy import Proxy
from tests.support.redis_checks import SECRET, check_serves, complaint, complaint_at, opened
from tests.support.servers import HOST, RedisServer, binaries, free_port, wait_for

RIGHTS = ("~distributed-backup:*", "&distributed-backup:*", "+@read", "+@write", "+@scripting", "+@connection")
MORE_RIGHTS = ("+@pubsub", "+info", "+time")
TOO_FEW = {
    "no-scripts": (*RIGHTS, *MORE_RIGHTS, "-@scripting"),
    "no-scripts-and-no-info": (*RIGHTS, *MORE_RIGHTS, "-@scripting", "-info"),
    "no-keys": (*RIGHTS[1:], *MORE_RIGHTS),
    "no-writing": (*RIGHTS, *MORE_RIGHTS, "-@write"),
    "no-time": (*RIGHTS, *MORE_RIGHTS, "-time"),
}


@pytest.fixture(scope="module", params=sorted(binaries()))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Start one server with a password, for all tests that leave its configuration as it was."""
    directory = tmp_path_factory.mktemp("redis") / "server"
    config = {"requirepass": SECRET}
    with RedisServer(directory, binary=binaries()[request.param], port=0, config=config) as server:
        yield server


@pytest.fixture
def lone_server(tmp_path: Path) -> Iterator[RedisServer]:
    """One for a test that changes it."""
    with RedisServer(tmp_path / "server", port=0, config={"requirepass": SECRET}) as server:
        yield server


@pytest.fixture(autouse=True)
def secrecy(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a test does, no password gets into our log."""
    with caplog.at_level(logging.DEBUG, "distributed_backup"):
        yield
    ours = [record for record in caplog.get_records("call") if record.name.startswith("distributed_backup")]
    assert not [record.getMessage() for record in ours if SECRET in record.getMessage() or record.exc_info]


# ---------------------------------------------------------------- what is said where it can't work


def test_a_wrong_password_is_a_mistake_in_the_configuration(server: RedisServer) -> None:
    """The server refused it: trying again is vain. So it is without any."""
    wrong = f"redis://:{SECRET}x@{HOST}:{server.port}/0"
    assert "refused the user name or password" in complaint_at(wrong, ConfigError)
    assert "refused the user name or password" in complaint_at(f"redis://{HOST}:{server.port}", ConfigError)
    unknown = f"redis://somebody:{SECRET}@{HOST}:{server.port}/0"
    assert "refused the user name or password" in complaint_at(unknown, ConfigError)


@pytest.mark.parametrize(
    "place",
    [
        "redis://:{secret}@no-such-host.invalid:6379/0",
        "redis://:{secret}@127.0.0.1:{port}/0",
        "rediss://:{secret}@127.0.0.1:{port}/0",
        "unix://:{secret}@/tmp/no-such-directory/socket",
        "redis+sentinel://:{secret}@127.0.0.1:{port}/primary?sentinel_password={secret}",
        "redis+cluster://:{secret}@127.0.0.1:{port}",
    ],
)
def test_a_server_that_is_not_there_may_come(place: str) -> None:
    """An unknown host, a closed port, a socket that does not exist: they may be reachable later."""
    url = place.format(secret=SECRET, port=free_port())
    said = complaint_at(url, CoordinatorUnavailableError)
    assert url.rpartition("@")[2].partition("?")[0] in said


def test_a_server_that_does_not_answer_is_given_up_in_time(lone_server: RedisServer) -> None:
    """A stopped server accepts connections and says nothing: the time limit is what ends the call."""
    with opened(lone_server.url, timings=SHORT) as coordinator:
        wait_for(lambda: serves_again(coordinator), "the first contact")
        lone_server.pause()
        try:
            assert "did not answer within 0.2 s" in complaint(
                CoordinatorUnavailableError, lambda: beat(coordinator, "a")
            )
        finally:
            lone_server.resume()
        wait_for(lambda: serves_again(coordinator), "it serves again")


def serves_again(coordinator: RedisCoordinator) -> bool:
    with suppress(CoordinatorUnavailableError):
        return beat(coordinator, "a").holder == "a"
    return False


def test_a_read_only_replica_is_said_to_be_one(lone_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """Once in the log at the first contact, and at each heartbeat. A view works."""
    lone_server.ask("REPLICAOF", HOST, free_port())
    with opened(lone_server.url) as coordinator:
        for _ in range(2):
            assert "read-only replica" in complaint(CoordinatorUnavailableError, lambda: beat(coordinator, "a"))
        assert coordinator.view().term == 0
        assert [text for text in caplog.messages if "is a replica" in text] == [
            f"the server at redis://{HOST}:{lone_server.port}/0 is a replica, which grants no lease: name the primary"
        ]
        lone_server.ask("REPLICAOF", "NO", "ONE")
        assert beat(coordinator, "a").holder == "a"


@pytest.mark.parametrize("leads", [True, False])
def test_a_server_out_of_memory_grants_nothing(lone_server: RedisServer, leads: bool) -> None:
    """The error says so. The leader can still release the lease. With memory again, the election goes on."""
    with opened(lone_server.url) as coordinator:
        beat(coordinator, "a", campaign=leads)
        lone_server.ask("CONFIG", "SET", "maxmemory", "1")
        said = complaint(CoordinatorUnavailableError, lambda: beat(coordinator, "a"))
        assert "is out of memory" in said
        if leads:
            assert coordinator.view().holder == "a"
            coordinator.resign("a")
        assert coordinator.view().holder is None
        lone_server.ask("CONFIG", "SET", "maxmemory", "0")
        assert beat(coordinator, "a").holder == "a"


def test_a_server_that_is_out_of_memory_at_first_is_no_mistake(lone_server: RedisServer) -> None:
    """Nothing of it is final."""
    lone_server.ask("CONFIG", "SET", "maxmemory", "1")
    assert "is out of memory" in complaint_at_first_beat(lone_server.url)


def complaint_at_first_beat(url: str) -> str:
    with opened(url) as coordinator:
        return complaint(CoordinatorUnavailableError, lambda: beat(coordinator, "a"))


@pytest.mark.parametrize("contact", ["first", "later"])
def test_a_server_busy_with_a_script_is_waited_for(server: RedisServer, contact: str) -> None:
    """Another client's endless script makes it unavailable, until the script is killed."""
    server.ask("CONFIG", "SET", "busy-reply-threshold" if is_new(server) else "lua-time-limit", 20)
    with opened(server.url) as coordinator:
        if contact == "later":
            beat(coordinator, "a")
        with server.client(socket_timeout=60.0) as other:
            runner = threading.Thread(target=run_for_ever, args=(other,))
            runner.start()
            try:
                wait_for(lambda: is_busy(server), "it is busy")
                said = complaint(CoordinatorUnavailableError, lambda: beat(coordinator, "a"))
                assert "is busy with another client's script" in said
            finally:
                server.ask("SCRIPT", "KILL")
                runner.join()
        assert beat(coordinator, "a").holder == "a"


def is_new(server: RedisServer) -> bool:
    return bool(server.ask("CONFIG", "GET", "busy-reply-threshold"))


def run_for_ever(client: redis.Redis) -> None:
    with suppress(redis.RedisError):
        client.eval("while true do end", 0)


def is_busy(server: RedisServer) -> bool:
    try:
        server.ask("GET", "nothing")
    except redis.RedisError as error:
        return "BUSY" in str(error)
    return False


@pytest.mark.parametrize("rights", TOO_FEW.values(), ids=TOO_FEW)
def test_a_user_without_rights_is_told_which_to_grant(server: RedisServer, rights: tuple[str, ...]) -> None:
    """At the first contact: a mistake in the configuration, and the message says how to cure it."""
    user = f"user-{secrets.token_hex(4)}"
    server.ask("ACL", "SETUSER", user, "on", f">{SECRET}", "resetkeys", *rights)
    with opened(f"redis://{user}:{SECRET}@{HOST}:{server.port}/0") as coordinator:
        said = complaint(ConfigError, lambda: beat(coordinator, "a"))
    assert "may not do what is needed" in said
    assert "allow ~distributed-backup:* &distributed-backup:* +@read +@write +@scripting" in said


def test_the_rights_that_are_named_suffice(lone_server: RedisServer) -> None:
    """For everything, hints included."""
    lone_server.ask("ACL", "SETUSER", "worker", "on", f">{SECRET}", "resetchannels", *RIGHTS, *MORE_RIGHTS)
    with opened(f"redis://worker:{SECRET}@{HOST}:{lone_server.port}/0") as coordinator:
        check_serves(coordinator)
        assert coordinator.runs() == ()


def test_a_user_who_may_not_ask_for_the_version_is_served(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The check at the start is left out, and the log says so once."""
    user = f"user-{secrets.token_hex(4)}"
    server.ask("ACL", "SETUSER", user, "on", f">{SECRET}", "resetchannels", *RIGHTS, *MORE_RIGHTS, "-info")
    with opened(f"redis://{user}:{SECRET}@{HOST}:{server.port}/0") as coordinator:
        check_serves(coordinator)
    assert len([text for text in caplog.messages if "may not run INFO" in text]) == 1


def test_rights_that_are_lost_later_are_no_mistake_in_the_configuration(server: RedisServer) -> None:
    """A run that has begun waits until they are back."""
    user = f"user-{secrets.token_hex(4)}"
    server.ask("ACL", "SETUSER", user, "on", f">{SECRET}", *RIGHTS, *MORE_RIGHTS)
    with opened(f"redis://{user}:{SECRET}@{HOST}:{server.port}/0") as coordinator:
        beat(coordinator, "a")
        server.ask("ACL", "SETUSER", user, "-@scripting")
        assert "may not do" in complaint(CoordinatorUnavailableError, lambda: beat(coordinator, "a"))
        server.ask("ACL", "SETUSER", user, "+@scripting")
        assert beat(coordinator, "a").term == 1


def test_a_server_that_may_evict_the_lease_is_warned_of_once(
    lone_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """maxmemory-policy allkeys-lru: one warning that names it, at the first contact."""
    lone_server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    with opened(lone_server.url) as coordinator:
        for _ in range(3):
            beat(coordinator, "a")
    [warning] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "allkeys-lru" in warning.getMessage()
    assert "noeviction" in warning.getMessage()


def test_a_sound_server_is_not_warned_of(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing above DEBUG."""
    with opened(server.url) as coordinator:
        check_serves(coordinator)
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.DEBUG] == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"min-replicas-to-write": "1"}, "NOREPLICAS"),
        ({"replicaof": f"{HOST} 1", "replica-serve-stale-data": "no"}, "MASTERDOWN"),
    ],
    ids=["too-few-replicas", "cut-off-from-its-primary"],
)
def test_what_a_server_refuses_just_now_is_no_mistake(
    server: RedisServer, tmp_path: Path, settings: dict[str, str], said: str
) -> None:
    """Also not at the first contact: it may do it later."""
    with RedisServer(tmp_path / "server", binary=server._binary, port=0, config=settings) as other:
        told = complaint_at_first_beat(other.url)
        assert said in told.upper().replace(" ", "") or "primary" in told.lower() or "master" in told.lower()


def test_a_server_that_still_loads_its_data_is_waited_for() -> None:
    """It answers all with LOADING."""
    with Impostor(lambda _: b"-LOADING Redis is loading the dataset in memory\r\n" * 2) as impostor:
        assert "loading the dataset" in complaint_at(impostor.url, CoordinatorUnavailableError)


@contextmanager
def refused_worker(server: RedisServer, root: Path) -> Iterator[Trainer]:
    """A worker whose start has ended, as its password is wrong."""
    trainer = Trainer(root, f"redis://:{SECRET}x@{HOST}:{server.port}/0", "a")
    try:
        wait_for(lambda: trainer.error, "it gives up")
        yield trainer
    finally:
        with suppress(BackupError):
            trainer.worker.close(timeout=0.0)
        saver_of(trainer.worker).stop()
        trainer.coordinator.close()


def test_a_worker_does_not_wait_where_trying_again_is_vain(server: RedisServer, tmp_path: Path) -> None:
    """A wrong password ends its start at once, with what is wrong."""
    with refused_worker(server, tmp_path / "run") as trainer:
        assert type(trainer.error) is ConfigError
        assert "refused the user name or password" in str(trainer.error)
        assert SECRET not in "".join(traceback.format_exception(trainer.error))


def test_a_worker_that_was_refused_leaves_without_another_error(server: RedisServer, tmp_path: Path) -> None:
    """What it can't tell the coordinator is logged, and its threads end."""
    with refused_worker(server, tmp_path / "run") as trainer:
        trainer.worker.close(timeout=0.0)
        saver = saver_of(trainer.worker)._thread
        assert saver is not None
        assert not saver.is_alive()


class Impostor(socketserver.ThreadingTCPServer):
    """Answers each request with the same bytes."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        super().__init__((HOST, 0), _Answer)
        self.answer = answer

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.server_address[1]}/0"

    def __enter__(self) -> Impostor:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Answer(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Impostor)
        with suppress(OSError):
            while request := self.request.recv(65536):
                self.request.sendall(self.server.answer(request))


def old_server(version: str) -> Callable[[bytes], bytes]:
    def answer(request: bytes) -> bytes:
        told = b"# Server\r\nredis_version:%s\r\nrole:master\r\n" % version.encode()
        count = request.count(b"*")
        return b"$%d\r\n%s\r\n" % (len(told), told) if b"INFO" in request.split() else b"+OK\r\n" * count

    return answer


@pytest.mark.parametrize("version", ["6.0.20", "5.0.14", "2.8.1"])
def test_a_server_that_is_too_old_is_a_mistake_in_the_configuration(version: str) -> None:
    """Its version and the one that is needed are named."""
    with Impostor(old_server(version)) as impostor, opened(impostor.url) as coordinator:
        for _ in range(2):
            with pytest.raises(ConfigError) as caught:
                beat(coordinator, "a")
            assert f"is version {version}: Redis 6.2 or Valkey is needed" in str(caught.value)


GARBAGE = {
    "http": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "binary": b"\x00\xff\x16\x03\x01" * 7 + b"\r\n",
    "nonsense": b"$not-a-number\r\n",
    "array": b"*2\r\n+a\r\n+b\r\n",
    "number": b":7\r\n",
    "null": b"$-1\r\n",
    "text": b"+OK\r\n",
    "latin": b"$3\r\n\xe4\xf6\xfc\r\n",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_a_server_that_speaks_another_language_is_not_understood(garbage: bytes) -> None:
    """One line that names it, whatever comes."""
    with Impostor(lambda _: garbage) as impostor, opened(impostor.url) as coordinator:
        for call in (lambda: beat(coordinator, "a"), coordinator.view, coordinator.members):
            with pytest.raises((CoordinatorUnavailableError, ConfigError)) as caught:
                call()
            assert impostor.url in str(caught.value)
            assert "\n" not in str(caught.value)
            assert caught.value.__cause__ is None
            assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_records_of_somebody_else_are_not_understood(server: RedisServer) -> None:
    """The error names the key of a record that has another type or form."""
    with opened(server.url) as coordinator:
        names = coordinator._run_keys
        for command in (("SET", names.lease, "text"), ("SET", names.members, "text"), ("SADD", names.notices, "x")):
            server.ask(*command)
            complaint(CoordinatorUnavailableError, lambda: beat(coordinator, "a"))
            server.ask("DEL", *names.all)
        server.ask("SET", names.announcement, "not JSON")
        assert names.lease in complaint(CoordinatorUnavailableError, lambda: beat(coordinator, "a"))
        coordinator.erase()
        assert beat(coordinator, "a").holder == "a"


def test_tls_is_served_to_who_knows_the_authority(server: RedisServer, tmp_path: Path) -> None:
    """The right authority works. With a wrong one or none, the error says which option to set."""
    authority, other, context = trustme.CA(), trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    for name, one in (("right", authority), ("wrong", other)):
        one.cert_pem.write_to_path(tmp_path / f"{name}.pem")
    with Proxy(server.address, tls=context) as proxy:
        url = proxy.url().replace("//", f"//:{SECRET}@")
        with opened(f"{url}?ssl_ca_certs={tmp_path}/right.pem") as coordinator:
            check_serves(coordinator)
        ours = redis.Redis.from_url(f"{url}?ssl_ca_certs={tmp_path}/right.pem")
        with ours, opened(ours) as coordinator:
            check_serves(coordinator)
        for wrong in (url, f"{url}?ssl_ca_certs={tmp_path}/wrong.pem"):
            said = complaint_at(wrong, ConfigError)
            assert "can't be verified" in said
            assert "?ssl_ca_certs=" in said
        # Plain text to a TLS port, and TLS to a plain one.
        complaint_at(url.replace("rediss", "redis"), CoordinatorUnavailableError, timings=SHORT)
    complaint_at(server.url.replace("redis", "rediss"), CoordinatorUnavailableError, timings=SHORT)


def test_an_authority_that_can_not_be_read_is_said(server: RedisServer, tmp_path: Path) -> None:
    """There is no such file: one line, and no secret."""
    with (
        Proxy(server.address) as proxy,
        opened(f"rediss://:{SECRET}@{HOST}:{proxy.port}?ssl_ca_certs={tmp_path}/none.pem") as coordinator,
    ):
        assert complaint(CoordinatorUnavailableError, lambda: beat(coordinator, "a"))


@pytest.mark.parametrize(
    "rest",
    [
        f":{SECRET}@host:port/0",
        f":{SECRET}@host:6379/zero",
        f":{SECRET}@host/0?no_such_option=1",
        f":{SECRET}@host/0?socket_timeout={SECRET}",
        f":{SECRET}/{SECRET}@host:99999/0",
        f":{SECRET}?{SECRET}@[host/0",
        f":{SECRET}@host/0#{SECRET}",
    ],
)
def test_a_url_that_can_not_be_used_is_not_quoted_with_its_password(rest: str) -> None:
    """What is wrong is said, the secret is not."""
    for scheme in ("redis", "rediss"):
        said = complaint(ConfigError, partial(RedisCoordinator, f"{scheme}://{rest}"))
        assert "can't be used as the URL of a Redis server" in said
    for scheme in ("redis+sentinel", "redis+cluster"):
        assert SECRET not in shown(f"{scheme}://{rest}")


def shown(url: str) -> str:
    """What is shown of a URL, be it of use or not: what is no database may be a service."""
    try:
        return repr(RedisCoordinator(url))
    except ConfigError as error:
        return f"{error} {error!r}"
