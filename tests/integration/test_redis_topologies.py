"""Ways to Redis that are more than one server with a URL: sentinels, a cluster, and a client of the user.

Errors are one line of the right class, without a driver's stack and without a password.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from distributed_backup.coordination.redis import RedisCoordinator
from distributed_backup.errors import ConfigError, CoordinatorUnavailableError
from distributed_backup.redis_client.address import RedisAddress
from distributed_backup.redis_client.client import RedisClient
from tests.integration.redis_scenarios import Team, asking, beat, key
from tests.support.cli_runs import call_json
from tests.support.proxy import Proxy
from tests.support.redis_checks import SECRET, check_serves, complaint, complaint_at, opened
from tests.support.servers import HOST, Cluster, RedisServer, Replicated, binaries, free_port, wait_for


@pytest.fixture(scope="module", params=sorted(binaries()))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Start one server with a password, for all tests that leave its configuration as it was."""
    directory = tmp_path_factory.mktemp("redis") / "server"
    config = {"requirepass": SECRET}
    with RedisServer(directory, binary=binaries()[request.param], port=0, config=config) as server:
        yield server


@pytest.fixture(autouse=True)
def secrecy(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a test does, no password gets into our log."""
    with caplog.at_level(logging.DEBUG, "distributed_backup"):
        yield
    ours = [record for record in caplog.get_records("call") if record.name.startswith("distributed_backup")]
    assert not [record.getMessage() for record in ours if SECRET in record.getMessage() or record.exc_info]


# ---------------------------------------------------------------- sentinels


def test_sentinels_lead_to_the_primary_and_to_the_next_one(tmp_path: Path) -> None:
    """Fail-over in the midst of a run, then one to a replica that has missed some terms: it goes on by itself."""
    with Replicated(tmp_path / "group") as group, Team(tmp_path / "run", group.url) as team:
        check_existing_client_of_sentinel(group)
        trainers = team.start_all("a", "b", "c")
        first = team.await_going_on().term
        old = group.primary()
        assert team.view(old.url).term == first
        new = group.fail_over()
        for trainer in trainers:
            trainer.await_batches()
        wait_for(lambda: is_led_at(team, new), "the run goes on at the new primary")
        # What follows the replica does not see.
        group.detach_replicas()
        seen = team.await_going_on().term
        for _ in range(2):
            leader = team.leader()
            leader.resign()
            team.trainers.remove(leader)
            trainers.append(team.start(f"new-{len(trainers)}"))
            highest = team.await_going_on(above=seen).term
            seen = highest
        lease = key(team.root, "lease")
        assert all(int(replica.ask("HGET", lease, "term")) < highest for replica in group.replicas()), "they are stale"
        stale = group.fail_over()
        newcomer = team.start("newcomer")
        view = team.await_going_on(above=highest)
        assert view.term > highest
        assert team.view(stale.url).term >= view.term
        newcomer.await_batches()
        team.trainers = [*{id(one): one for one in (*trainers, *team.trainers)}.values()]
        team.check_beliefs(overlap=True)
        team.check_training()


def is_led_at(team: Team, server: RedisServer) -> bool:
    """Whether the run is led through this server, and its newest checkpoint is of that lease."""
    view, newest = team.view(server.url), team.store.newest_header()
    told = view.announcement
    return view.holder is not None and told is not None and newest is not None and view.term == told.term == newest.term


def check_existing_client_of_sentinel(group: Replicated) -> None:
    """A client that the user's own Sentinel made serves as well. An error names an unknown service."""
    manager = Sentinel([(HOST, sentinel.port) for sentinel in group.sentinels], decode_responses=False)
    with manager.master_for("primary") as client, opened(client) as coordinator:
        assert f":{group.sentinels[0].port}" in repr(coordinator)
        check_serves(coordinator)
        assert client.get("nothing") is None
    for sentinel in manager.sentinels:
        sentinel.close()
    said = complaint_at(group.url.replace("/primary", "/nobody"), CoordinatorUnavailableError)
    assert "know no primary of that name" in said


# ---------------------------------------------------------------- a cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Six nodes take their time to start."""
    with Cluster(tmp_path_factory.mktemp("cluster") / "cluster") as cluster:
        yield cluster


def test_a_cluster_keeps_a_run_on_one_master_and_survives_its_end(cluster: Cluster, tmp_path: Path) -> None:
    """All keys are on the master of the run's slot. It is killed, and its replica serves the run."""
    numbers = random.getstate()
    with opened(cluster.url) as coordinator:
        check_serves(coordinator)
    # The client draws which node to ask, and not from the training's generator.
    assert random.getstate() == numbers
    with Team(tmp_path / "run", cluster.url) as team:
        trainers = team.start_all("a", "b")
        first = team.await_going_on().term
        lease = key(team.root, "lease")
        master = cluster.master_of(lease)
        run = team.store.open_run()
        for server in cluster.servers:
            found = server.ask("KEYS", f"*{run}*")
            assert (len(found) >= 4) is (server is master or server in cluster.replicas_of(lease))
            assert server is master or not found or server.ask("ROLE")[0] == "slave"
        assert len({master.ask("CLUSTER", "KEYSLOT", name) for name in master.ask("KEYS", f"*{run}*")}) == 1
        new = cluster.fail_over(lease)
        for trainer in trainers:
            trainer.await_batches()
        view = team.await_going_on()
        assert view.term >= first
        assert int(new.ask("HGET", lease, "term")) >= view.term
        newcomer = team.start("newcomer")
        leader = team.leader()
        leader.resign()
        wait_for(lambda: team.await_going_on(above=view.term), "another leads")
        newcomer.await_batches()
        team.check_beliefs(overlap=True)
        team.check_training()


def test_a_cluster_is_not_taken_for_a_replica(cluster: Cluster) -> None:
    """Half of its nodes are replicas. Version 6 of the driver asks any node, unless a primary is named."""
    for _ in range(20):
        client = RedisClient(RedisAddress.of_url(cluster.url), limit=5.0)
        info = client.info()
        client.close()
        assert info is not None
        assert info.is_replica == ""


def test_check_passes_a_cluster(cluster: Cluster) -> None:
    document = call_json("check", cluster.url)
    found = {each["name"]: each for each in document["checks"]}
    assert [name for name, each in found.items() if each["status"] in {"danger", "unknown"}] == []
    assert found["server"]["found"].endswith("in a cluster")


def test_a_plain_url_to_a_node_of_a_cluster_is_a_mistake(cluster: Cluster) -> None:
    """Where the run's keys belong to another node: the message names the right scheme."""
    lease = "distributed-backup:{run}:lease"
    other = next(node for node in cluster.servers if node.running and node is not cluster.master_of(lease))
    said = complaint_at(other.url, ConfigError, run="run")
    assert "one node of a Redis Cluster: use redis+cluster:// in place of redis://" in said


def test_a_plain_server_is_no_cluster(server: RedisServer) -> None:
    """A mistake in the configuration, and the message says which scheme is right."""
    url = server.url.replace("redis://", "redis+cluster://").removesuffix("/0")
    assert "use redis:// in place of redis+cluster://" in complaint_at(url, ConfigError)


@pytest.mark.parametrize("kind", ["redis", "redis+sentinel", "redis+cluster"])
def test_no_deployment_is_reached_in_a_way_that_is_deprecated(kind: str) -> None:
    """Warnings are errors here: what the driver deprecates today it will refuse tomorrow."""
    service = "/primary" if kind == "redis+sentinel" else ""
    with opened(f"{kind}://{HOST}:{free_port()}{service}") as coordinator:
        said = complaint(CoordinatorUnavailableError, lambda: beat(coordinator, "a"))
    assert "deprecated" not in said


# ---------------------------------------------------------------- the user's own client


@pytest.mark.parametrize("decodes", [True, False])
def test_a_client_of_the_user_is_taken_for_its_settings(server: RedisServer, decodes: bool) -> None:
    """Password and database are its own. Limits and retries are ours. The client itself is unchanged."""
    with redis.Redis(
        host=HOST, port=server.port or 0, password=SECRET, db=3, decode_responses=decodes, socket_timeout=77.0
    ) as client:
        client.set("mine", "1")
        pool, settings = client.connection_pool, dict(client.connection_pool.connection_kwargs)
        known = client.client_id()
        with opened(client) as coordinator:
            assert repr(coordinator) == f"RedisCoordinator('redis://{HOST}:{server.port}')"
            check_serves(coordinator)
            ours = coordinator._client._connected()
            assert ours is not client
            options = ours.connection_pool.connection_kwargs  # type: ignore[attr-defined]
            assert (options["socket_timeout"], options["socket_connect_timeout"]) == (5.0, 5.0)
            assert options["retry"].get_retries() == 1
            beat(coordinator, "a")
            assert server.client(db=3).exists(coordinator._run_keys.lease)
        assert client.connection_pool is pool
        assert pool.connection_kwargs == settings
        assert client.client_id() == known, "its connection was neither taken nor closed"
        assert client.get("mine") == ("1" if decodes else b"1")


def test_a_client_with_long_retries_is_given_up_in_time(server: RedisServer) -> None:
    """One that would try for minutes: our heartbeat ends after two tries."""
    with Proxy(server.address) as proxy:
        url = proxy.url().replace("//", f"//:{SECRET}@")
        with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 1000)) as client, opened(client) as coordinator:
            beat(coordinator, "a")
            proxy.drop_replies(5, containing=b"EVALSHA")
            complaint(CoordinatorUnavailableError, lambda: beat(coordinator, "a"))
            assert proxy.dropped == 2


def test_a_client_over_a_socket_serves(tmp_path: Path) -> None:
    """unix:// by URL and by client."""
    with RedisServer(tmp_path / "server", config={"requirepass": SECRET}) as server:
        with opened(server.url) as coordinator:
            check_serves(coordinator)
        with server.client() as client, opened(client) as coordinator:
            check_serves(coordinator)
        team_url = server.url
        with Team(tmp_path / "run", team_url) as team:
            team.start_all("a")
            assert team.await_going_on().holder == "a"
            with asking(team.root, team_url) as looker:
                assert [member.worker_id for member in looker.members()] == ["a"]


@pytest.mark.parametrize("thing", [object(), 7, None, redis.Redis, redis.asyncio.Redis()])
def test_what_is_no_client_is_refused(thing: Any) -> None:
    """With its type named."""
    assert "must be a redis.Redis" in complaint_kind(thing)


def complaint_kind(thing: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        RedisCoordinator(thing)
    return str(caught.value)
