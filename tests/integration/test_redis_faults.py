"""Runs over a real Redis while the network breaks, the server forgets or dies, and hints get lost.

Each worker reaches the server through a proxy of its own. What must hold: no two believe to lead at one instant unless
the server lost its data, terms grow, training is never disturbed, and the election resumes by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from distributed_backup.coordination.base import Hint
from distributed_backup.coordination.redis import RedisCoordinator, script
from tests.integration.redis_scenarios import (
    BRISK,
    CALM,
    CLOCK,
    SHORT,
    Belief,
    Team,
    Trainer,
    asking,
    beat,
    committed,
    key,
)
from tests.support.internals import elector_of, saver_of
from tests.support.proxy import Proxy
from tests.support.servers import PATIENCE, RedisServer, binaries, wait_for

BINARIES = pytest.mark.parametrize("server", sorted(binaries()), indirect=True)


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    binary = binaries()[getattr(request, "param", "valkey")]
    with RedisServer(tmp_path / "server", binary=binary, port=0) as server:
        yield server


class Cables(Team):
    """A team whose workers have a proxy each."""

    def __init__(self, root: Path, server: RedisServer) -> None:
        super().__init__(root, server.url)
        self._server = server
        self._stack = ExitStack()
        self.proxies: dict[str, Proxy] = {}

    def __exit__(self, *details: object) -> None:
        for proxy in self.proxies.values():
            proxy.heal()
        super().__exit__(*details)
        self._stack.close()

    def start(self, worker_id: str, *, url: str | None = None, **options: Any) -> Trainer:
        proxy = self.proxies[worker_id] = self._stack.enter_context(Proxy(self._server.address))
        return super().start(worker_id, url=url or proxy.url(), **options)


@pytest.fixture
def team(server: RedisServer, tmp_path: Path) -> Iterator[Cables]:
    with Cables(tmp_path / "run", server) as cables:
        yield cables


def cut_off(proxy: Proxy) -> None:
    proxy.refuse()
    proxy.cut()


def hang_new_ones(proxy: Proxy) -> None:
    proxy.half_close()
    proxy.black_hole()


# Each lasts until it is healed, and lets no heartbeat be answered within the time limit.
OUTAGES: dict[str, Callable[[Proxy], None]] = {
    "black-hole": lambda proxy: proxy.black_hole(),
    "black-hole-of-replies": lambda proxy: proxy.black_hole("replies"),
    "refused": cut_off,
    "half-closed": hang_new_ones,
    "slow": lambda proxy: proxy.delay(2.0),
}


@pytest.mark.parametrize("outage", OUTAGES)
def test_a_leader_that_is_cut_off_stands_down_before_another_leads(team: Cables, outage: str) -> None:
    """Its belief ends before the other's begins. It trains on meanwhile, and follows after it is back."""
    leader, other = team.start_all("leader", "other")
    first = leader.await_term()
    team.await_going_on()
    OUTAGES[outage](team.proxies["leader"])
    newer = other.await_term(above=first)
    leader.await_batches()
    assert leader.term is None
    team.await_losses(leader)
    assert [loss.term for loss in leader.coordinator.losses] == [first]
    [ended], [begun] = leader.beliefs, other.beliefs
    assert ended.end < begun.start
    assert (ended.term, begun.term) == (first, newer)
    team.await_going_on(above=first)
    team.proxies["leader"].heal()
    answered = len(leader.coordinator.answered)
    wait_for(lambda: len(leader.coordinator.answered) > answered, "the old leader is heard of again")
    assert leader.coordinator.answered[-1][1].holder == "other"
    assert wait_for(lambda: other.term, "the other leads on") >= newer
    # It may lead again: the newer one resigns.
    other.resign()
    assert leader.await_term(above=newer) > newer
    leader.await_batches()
    team.check_beliefs()
    team.check_training()


@pytest.mark.parametrize("outage", ["black-hole", "refused"])
def test_a_follower_that_is_cut_off_disturbs_nobody(team: Cables, outage: str) -> None:
    """It trains on and does not lead. When it is back, it can take over."""
    leader = team.start("leader", timings=BRISK)
    first = leader.await_term()
    follower = team.start("follower")
    OUTAGES[outage](team.proxies["follower"])
    wait_for(lambda: elector_of(follower.worker).coordinator_error, "the follower notices")
    follower.await_batches()
    leader.await_batches()
    assert (leader.term, follower.term) == (first, None)
    with asking(team.root, team.url) as coordinator:
        wait_for(
            lambda: [one.worker_id for one in coordinator.members()] == ["leader"], "the silent one counts no more"
        )
        team.proxies["follower"].heal()
        wait_for(lambda: len(coordinator.members()) == 2, "it is a member again")
    leader.resign()
    assert follower.await_term(above=first) > first
    team.check_beliefs()
    team.check_training()


@pytest.mark.parametrize("outage", ["black-hole", "refused"])
def test_when_all_are_cut_off_nobody_leads_and_the_election_resumes(team: Cables, outage: str) -> None:
    """All stand down and train on. After the outage, one leads under a higher term."""
    trainers = team.start_all("a", "b", "c")
    first = trainers[0].await_term()
    team.await_going_on()
    for proxy in team.proxies.values():
        OUTAGES[outage](proxy)
    team.await_losses(trainers[0])
    before = team.store.names()
    for trainer in trainers:
        trainer.await_batches()
    assert [trainer.term for trainer in trainers] == [None] * 3
    assert team.store.names() == before, "nothing is committed while nobody leads"
    for proxy in team.proxies.values():
        proxy.heal()
    assert team.await_going_on(above=first).term > first
    team.check_beliefs()
    team.check_training()


def test_a_slow_network_costs_no_lease(team: Cables) -> None:
    """Each reply comes 30 ms late, in both directions: the leader stays."""
    leader = team.start("leader", timings=BRISK)
    first = leader.await_term()
    team.proxies["leader"].delay(0.03)
    before = leader.coordinator.sent
    wait_for(lambda: leader.coordinator.sent >= before + 5, "it ticks")
    assert (leader.term, leader.coordinator.losses) == (first, [])
    team.check_training()


@pytest.mark.parametrize("fault", ["cut", "half-close", "lost-reply"])
def test_a_broken_connection_costs_no_lease(team: Cables, fault: str) -> None:
    """Again and again: the next heartbeat takes another connection, and the leader leads on."""
    leader, proxy = team.start("leader", timings=BRISK), team.proxies["leader"]
    first = leader.await_term()
    for _ in range(4):
        before, requests = len(leader.coordinator.answered), proxy.requests
        if fault == "lost-reply":
            proxy.drop_replies(containing=b"EVALSHA")
        else:
            (proxy.cut if fault == "cut" else proxy.half_close)()
        wait_for(lambda before=before: len(leader.coordinator.answered) >= before + 2, "it ticks")  # type: ignore[misc]
        assert proxy.requests > requests + 2, "it greeted on a new connection"
    assert proxy.dropped == (4 if fault == "lost-reply" else 0)
    assert (leader.term, leader.coordinator.losses) == (first, [])
    team.await_going_on()
    team.check_training()


# ---------------------------------------------------------------- a server that forgets, dies, or drops everybody


def restart_empty(server: RedisServer) -> None:
    server.restart()


def flush(server: RedisServer) -> None:
    server.ask("FLUSHALL")


@BINARIES
@pytest.mark.parametrize("loss", [restart_empty, flush], ids=["restarted-empty", "flushed"])
def test_a_run_survives_that_the_server_forgets_everything(
    server: RedisServer, tmp_path: Path, loss: Callable[[RedisServer], None]
) -> None:
    """Terms go on above all used ones, also for a worker that joins right after. The announcement is made again."""
    with Team(tmp_path / "run", server.url) as team:
        trainers = team.start_all("a", "b")
        # Some terms on, so that a server that begins anew begins far below.
        trainers[0].resign()
        trainers[1].await_term()
        team.start("c")
        trainers[1].resign()
        highest = team.leader().await_term()
        assert highest >= 3
        for round_ in range(2):
            team.await_going_on()
            loss(server)
            newcomer = team.start(f"new-{round_}")
            view = team.await_going_on(above=highest)
            assert view.term > highest
            assert server.ask("HGET", key(team.root, "lease"), "term") == str(view.term)
            assert team.store.highest_term() >= view.term
            newcomer.await_batches()
            highest = view.term
        team.check_beliefs(overlap=True)
        team.check_training()


def test_an_announcement_that_the_server_lost_is_made_again(server: RedisServer, tmp_path: Path) -> None:
    """Without any commit in between, and a worker that joins then starts from it."""
    with Team(tmp_path / "run", server.url) as team:
        leader = team.start("leader", timings=BRISK)
        team.await_going_on()
        leader.resting.set()
        wait_for(lambda: not saver_of(leader.worker).unsaved, "it rests")
        newest = team.store.names()[0]
        wait_for(lambda: told_checkpoint(team) == newest, "all is told")
        assert server.ask("DEL", key(team.root, "announcement")) == 1
        wait_for(lambda: told_checkpoint(team) == newest, "it is told again")
        assert team.store.names()[0] == newest
        team.start("newcomer").await_batches()
        team.check_training()


def told_checkpoint(team: Team) -> str | None:
    told = team.view().announcement
    return None if told is None else told.checkpoint


@BINARIES
def test_a_run_waits_for_a_server_that_is_down(server: RedisServer, tmp_path: Path) -> None:
    """While it is down, all train and none leads. When it is back, and empty, one leads under a new term."""
    with Team(tmp_path / "run", server.url) as team:
        leader, follower = team.start_all("a", "b")
        first = leader.await_term()
        team.await_going_on()
        server.kill()
        team.await_losses(leader)
        for trainer in (leader, follower):
            trainer.await_batches()
            assert trainer.term is None
        server.start()
        assert team.await_going_on(above=first).term > first
        team.check_beliefs()
        team.check_training()


def test_a_server_that_hangs_for_more_than_a_lease_costs_an_election(server: RedisServer, tmp_path: Path) -> None:
    """After SIGSTOP of the server, the leader stands down. Requests that arrive late grant no second lease."""
    with Team(tmp_path / "run", server.url) as team:
        leader, follower = team.start_all("a", "b")
        first = leader.await_term()
        team.await_going_on()
        server.pause()
        team.await_losses(leader)
        follower.await_batches()
        server.resume()
        team.await_going_on(above=first)
        team.check_beliefs()
        team.check_training()


DISTURBANCES: dict[str, tuple[str, ...]] = {
    "connections-killed": ("CLIENT", "KILL", "TYPE", "normal"),
    "subscriptions-killed": ("CLIENT", "KILL", "TYPE", "pubsub"),
    "scripts-flushed": ("SCRIPT", "FLUSH"),
}


@BINARIES
@pytest.mark.parametrize("command", DISTURBANCES.values(), ids=DISTURBANCES)
def test_what_the_server_does_to_its_clients_costs_no_lease(
    server: RedisServer, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """The leader stays the same, a newcomer starts, and the announcement stays on record."""
    with Team(tmp_path / "run", server.url) as team:
        leader, follower = (team.start(name, timings=BRISK) for name in "ab")
        first = leader.await_term()
        for number in range(2):
            team.await_going_on()
            wait_for(lambda: subscriber_ids(server) and len(subscriber_ids(server)) == len(team.trainers), "all listen")
            done = server.ask(*command)
            assert done == "OK" or done >= len(team.trainers)
            team.start(f"new-{number}", timings=BRISK).await_batches()
            for trainer in (leader, follower):
                ticked = len(trainer.coordinator.answered)
                wait_for(lambda t=trainer, n=ticked: len(t.coordinator.answered) >= n + 2, "it ticks on")  # type: ignore[misc]
        assert (leader.term, leader.coordinator.losses) == (first, [])
        view = team.await_going_on()
        assert (view.term, view.holder) == (first, "a")
        team.check_beliefs()
        team.check_training()


# ---------------------------------------------------------------- hints


def subscriber_ids(server: RedisServer) -> set[str]:
    lines = server.ask("CLIENT", "LIST", "TYPE", "pubsub").splitlines()
    return {line.split()[0] for line in lines if " sub=1 " in line}


def await_subscriber(server: RedisServer, *, other_than: set[str] = frozenset()) -> set[str]:  # type: ignore[assignment]
    """The ids of those subscribed, as soon as there is one that was not before."""
    return wait_for(lambda: subscriber_ids(server) - other_than, "a subscription")


def hint_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "distributed-backup-hints"]


class Ear:
    """What a coordinator hints at."""

    def __init__(self, coordinator: RedisCoordinator) -> None:
        self.hints: list[Hint] = []
        self.stop = coordinator.subscribe(self.hints.append)

    def await_hint(self, hint: Hint) -> None:
        wait_for(lambda: hint in self.hints, f"a hint {hint!r}")


@BINARIES
def test_each_change_is_hinted_at(server: RedisServer, tmp_path: Path) -> None:
    """A resignation, an announcement, the last one, a notice, an append."""
    with asking(tmp_path, server.url) as ours, asking(tmp_path, server.url) as theirs:
        ear = Ear(ours)
        await_subscriber(server)
        term = beat(theirs, "a").term
        theirs.announce(committed(term, "a"))
        ear.await_hint("announced")
        server.ask("PUBLISH", key(tmp_path, "hints"), "finished")
        ear.await_hint("finished")
        server.ask("PUBLISH", key(tmp_path, "hints"), "what nobody ever says")
        theirs.resign("a")
        ear.await_hint("free")
        theirs.give_hint("appended")
        ear.await_hint("appended")
        assert ear.hints == ["announced", "finished", "free", "appended"]
        ear.stop()


def test_a_hint_spares_a_follower_its_tick(server: RedisServer, tmp_path: Path) -> None:
    """With 25 s between two ticks it leads right after the resignation, by an extra heartbeat."""
    with Team(tmp_path / "run", server.url) as team:
        leader = team.start("leader", timings=CALM)
        leader.await_term()
        follower = Trainer(team.root, server.url, "follower", timings=SLOW, trains=False)
        team.trainers.append(follower)
        wait_for(lambda: follower.coordinator.answered, "its first tick")
        wait_for(lambda: len(subscriber_ids(server)) == 2, "both listen")
        leader.resign()
        resigned_at = CLOCK.now()
        follower.await_term()
        assert follower.beliefs[0].start - resigned_at < SLOW.retry_period * 0.6


SLOW = type(SHORT)(duration=90.0, renew_deadline=60.0, retry_period=25.0)


def test_a_lost_hint_costs_at_most_one_tick(server: RedisServer, tmp_path: Path) -> None:
    """All subscriptions are killed in the transaction that gives the lease back: the next tick of the other wins."""
    with Team(tmp_path / "run", server.url) as team, asking(team.root, server.url) as leader:
        assert beat(leader, "leader").holder == "leader"
        follower = Trainer(team.root, server.url, "follower", timings=BRISK, trains=False)
        team.trainers.append(follower)
        ears = await_subscriber(server)
        wait_for(lambda: follower.coordinator.answered, "its first tick")
        channel, lease = key(team.root, "hints"), key(team.root, "lease")
        with server.client().pipeline(transaction=True) as transaction:
            transaction.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            transaction.execute_command("PUBSUB", "NUMSUB", channel)
            transaction.execute_command("EVAL", script("resign"), 1, lease, "leader", channel)
            killed, listening, resigned = transaction.execute()
        resigned_at = CLOCK.now()
        assert (killed, listening[0][1] if isinstance(listening[0], tuple) else listening[1], resigned) == (1, 0, 1)
        follower.await_term()
        later = [view for sent_at, view in follower.coordinator.answered if sent_at > resigned_at]
        assert not later or later[0].holder == "follower"
        assert await_subscriber(server, other_than=ears), "and it listens again"


@BINARIES
def test_a_killed_subscription_is_renewed(server: RedisServer, tmp_path: Path) -> None:
    """CLIENT KILL TYPE pubsub, three times: hints come again."""
    with asking(tmp_path, server.url) as coordinator:
        ear = Ear(coordinator)
        known = await_subscriber(server)
        for _ in range(3):
            assert server.ask("CLIENT", "KILL", "TYPE", "pubsub") == 1
            known |= await_subscriber(server, other_than=known)
            ear.hints.clear()
            server.ask("PUBLISH", key(tmp_path, "hints"), "free")
            ear.await_hint("free")
        ear.stop()


def test_a_subscription_in_a_black_hole_is_replaced(server: RedisServer, tmp_path: Path) -> None:
    """Not even a PING is answered, so the listener replaces the connection, and the next one gives hints."""
    run = "run"
    with Proxy(server.address) as proxy:
        coordinator = RedisCoordinator(proxy.url())
        coordinator.open(run, BRISK)
        ear = Ear(coordinator)
        dead = await_subscriber(server)
        # Nothing is reset: what the server sees end, the listener has ended.
        proxy.black_hole("replies")
        wait_for(lambda: not subscriber_ids(server) & dead, "the listener gives up")
        assert proxy.held >= 1
        proxy.heal(deliver=True)
        await_subscriber(server, other_than=dead)
        server.ask("PUBLISH", f"distributed-backup:{{{run}}}:hints", "free")
        ear.await_hint("free")
        ear.stop()
        coordinator.close()


@pytest.mark.parametrize("outage", ["none", "black-hole", "refused"])
def test_the_listening_ends_when_nobody_wants_to_know(server: RedisServer, tmp_path: Path, outage: str) -> None:
    """Its thread ends with the last subscriber, whatever the server does. The next subscriber starts a new thread."""
    before = set(hint_threads())
    with Proxy(server.address) as proxy:
        coordinator = RedisCoordinator(proxy.url())
        coordinator.open("run", BRISK)
        for _ in range(2):
            ears = [Ear(coordinator), Ear(coordinator)]
            known = await_subscriber(server)
            [thread] = set(hint_threads()) - before
            ears[0].stop()
            server.ask("PUBLISH", "distributed-backup:{run}:hints", "free")
            ears[1].await_hint("free")
            assert ears[0].hints == []
            assert thread.is_alive()
            if outage != "none":
                OUTAGES[outage](proxy)
            ears[1].stop()
            thread.join(PATIENCE)
            assert not thread.is_alive()
            proxy.heal()
            wait_for(lambda known=known: not subscriber_ids(server) & known, "the subscription is closed")  # type: ignore[misc]
        coordinator.close()


def test_listening_ends_in_silence_amid_a_reconnection(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at any moment of losing and replacing its connection, the thread dies of no exception."""
    died: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda details: died.append(details.exc_value))
    before = set(hint_threads())
    with Proxy(server.address) as proxy:
        for number in range(0, 40, 4):
            coordinator = RedisCoordinator(proxy.url())
            coordinator.open(f"run-{number}", CALM)
            ear = Ear(coordinator)
            known = await_subscriber(server)
            # So that to connect takes some 50 ms: in their midst falls the stop.
            proxy.delay(0.005)
            proxy.cut()
            CLOCK.wait(threading.Event(), 0.002 * number)
            ear.stop()
            proxy.heal()
            wait_for(lambda: not set(hint_threads()) - before, "the thread ends")
            coordinator.close()
            wait_for(lambda known=known: not subscriber_ids(server) & known, "the subscription is closed")  # type: ignore[misc]
    assert died == []


def test_an_election_needs_no_hints(server: RedisServer, tmp_path: Path) -> None:
    """A user without the right to any channel: leads, announces, hands over, at the pace of the ticks."""
    rights = ("~distributed-backup:*", "+@read", "+@write", "+@scripting", "+@connection", "+info", "+time")
    server.ask("ACL", "SETUSER", "deaf", "on", ">secret", "resetchannels", *rights)
    url = server.url.replace("redis://", "redis://deaf:secret@")
    with Team(tmp_path / "run", url) as team:
        leader, follower = (team.start(name, timings=BRISK) for name in "ab")
        first = leader.await_term()
        assert team.await_going_on().term == first
        assert subscriber_ids(server) == set()
        leader.resign()
        assert follower.await_term(above=first) > first
        assert team.await_going_on(above=first).holder == "b"
        team.check_beliefs()
        team.check_training()


def test_the_check_for_overlaps_sees_one() -> None:
    """Else all tests here would pass with two leaders at once."""
    from tests.integration.redis_scenarios import overlaps

    one, other = Belief("a", 1, 0.0, 2.0), Belief("b", 2, 1.9, 3.0)
    assert overlaps([one, other]) == [(one, other)]
    assert overlaps([Belief("a", 1, 0.0, 1.9), other, Belief("c", 3, 2.5, 2.4)]) == []
