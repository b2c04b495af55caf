"""The lease over a real Redis: lost replies, stopped processes, hundreds of terms, what it costs and leaves behind.

Each fault is checked to have happened. Nothing here depends on being scheduled in time: what is compared are orders,
terms and states.
"""

from __future__ import annotations

import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.coordination.base import Notice
from distributed_backup.coordination.redis import RedisCoordinator, script
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import CoordinatorUnavailableError
from distributed_backup.position import Position
from tests.integration.redis_scenarios import (
    BRISK,
    CALM,
    CLOCK,
    SHORT,
    Belief,
    Contest,
    Team,
    asking,
    beat,
    committed,
    contest,
    key,
    lead_until_stopped,
    overlaps,
)
from tests.support.internals import elector_of, saver_of
from tests.support.processes import Child
from tests.support.proxy import Proxy
from tests.support.servers import RedisServer, binaries, wait_for

WEEK_MS = 7 * 24 * 3600 * 1000


@pytest.fixture(scope="module", params=sorted(binaries()))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One for all tests here, each of which has a run of its own on it."""
    with RedisServer(tmp_path_factory.mktemp("redis") / "server", binary=binaries()[request.param], port=0) as server:
        yield server


@pytest.fixture
def lone_server(tmp_path: Path) -> Iterator[RedisServer]:
    """One for a test that empties it, or counts what it is asked."""
    with RedisServer(tmp_path / "server", port=0) as server:
        yield server


@contextmanager
def opened(*urls: str) -> Iterator[list[RedisCoordinator]]:
    """One coordinator each, for a run that nothing is known of."""
    run, coordinators = f"run-{secrets.token_hex(4)}", [RedisCoordinator(url) for url in urls]
    for coordinator in coordinators:
        coordinator.open(run, CALM)
    try:
        yield coordinators
    finally:
        for coordinator in coordinators:
            coordinator.close()


# ---------------------------------------------------------------- lost replies

# Whether the driver's one repetition gets through, or the worker hears of the loss.
LOSSES = pytest.mark.parametrize("lost", [1, 2], ids=["one-reply", "both-tries"])


class Lossy:
    """A worker "a" whose next replies are lost, and a worker "b" who sees what is."""

    def __init__(self, server: RedisServer, proxy: Proxy, a: RedisCoordinator, b: RedisCoordinator) -> None:
        self.server, self.proxy, self.a, self.b = server, proxy, a, b
        self.client = server.client()

    def lose(self, lost: int, call: Callable[[], Any], containing: bytes = b"EVALSHA") -> Any:
        """Return what `call` returned although `lost` replies to it were lost. None if it could not know."""
        before = self.proxy.dropped
        self.proxy.drop_replies(lost, containing=containing)
        if lost == 1:
            result = call()
        else:
            with pytest.raises(CoordinatorUnavailableError):
                call()
            result = None
        assert self.proxy.dropped == before + lost
        return result

    def lease(self) -> dict[Any, Any]:
        found = self.client.hgetall(f"distributed-backup:{{{self.run}}}:lease")
        assert isinstance(found, dict)
        return found

    @property
    def run(self) -> str:
        return self.a._run_keys.run_id


@pytest.fixture
def lossy(server: RedisServer) -> Iterator[Lossy]:
    with Proxy(server.address) as proxy, opened(proxy.url(), server.url) as (a, b):
        made = Lossy(server, proxy, a, b)
        # All scripts are known to the server, so that each call is one EVALSHA.
        for coordinator in (a, b):
            beat(coordinator, "nobody", campaign=False)
            coordinator.view()
            coordinator.members()
            coordinator.announce(committed(99, "nobody"))
            coordinator.resign("nobody")
            coordinator.notify(Notice(notice_id="none", worker_id="nobody", reason="none", remaining=60.0))
            coordinator.leave("nobody")
        yield made


@LOSSES
def test_an_acquisition_whose_reply_is_lost_is_made_once(lossy: Lossy, lost: int) -> None:
    """The sender holds the lease, under one term. No other worker gets it, and the sender is not locked out."""
    told = lossy.lose(lost, lambda: beat(lossy.a, "a"))
    assert told is None or (told.holder, told.term) == ("a", 1)
    assert beat(lossy.b, "b").holder == "a"
    after = beat(lossy.a, "a")
    assert (after.holder, after.term) == ("a", 1)
    assert lossy.a.announce(committed(1, "a"))


@LOSSES
def test_a_renewal_whose_reply_is_lost_counts(lossy: Lossy, lost: int) -> None:
    """The lease lasts longer than before, under the same term."""
    beat(lossy.a, "a")
    before = lossy.lease()
    lossy.lose(lost, lambda: beat(lossy.a, "a", duration=120.0))
    assert int(lossy.lease()["until"]) > int(before["until"]) + 30_000
    assert beat(lossy.b, "b").holder == "a"
    assert (beat(lossy.a, "a").term, lossy.lease()["term"]) == (1, "1")


@LOSSES
def test_an_announcement_whose_reply_is_lost_is_on_record(lossy: Lossy, lost: int) -> None:
    """It stands, and the next one takes its place."""
    beat(lossy.a, "a")
    told = lossy.lose(lost, lambda: lossy.a.announce(committed(1, "a")))
    assert told in {None, True}
    assert lossy.b.view().announcement == committed(1, "a")
    assert lossy.a.announce(committed(1, "a", 2))
    assert lossy.b.view().announcement == committed(1, "a", 2)


@LOSSES
def test_a_resignation_whose_reply_is_lost_hands_over(lossy: Lossy, lost: int) -> None:
    """Another worker leads at its next tick. A second resignation does not take that lease away."""
    beat(lossy.a, "a")
    lossy.lose(lost, lambda: lossy.a.resign("a"))
    assert lossy.b.view().holder is None
    elected = beat(lossy.b, "b")
    assert (elected.holder, elected.term) == ("b", 2)
    lossy.a.resign("a")
    assert (beat(lossy.a, "a").holder, beat(lossy.b, "b").term) == ("b", 2)


@LOSSES
def test_a_notice_whose_reply_is_lost_is_told_once(lossy: Lossy, lost: int) -> None:
    """One notice is on record, and given again it is still one."""
    beat(lossy.b, "b")
    notice = Notice(notice_id="n", worker_id="a", reason="SIGTERM", remaining=60.0)
    lossy.lose(lost, lambda: lossy.a.notify(notice))
    assert [seen.notice_id for seen in beat(lossy.b, "b").notices if seen.worker_id == "a"] == ["n"]
    lossy.a.notify(notice)
    assert [seen.notice_id for seen in beat(lossy.b, "b").notices if seen.worker_id == "a"] == ["n"]


@LOSSES
def test_a_departure_whose_reply_is_lost_happens(lossy: Lossy, lost: int) -> None:
    """Member and notices are gone, those of others stay, and who comes back is a member again."""
    beat(lossy.a, "a")
    beat(lossy.b, "b")
    for worker_id in ("a", "b"):
        lossy.b.notify(Notice(notice_id=f"n-{worker_id}", worker_id=worker_id, reason="SIGTERM", remaining=60.0))
    lossy.lose(lost, lambda: lossy.a.leave("a"))
    assert [member.worker_id for member in lossy.b.members()] == ["b"]
    assert [notice.notice_id for notice in lossy.b.view().notices] == ["n-b"]
    beat(lossy.a, "a")
    assert [member.worker_id for member in lossy.b.members()] == ["a", "b"]


@LOSSES
def test_a_look_whose_reply_is_lost_is_taken_again(lossy: Lossy, lost: int) -> None:
    """View and members are the same as before, for the repetition and for the next call."""
    beat(lossy.a, "a")
    for look in (lambda: lossy.a.view().holder, lambda: [member.worker_id for member in lossy.a.members()]):
        right = look()
        assert lossy.lose(lost, look) in (None, right)
        assert look() == right


@LOSSES
def test_an_acquisition_on_a_server_that_knows_no_script_is_made_once(lossy: Lossy, lost: int) -> None:
    """The same where the script's text is sent, as at the first contact or after SCRIPT FLUSH."""
    lossy.client.script_flush()
    lossy.lose(lost, lambda: beat(lossy.a, "a"), containing=b"\r\n$4\r\nEVAL\r\n")
    assert beat(lossy.b, "b").holder == "a"
    after = beat(lossy.a, "a")
    assert (after.holder, after.term) == ("a", 1)


# ---------------------------------------------------------------- standing back


@pytest.mark.parametrize("way", ["stand-back", "depose"])
def test_a_leader_that_gives_the_lease_back_no_longer_believes_in_it(
    lone_server: RedisServer, tmp_path: Path, way: str
) -> None:
    """While the reply to its resignation is held up, another is elected, and only that one believes to lead."""
    with Proxy(lone_server.address) as proxy, Team(tmp_path / "run", lone_server.url) as team:
        a = team.start("a", url=proxy.url(), timings=BRISK)
        first = a.await_term()
        b = team.start("b", timings=BRISK)
        lone_server.ask("SCRIPT", "LOAD", script("resign"))
        elector = elector_of(a.worker)
        a.resting.set()
        wait_for(lambda: not saver_of(a.worker).unsaved, "it rests")
        # Between two calls, so that there is a connection on which the resignation gets through.
        with elector._lock:
            proxy.black_hole("replies")
        if way == "depose":
            elector.invalidate_term(first)
        else:
            elector.pause_campaign(30.0)
        assert b.await_term(above=first) > first
        try:
            assert a.term is None
            assert team.leader() is b
        finally:
            proxy.heal()


# ---------------------------------------------------------------- stopped processes


@pytest.mark.parametrize("during_commit", [False, True], ids=["between-commits", "during-a-commit"])
def test_a_leader_stopped_past_its_lease_counts_no_more(
    lone_server: RedisServer, tmp_path: Path, during_commit: bool
) -> None:
    """After SIGSTOP for two leases, another leads and commits. The late commit of the first is not the newest."""
    root = tmp_path / "run"
    with (
        Team(root, lone_server.url) as team,
        Child(lead_until_stopped, root, lone_server.url, during_commit, log=tmp_path / "log") as child,
    ):
        term = child.expect("leads")
        follower = team.start("follower")
        if not during_commit:
            child.kill(signal.SIGSTOP)
        newer = follower.await_term(above=term)
        elected_at = CLOCK.now()
        wait_for(lambda: is_stopped(child.pid), "the child is stopped")
        view = team.await_going_on(above=term)
        assert (view.holder, view.term) == ("follower", newer)
        wait_for(lambda: CLOCK.now() > elected_at + SHORT.duration, "two leases are over")
        child.kill(signal.SIGCONT)
        assert child.expect("lost") == term
        assert child.result() >= 5, "it trains on"
        latest = team.store.latest()
        assert latest is not None
        assert latest.header.term == newer
        assert latest.header.worker_id == "follower"
        assert follower.term == newer
        team.check_training()


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


# ---------------------------------------------------------------- hundreds of terms


def test_of_many_terms_no_two_overlap(lone_server: RedisServer, tmp_path: Path) -> None:
    """Six workers in three processes, with resignations, freezes, SIGSTOPs, cut connections and no loss of data."""
    terms = 150
    root = tmp_path / "run"
    store = CheckpointStore(root)
    with Proxy(lone_server.address) as proxy, contestants(root, proxy.url(), tmp_path, terms=terms) as children:
        stops = 0
        while store.highest_term() < terms:
            child = children[stops % len(children)]
            child.kill(signal.SIGSTOP)
            stops += 1
            seen = store.highest_term()
            wait_for(partial(has_grown, store, min(seen + 8, terms)), "others lead meanwhile")
            child.kill(signal.SIGCONT)
            proxy.cut()
            seen = store.highest_term()
            wait_for(partial(has_grown, store, min(seen + 8, terms)), "they go on")
        contests: list[Contest] = [child.result() for child in children]
    beliefs = check_unique_terms(contests)
    assert len(beliefs) >= terms * 0.9
    assert overlaps(beliefs) == []
    assert stops >= 3
    assert sum(contest.frozen for contest in contests) >= 1


def test_terms_stay_unique_whatever_the_server_forgets(lone_server: RedisServer, tmp_path: Path) -> None:
    """FLUSHALL after every few terms: two may lead for a moment, under terms that differ and grow."""
    root, terms, flushes = tmp_path / "run", 100, 0
    store, client = CheckpointStore(root), lone_server.client()
    with contestants(root, lone_server.url, tmp_path, terms=terms) as children:
        while (seen := store.highest_term()) < terms:
            client.flushall()
            flushes += 1
            wait_for(partial(has_grown, store, min(seen + 4, terms)), "terms go on")
        contests: list[Contest] = [child.result() for child in children]
    check_unique_terms(contests)
    assert flushes >= 10


def has_grown(store: CheckpointStore, term: int) -> bool:
    return store.highest_term() >= term


@contextmanager
def contestants(root: Path, url: str, logs: Path, *, terms: int) -> Iterator[list[Child]]:
    CheckpointStore(root).open_run()
    with ExitStack() as stack:
        children = [
            stack.enter_context(Child(contest, root, url, name, 2, terms, log=logs / f"log-{name}")) for name in "xyz"
        ]
        for child in children:
            child.expect("ready")
        yield children


def check_unique_terms(contests: list[Contest]) -> list[Belief]:
    """Check that terms are unique and rise with time, and return all beliefs."""
    beliefs = [belief for one in contests for belief in one.beliefs]
    terms = sorted(belief.term for belief in beliefs)
    assert len(terms) == len(set(terms))
    claims = sorted(claim for one in contests for claim in one.claims)
    assert len(claims) == len({term for term, _, _ in claims})
    assert set(terms) <= {term for term, _, _ in claims}
    for (lower, begun, _), (higher, _, ended) in pairwise(claims):
        assert begun < ended, f"{higher} was claimed before {lower} was"
    return beliefs


# ---------------------------------------------------------------- what it costs


INSIDE = {"time", "zrangebyscore", "zadd", "zrem", "hset", "hdel", "hmget", "hgetall", "get", "pexpire"}


def test_a_tick_costs_one_call(lone_server: RedisServer, tmp_path: Path) -> None:
    """Five workers in peace: one EVALSHA for each heartbeat, and a PING of a silent subscription at most as often."""
    timings = LeaseTimings(duration=60.0, renew_deadline=40.0, retry_period=0.3)
    with Team(tmp_path / "run", lone_server.url) as team:
        workers = [team.start(name, timings=timings, trains=False) for name in "abcde"]
        wait_for(lambda: all(len(worker.coordinator.answered) >= 3 for worker in workers), "all tick")
        wait_for(lambda: subscribers(lone_server) == 5, "all listen")
        lone_server.ask("CONFIG", "RESETSTAT")
        sent = [worker.coordinator.sent for worker in workers]
        begun = CLOCK.now()
        wait_for(
            lambda: all(one.coordinator.sent >= was + 8 for one, was in zip(workers, sent, strict=True)), "8 ticks"
        )
        calls = command_calls(lone_server)
        # One heartbeat of each may have been under way when the counting began.
        ticks = sum(one.coordinator.sent - was for one, was in zip(workers, sent, strict=True)) + len(workers)
        seconds = CLOCK.now() - begun
    pings = calls.pop("ping", 0)
    assert 5 * 7 <= calls.pop("evalsha") <= ticks
    assert pings <= 5 * (seconds / timings.retry_period + 1)
    for ours in ("config|resetstat", "config", "info", "hello", "client|setinfo", "client"):
        calls.pop(ours, None)
    assert set(calls) <= INSIDE


def test_a_tick_without_listening_asks_nothing_else(server: RedisServer) -> None:
    """From the second heartbeat on, one request to the server each."""
    with Proxy(server.address) as proxy, opened(proxy.url()) as (coordinator,):
        beat(coordinator, "a")
        before = proxy.requests
        for _ in range(20):
            beat(coordinator, "a")
        assert proxy.requests == before + 20
        assert proxy.connections == 1


def subscribers(server: RedisServer) -> int:
    return sum(line.count("sub=1") for line in server.ask("CLIENT", "LIST", "TYPE", "pubsub").splitlines())


def command_calls(server: RedisServer) -> dict[str, int]:
    found = {}
    for line in server.ask("INFO", "commandstats").splitlines():
        name, separator, told = line.partition(":")
        if separator:
            found[name.removeprefix("cmdstat_")] = int(told.partition("calls=")[2].partition(",")[0])
    return found


# ---------------------------------------------------------------- what is left behind


def fill(coordinator: RedisCoordinator) -> None:
    """Write every kind of record that a run has."""
    term = beat(coordinator, "a").term
    beat(coordinator, "b")
    assert coordinator.announce(committed(term, "a"))
    coordinator.notify(Notice(notice_id="n", worker_id="b", reason="SIGTERM", remaining=60.0))


def test_all_keys_of_a_run_expire_and_share_a_slot(server: RedisServer, tmp_path: Path) -> None:
    """They expire a week after the run's last call. A cluster keeps them on one node."""
    with Proxy(server.address) as proxy, asking(tmp_path, proxy.url()) as coordinator:
        fill(coordinator)
        run = CheckpointStore(tmp_path).open_run()
        names = server.ask("KEYS", f"*{run}*")
        assert sorted(names) == sorted(
            key(tmp_path, name) for name in ("lease", "announcement", "members", "expiries", "notices")
        )
        for name in names:
            assert 0 < server.ask("PTTL", name) <= WEEK_MS, name
        tags = {name.partition("{")[2].partition("}")[0] for name in [*names, key(tmp_path, "hints")]}
        assert tags == {run}


def test_nothing_is_left_of_an_erased_run(server: RedisServer, tmp_path: Path) -> None:
    """All its keys are deleted. Those of another run stay."""
    with asking(tmp_path / "one", server.url) as one, asking(tmp_path / "other", server.url) as other:
        fill(one)
        fill(other)
        others = server.ask("KEYS", f"*{other._run_keys.run_id}*")
        one.erase()
        assert server.ask("KEYS", f"*{one._run_keys.run_id}*") == []
        assert sorted(server.ask("KEYS", f"*{other._run_keys.run_id}*")) == sorted(others)


def test_two_runs_on_one_server_do_not_see_each_other(server: RedisServer, tmp_path: Path) -> None:
    """Each has a leader, members, an announcement, notices and hints of its own."""
    with asking(tmp_path / "one", server.url) as one, asking(tmp_path / "other", server.url) as other:
        heard = threading.Event()
        stop = other.subscribe(lambda _: heard.set())
        wait_for(lambda: server.ask("PUBSUB", "NUMSUB", other._run_keys.hints)[1] == 1, "it listens")
        fill(one)
        view = other.view()
        assert (view.term, view.holder, view.announcement, view.notices, other.members()) == (0, None, None, (), ())
        elected = beat(other, "x")
        assert (elected.term, elected.holder) == (1, "x")
        one.resign("a")
        assert other.view().holder == "x"
        assert {one._run_keys.run_id, other._run_keys.run_id} <= set(other.runs())
        assert not heard.is_set()
        other.resign("x")
        wait_for(heard.is_set, "a hint of its own")
        stop()


def test_a_position_and_a_role_are_told_as_they_were_said(server: RedisServer, tmp_path: Path) -> None:
    """Also after the record went through a real server."""
    with asking(tmp_path, server.url) as coordinator:
        fill(coordinator)
        told = coordinator.view().announcement
        assert told is not None
        assert told.position == Position(0, 1)
        assert [(member.worker_id, member.role, member.position) for member in coordinator.members()] == [
            ("a", "follower", None),
            ("b", "follower", None),
        ]
