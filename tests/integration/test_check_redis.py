"""`distributed-backup check` on Redis and Valkey servers, sound ones and ones with a fault."""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distributed_backup.coordination.base import ClusterView, Heartbeat
from distributed_backup.inspection import server as server_module
from distributed_backup.inspection.finding import NOT_MADE
from distributed_backup.inspection.server import _elected, _expires, _memory, _persistence, _round_trip
from distributed_backup.redis_client.server_info import ServerInfo
from tests.support.check_names import OF_BUCKETS, OF_DIRECTORIES, OF_PAIRS, OF_SERVERS
from tests.support.cli_runs import call, call_json
from tests.support.proxy import Proxy
from tests.support.redis_checks import opened
from tests.support.servers import HOST, RedisServer, Replicated, binaries, free_port, wait_for

OPERATIONS = (Path(__file__).parents[2] / "deploy" / "OPERATIONS.md").read_text()
SECRET = "open-sesame-7319"
RIGHTS = ("~distributed-backup:*", "&distributed-backup:*", "+@read", "+@write", "+@scripting", "+@connection")
MORE_RIGHTS = ("+@pubsub", "+info", "+time")


@pytest.fixture(scope="module", params=sorted(binaries()))
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server for all tests that leave its configuration as it was."""
    config = {"requirepass": SECRET, "appendonly": "yes"}
    directory = tmp_path_factory.mktemp("redis") / "server"
    with RedisServer(directory, binary=binaries()[request.param], port=0, config=config) as server:
        yield server


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "server", port=0, config={"requirepass": SECRET, "appendonly": "yes"}) as server:
        yield server


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other tests is no finding."""
    monkeypatch.setattr(server_module, "_PART_OF_TICK", 10.0)
    monkeypatch.setattr(server_module, "_HINT_WITHIN", 10.0)
    monkeypatch.setattr("distributed_backup.inspection.files._SLOW_RATE", 0.0)


def found_at(url: str, *, code: int = 0) -> dict[str, dict[str, Any]]:
    """Run the command, and return the checks by name. No password is printed."""
    document = call_json("check", url, code=code)
    assert SECRET not in str(document)
    return {each["name"]: each for each in document["checks"]}


def with_status(found: dict[str, dict[str, Any]], status: str) -> list[str]:
    return [name for name, each in found.items() if each["status"] == status]


def test_a_sound_server_passes_all_checks_and_keeps_no_key(shared: RedisServer) -> None:
    before = shared.ask("DBSIZE")
    found = found_at(shared.url)
    assert list(found) == OF_SERVERS
    assert with_status(found, "ok") == OF_SERVERS
    assert shared.ask("DBSIZE") == before
    kind = "valkey" if "valkey" in shared.ask("INFO", "server") else "redis"
    assert found["server"]["found"].startswith(kind)


def test_a_server_of_a_run_is_told_in_lines(shared: RedisServer) -> None:
    """No second machine is asked for: each machine runs the command against the one server."""
    shared.ask("HSET", "distributed-backup:{run-42}:lease", "term", "7")
    result = call("check", shared.url)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("Nothing dangerous was found.")
    assert shared.ask("HGET", "distributed-backup:{run-42}:lease", "term") == "7"
    assert SECRET not in result.output


def test_who_interrupts_it_leaves_no_key(shared: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    before = shared.ask("DBSIZE")

    def interrupt(*_: object) -> None:
        assert shared.ask("DBSIZE") > before
        raise KeyboardInterrupt

    monkeypatch.setattr(server_module, "_round_trip", interrupt)
    assert call("check", shared.url).exit_code == 130
    assert shared.ask("DBSIZE") == before


# -------------------------------------------------------------------- settings


def test_a_server_that_may_evict_the_lease_is_dangerous(lone: RedisServer) -> None:
    """Only with a limit it evicts anything. The advice is the one of the first contact."""
    lone.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    found = found_at(lone.url)
    assert with_status(found, "warning") == ["memory"]
    lone.ask("CONFIG", "SET", "maxmemory", "100mb")
    found = found_at(lone.url, code=1)
    assert with_status(found, "danger") == ["memory"]
    assert "maxmemory-policy allkeys-lru" in found["memory"]["found"]
    assert "from allkeys-lru to noeviction" in found["memory"]["advice"]


def masked(line: str) -> str:
    """Replace what differs between two runs: numbers, units of time, and the server's address."""
    return re.sub(r"[\d.]*\d( m?s)?", "N", re.sub(r"redis://\S*?/0", "URL", line))


def test_the_output_in_the_documents_is_that_of_the_command(lone: RedisServer) -> None:
    """OPERATIONS.md shows the first lines for a server that may evict keys and forgets."""
    text = OPERATIONS.partition("\n## Checking a place")[2].partition("```text\n")[2].partition("```")[0]
    for setting in (("maxmemory-policy", "allkeys-lru"), ("maxmemory", "100mb"), ("appendonly", "no")):
        lone.ask("CONFIG", "SET", *setting)
    printed = call("check", lone.url).stdout.splitlines()
    shown = text.splitlines()
    assert len(shown) > 5
    assert [masked(line) for line in printed[: len(shown)]] == [masked(line) for line in shown]


def test_the_table_of_checks_is_complete(lone: RedisServer) -> None:
    """It has the checks of servers, and those of directories and buckets, whose tests know their names."""
    section = OPERATIONS.partition("\n## Checking a place")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, flags=re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`(.*?)`", cell)}
    assert {name.removesuffix(", as backup_dir") for name in found_at(lone.url)} <= named
    assert named == {
        *(name.removesuffix(", as backup_dir") for name in OF_SERVERS),
        *OF_DIRECTORIES,
        *OF_BUCKETS,
        *OF_PAIRS,
        NOT_MADE.name,
    }


def test_a_server_that_is_out_of_memory_is_dangerous(lone: RedisServer) -> None:
    lone.ask("CONFIG", "SET", "maxmemory", "1")
    found = found_at(lone.url, code=1)
    assert with_status(found, "danger") == ["election"]
    assert with_status(found, "warning") == ["memory"]
    assert "out of memory and refuses writes" in found["election"]["found"]


def test_a_server_without_an_append_only_file_is_a_warning(lone: RedisServer) -> None:
    lone.ask("CONFIG", "SET", "appendonly", "no")
    found = found_at(lone.url)
    assert with_status(found, "warning") == ["persistence"]
    assert "a restart loses checkpoints: set appendonly yes" in found["persistence"]["advice"]


def test_a_server_that_can_not_write_its_snapshot_is_dangerous(tmp_path: Path) -> None:
    """Its directory is gone. With a schedule of snapshots, it refuses all writes."""
    config = {"save": "3600 1"}
    with RedisServer(tmp_path / "server", port=0, config=config) as server:
        server.ask("SET", "key", "value")
        shutil.rmtree(server.directory)
        server.ask("BGSAVE")
        wait_for(lambda: "rdb_last_bgsave_status:err" in server.ask("INFO", "persistence"), "the snapshot fails")
        found = found_at(server.url, code=1)
        assert with_status(found, "danger") == ["persistence", "election"]
        assert "MISCONF" in found["election"]["found"]
        server.kill()  # it would not end before it has saved


def test_a_read_only_replica_is_dangerous(lone: RedisServer) -> None:
    lone.ask("REPLICAOF", HOST, free_port())
    found = found_at(lone.url, code=1)
    assert list(found) == ["server", "other checks"]
    assert "is a replica, which grants no lease: name the primary" in found["server"]["found"]


def test_a_server_that_is_too_old_is_dangerous(lone: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ServerInfo, "version", "6.0.16")
    found = found_at(lone.url, code=1)
    assert found["server"]["found"].endswith("is version 6.0.16: Redis 6.2 or Valkey is needed")


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"aof_enabled": 1, "aof_last_write_status": "err"}, "danger"),
        ({"aof_enabled": 1, "aof_last_write_status": "ok"}, "ok"),
        ({"aof_enabled": 0, "aof_last_write_status": "err"}, "warning"),
        ({}, "ok"),
    ],
)
def test_a_log_that_can_not_be_written_is_dangerous(fields: dict[str, Any], status: str) -> None:
    assert _persistence(ServerInfo("redis://a", fields)).status == status


@pytest.mark.parametrize(("used", "status"), [(89, "ok"), (91, "warning")])
def test_a_server_that_is_almost_full_is_a_warning(used: int, status: str) -> None:
    assert _memory(ServerInfo("redis://a", {"maxmemory": 100, "used_memory": used})).status == status


# -------------------------------------------------------------------- access


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"redis://:{SECRET}@{HOST}:1/0", "can't reach redis://127.0.0.1:1/0"),
        (f"redis+cluster://:{SECRET}@{HOST}:1", "redis+cluster://127.0.0.1:1"),
    ],
)
def test_a_server_out_of_reach_is_dangerous(url: str, said: str) -> None:
    found = found_at(url, code=1)
    assert list(found) == ["server", "other checks"]
    assert said in found["server"]["found"]


def user_of(server: RedisServer, *rights: str) -> str:
    name = f"user-{secrets.token_hex(4)}"
    server.ask("ACL", "SETUSER", name, "on", f">{SECRET}", "resetkeys", "resetchannels", *rights)
    return f"redis://{name}:{SECRET}@{HOST}:{server.port}/0"


def test_the_rights_that_are_documented_suffice(shared: RedisServer) -> None:
    found = found_at(user_of(shared, *RIGHTS, *MORE_RIGHTS))
    assert with_status(found, "ok") == OF_SERVERS


@pytest.mark.parametrize(
    ("lacking", "status", "names"),
    [
        ("-@scripting", "danger", ["election"]),
        ("-scan", "warning", ["list of runs"]),
        ("-getrange", "danger", ["append, as backup_dir"]),
        ("-publish", "warning", ["hints"]),
        ("-info", "unknown", ["server"]),
    ],
)
def test_a_right_that_is_lacking_is_found(shared: RedisServer, lacking: str, status: str, names: list[str]) -> None:
    found = found_at(user_of(shared, *RIGHTS, *MORE_RIGHTS, lacking), code=1 if status == "danger" else 0)
    assert with_status(found, status) == names
    assert found[names[0]]["advice"]


def test_a_wrong_password_is_dangerous(shared: RedisServer) -> None:
    found = found_at(f"redis://:x{SECRET}@{HOST}:{shared.port}/0".replace(SECRET, "guess"), code=1)
    assert "refused the user name or password" in found["server"]["found"]


# -------------------------------------------------------------------- time, and leases


def test_a_slow_way_to_the_server_is_a_warning(lone: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_TRIPS", 2)
    with Proxy(lone.address) as proxy, opened(proxy.url().replace("redis://", f"redis://:{SECRET}@")) as coordinator:
        assert _round_trip(coordinator).status == "ok"
        monkeypatch.setattr(server_module, "_PART_OF_TICK", 0.1)
        proxy.delay(0.25, "replies")
        outcome = _round_trip(coordinator)
    assert outcome.status == "warning"
    assert int(re.findall(r"p50 (\d+) ms", outcome.found)[0]) >= 250


class Double:
    """A coordinator that grants what it is made to grant."""

    def __init__(self, holders: list[str | None], *, terms: list[int] | None = None) -> None:
        self._holders = holders
        self._terms = terms or [1]

    def heartbeat(self, beat: Heartbeat) -> ClusterView:
        return self.view()

    def view(self) -> ClusterView:
        holder = self._holders.pop(0) if len(self._holders) > 1 else self._holders[0]
        term = self._terms.pop(0) if len(self._terms) > 1 else self._terms[0]
        return ClusterView(term=term, holder=holder, holder_age=0.0, remaining=1.0, announcement=None)

    def leave(self, worker_id: str) -> None:
        pass


def test_a_server_that_grants_one_lease_twice_is_dangerous() -> None:
    double: Any = Double(["one", "other"])
    outcome = _elected(double, double)
    assert (outcome.status, outcome.found) == ("danger", "the lease of one was also granted to other")


@pytest.mark.parametrize(
    ("holders", "status"), [(["one", None], "danger"), (["one"], "warning")], ids=["a-fast-clock", "a-stopped-clock"]
)
def test_a_lease_that_expires_early_or_late_is_found(
    monkeypatch: pytest.MonkeyPatch, holders: list[str | None], status: str
) -> None:
    monkeypatch.setattr(server_module, "_LEASE", 0.5)
    monkeypatch.setattr(server_module, "_PART_OF_TICK", 0.0)
    double: Any = Double(holders)
    assert _expires(double, double).status == status


# -------------------------------------------------------------------- more than one server


def test_sentinels_lead_to_a_primary_that_passes(tmp_path: Path) -> None:
    with Replicated(tmp_path, replicas=1) as group:
        found = found_at(group.url)
    assert with_status(found, "danger") == []
    assert "a primary with 1 replica(s)" in found["server"]["found"]
