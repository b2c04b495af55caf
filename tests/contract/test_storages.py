"""What every storage promises, over every storage: a disk, a process' memory, buckets, and Redis itself."""

from __future__ import annotations

import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from distributed_backup.errors import StoreError
from distributed_backup.storage.base import Storage
from tests.support.places import OF_ONE_PROCESS, PLACES, Place


@pytest.fixture
def storage(place: Place) -> Storage:
    made = place.connect()
    made.prepare()
    return made


def test_a_place_where_nothing_was_written_is_empty(place: Place) -> None:
    """Reading creates nothing, and a missing file is distinct from an unreadable one."""
    storage = place.connect()
    assert (storage.names(), storage.size("a")) == ([], None)
    with pytest.raises(StoreError) as caught:
        storage.read("a")
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert caught.value.path == storage.path_of("a")
    assert "\n" not in str(caught.value)
    storage.remove("a")


def test_what_was_put_is_read_back_by_others(place: Place, storage: Storage) -> None:
    """All chunks, in order, whatever the bytes."""
    body = bytes(range(256)) * 2048
    storage.put("a", [b"1", body, b"\n"])
    other = place.connect()
    assert other.read("a") == b"1" + body + b"\n"
    assert other.names() == ["a"]
    size = other.size("a")
    assert size is not None
    assert size > 0


def test_a_file_is_replaced_as_a_whole(place: Place, storage: Storage) -> None:
    """Nothing of the longer one is left."""
    storage.put("a", [b"longer"])
    storage.put("a", [b"new"])
    assert place.connect().read("a") == b"new"


def test_a_file_that_need_not_last_is_there_all_the_same(storage: Storage) -> None:
    """Not durable is not invisible."""
    storage.put("a", [b"1"], durable=False)
    assert storage.read("a") == b"1"


def test_one_of_many_creates_a_file(place: Place, storage: Storage) -> None:
    """All try at the same time, and the winner's bytes stay."""
    together = threading.Barrier(6)

    def create(number: int) -> bool:
        mine = place.connect()
        together.wait()
        return mine.create("claim", b"%d" % number)

    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(create, range(6)))
    assert sum(made) == 1
    assert storage.read("claim") == b"%d" % made.index(True)


def test_a_mere_name_is_created_once(place: Place, storage: Storage) -> None:
    """A claim has no bytes. It is listed, and `remove` deletes it."""
    assert storage.create("0000000001.term")
    assert not place.connect().create("0000000001.term")
    assert storage.names() == ["0000000001.term"]
    storage.remove("0000000001.term")
    assert storage.names() == []
    assert storage.create("0000000001.term")


def test_a_file_that_must_be_new_does_not_replace_one(place: Place, storage: Storage) -> None:
    """The error's cause says that it exists. A medium that can't check in the same step replaces it."""
    storage.put("a", [b"old"], new=True)
    if not place.refuses_what_is_there:
        place.connect().put("a", [b"late"], new=True)
        assert storage.read("a") == b"late"
        return
    with pytest.raises(StoreError) as caught:
        place.connect().put("a", [b"late"], new=True)
    assert isinstance(caught.value.__cause__, FileExistsError)
    assert storage.read("a") == b"old"


def test_runs_side_by_side_do_not_see_each_other(place: Place, storage: Storage) -> None:
    """Not even if the name of one begins as that of the other."""
    storage.put("a", [b"1"])
    for other in (place.beside("run-4"), place.beside("run-421")):
        other.prepare()
        assert other.names() == []
        other.put("b", [b"2"])
    assert storage.names() == ["a"]


def test_a_place_that_was_emptied_can_be_used_again(place: Place, storage: Storage) -> None:
    """The last worker out empties it. A new run may begin there."""
    storage.put("a", [b"1"])
    storage.remove_if_empty()
    assert storage.names() == ["a"]
    storage.remove("a")
    storage.remove_if_empty()
    assert place.connect().names() == []
    storage.prepare()
    storage.put("a", [b"2"])
    assert storage.read("a") == b"2"


@pytest.mark.parametrize("place", sorted(PLACES.keys() - OF_ONE_PROCESS), indirect=True)
def test_a_forked_child_has_connections_of_its_own(storage: Storage) -> None:
    """Two processes on one connection would read each other's replies. A client's thread does not survive a fork."""
    storage.put("a", [b"parent"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that threads are gone in the child is the point
        child = os.fork()
    if child == 0:
        code = 1
        try:
            storage.put("b", [b"child"])
            code = 0 if storage.read("a") == b"parent" else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert storage.read("b") == b"child"


def test_a_closed_storage_opens_again(storage: Storage) -> None:
    """A callback may be used for several fits."""
    storage.put("a", [b"1"])
    storage.close()
    assert storage.read("a") == b"1"
