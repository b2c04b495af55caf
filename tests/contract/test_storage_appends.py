"""What every storage promises of a file that grows, over every storage."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from distributed_backup.errors import StoreError
from distributed_backup.storage.base import Storage
from tests.support.places import Place

NAME = "0000000007-00000002-00000003.journal"
BINARY = bytes(range(256)) + b"\r\n\0\xff"


@pytest.fixture
def storage(place: Place) -> Storage:
    made = place.connect()
    made.prepare()
    return made


def appended(storage: Storage, *chunks: bytes) -> bytes:
    """Append chunks to a new file, and return its content."""
    content = b""
    for chunk in chunks:
        storage.append(NAME, chunk, at=len(content))
        content += chunk
    return content


def refused(storage: Storage, data: bytes, *, at: int) -> StoreError:
    with pytest.raises(StoreError) as caught:
        storage.append(NAME, data, at=at)
    assert caught.value.path == storage.path_of(NAME)
    assert str(caught.value).startswith(f"can't append to {storage.path_of(NAME)}: ")
    assert "\n" not in str(caught.value)
    return caught.value


def test_appended_bytes_are_read_in_order_by_others(place: Place, storage: Storage) -> None:
    """A file is one name with all its bytes, whatever they are."""
    content = appended(storage, b"first", BINARY, b"\n", b"last")
    other = place.connect()
    assert (other.names(), other.size(NAME)) == ([NAME], len(content))
    assert other.read(NAME) == other.read_from(NAME, 0, 1000) == content


def test_files_that_grow_and_others_stand_side_by_side(place: Place, storage: Storage) -> None:
    """Also if one name is the beginning of another."""
    storage.put("a", [b"put"])
    storage.append("a.journal", b"12", at=0)
    storage.append("a.journal.2", b"x", at=0)
    storage.append("a.journal", b"3", at=2)
    other = place.connect()
    assert sorted(other.names()) == ["a", "a.journal", "a.journal.2"]
    assert [other.read(name) for name in sorted(other.names())] == [b"put", b"123", b"x"]
    storage.remove("a.journal")
    assert sorted(other.names()) == ["a", "a.journal.2"]
    assert other.read("a.journal.2") == b"x"


def test_a_range_of_any_file_can_be_read(place: Place, storage: Storage) -> None:
    """At each offset, with each limit, across appends and behind the end."""
    content = appended(storage, b"ab", b"", b"cdef", b"g")
    storage.put("put", [content])
    storage.create("created", content)
    other = place.connect()
    for offset, limit in itertools.product((0, 1, 2, 5, 6, 7, 8, 10**12), (0, 1, 3, 7, 10**12)):
        wanted = content[offset : offset + limit]
        assert other.read_from(NAME, offset, limit) == wanted, (offset, limit)
        assert other.read_from("put", offset, limit) == wanted, (offset, limit)
    assert other.read_from("created", 2, 3) == content[2:5]
    storage.put("empty", [b""])
    assert other.read_from("empty", 0, 10) == b""


def test_a_repeated_append_does_not_double_bytes(place: Place, storage: Storage) -> None:
    """The writer may have lost the reply to the first one. It goes on as if there had been one."""
    for data, at in ((b"one", 0), (b"two", 3), (b"three", 6)):
        for _ in range(3):
            storage.append(NAME, data, at=at)
            assert place.connect().read(NAME) == b"onetwothree"[: at + len(data)]


@pytest.mark.parametrize("rest", [b"", b"x", b"same len", b"longer than it was"])
@pytest.mark.parametrize("at", [0, 3, 5, 8])
def test_bytes_behind_the_offset_are_replaced(place: Place, storage: Storage, at: int, rest: bytes) -> None:
    """They are the rest of failed attempts, of several appends or of a part of one."""
    content = appended(storage, b"one", b"-tail", b"same len", b"1")
    storage.append(NAME, rest, at=at)
    wanted = content[:at] + rest
    assert place.connect().read(NAME) == wanted
    assert (storage.size(NAME), place.connect().names()) == (len(wanted), [NAME])
    storage.append(NAME, b"next", at=len(wanted))
    assert place.connect().read_from(NAME, at, 1000) == rest + b"next"


def test_another_process_may_continue_a_file(place: Place, storage: Storage) -> None:
    """One after the other. The second one removes what the first one left behind the offset."""
    appended(storage, b"one", b"two", b"lost")
    other = place.connect()
    other.append(NAME, b"four", at=6)
    other.append(NAME, b"five", at=10)
    assert storage.read(NAME) == b"onetwofourfive"
    other.append(NAME, b"new", at=0)
    assert storage.read(NAME) == b"new"


def test_an_append_without_bytes_creates_a_file(place: Place, storage: Storage) -> None:
    """And adds nothing to one that is there."""
    storage.append(NAME, b"", at=0)
    other = place.connect()
    assert (other.names(), other.size(NAME), other.read(NAME), other.read_from(NAME, 0, 9)) == ([NAME], 0, b"", b"")
    storage.append(NAME, b"1", at=0)
    storage.append(NAME, b"", at=1)
    assert other.read(NAME) == b"1"


@pytest.mark.parametrize("known", [True, False])
def test_an_append_behind_the_end_is_refused(place: Place, storage: Storage, known: bool) -> None:
    """Bytes before it were lost. The file stays as it is."""
    appended(storage, b"one", b"two")
    writer = storage if known else place.connect()
    error = refused(writer, b"x", at=7)
    assert str(error).endswith("it has 6 bytes, and 7 were written before")
    assert not isinstance(error.__cause__, FileNotFoundError)
    assert place.connect().read(NAME) == b"onetwo"
    writer.append(NAME, b"3", at=6)
    assert place.connect().read(NAME) == b"onetwo3"


def test_a_missing_file_is_an_error(place: Place, storage: Storage) -> None:
    """And neither an append nor a read creates it."""
    assert isinstance(refused(storage, b"x", at=1).__cause__, FileNotFoundError)
    with pytest.raises(StoreError) as caught:
        storage.read_from(NAME, 0, 10)
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert caught.value.path == storage.path_of(NAME)
    other = place.connect()
    assert (other.names(), other.size(NAME)) == ([], None)


def test_a_file_that_was_removed_does_not_come_back(place: Place, storage: Storage) -> None:
    """Nothing of it is left, and the next append is refused. A new file of that name has none of its bytes."""
    appended(storage, b"one", b"two")
    place.connect().remove(NAME)
    if not place.sees_each_removal:
        storage.names()
    assert isinstance(refused(storage, b"three", at=6).__cause__, FileNotFoundError)
    other = place.connect()
    assert (other.names(), other.size(NAME)) == ([], None)
    with pytest.raises(StoreError) as caught:
        other.read(NAME)
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    storage.append(NAME, b"new", at=0)
    assert other.read(NAME) == b"new"
    storage.remove(NAME)
    assert isinstance(refused(storage, b"x", at=3).__cause__, FileNotFoundError)
    assert other.names() == []


def test_a_place_that_was_removed_is_not_created_again(place: Place, storage: Storage) -> None:
    """Not by an append. `prepare` creates it."""
    appended(storage, b"one")
    other = place.connect()
    other.remove(NAME)
    other.remove_if_empty()
    if not place.sees_each_removal:
        storage.names()
    assert isinstance(refused(storage, b"two", at=3).__cause__, FileNotFoundError)
    assert storage.names() == []


# gcsfs passes bodies of any size as bytes.
@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")
def test_a_large_append(place: Place, storage: Storage) -> None:
    """20 MB, and a little behind them."""
    large = bytes(range(256)) * 80_000
    appended(storage, b"head", large, b"tail")
    other = place.connect()
    assert other.size(NAME) == len(large) + 8
    assert other.read_from(NAME, 4 + len(large) - 3, 100) == large[-3:] + b"tail"
    assert other.read(NAME) == b"head" + large + b"tail"


def test_readers_beside_a_writer_find_a_beginning_that_grows(place: Place, storage: Storage) -> None:
    """Two readers follow while a writer appends, and repeats each append as after a lost reply."""
    chunks = [b"%03d:" % number + b"x" * (97 * number % 500) + b"\n" for number in range(30)]
    content = b"".join(chunks)
    storage.append(NAME, b"", at=0)
    written, together = [0], threading.Barrier(3)

    def follow(_: int) -> bytes:
        mine, found = place.connect(), b""
        together.wait()
        while len(found) < len(content):
            durable = written[0]
            found += mine.read_from(NAME, len(found), 700)
            assert content.startswith(found)
            # The limit ends a read early, not the reader.
            while len(found) < durable:
                more = mine.read_from(NAME, len(found), 700)
                assert more, "bytes of an append that returned are missing"
                found += more
        return found

    with ThreadPoolExecutor(2) as pool:
        readers = pool.map(follow, range(2))
        together.wait()
        for chunk in chunks:
            for _ in range(2):
                storage.append(NAME, chunk, at=written[0])
            written[0] += len(chunk)
        assert list(readers) == [content] * 2


def test_a_closed_storage_appends_again(storage: Storage) -> None:
    """A callback may be used for several fits."""
    storage.append(NAME, b"1", at=0)
    storage.close()
    storage.append(NAME, b"2", at=1)
    assert storage.read(NAME) == b"12"
