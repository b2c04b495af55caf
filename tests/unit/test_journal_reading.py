"""Reading of segments, the search for the log of a checkpoint, and its stages."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest

from distributed_backup.checkpoints import journal
from distributed_backup.checkpoints.journal import SegmentReader, segments_among
from distributed_backup.checkpoints.journal_format import (
    Answer,
    Failed,
    Left,
    Link,
    Record,
    Unanswered,
    Void,
    encode_record,
)
from distributed_backup.errors import StoreError
from tests.support.journals import (
    DictStorage,
    answer,
    at,
    boundary,
    error,
    found,
    header,
    name,
    replayed,
    state,
    write,
)

NAME = name(1, 0)


def begin(term: int = 1, batch: int = 0, *, worker: str = "w") -> Record:
    """The header of a segment that begins at a boundary."""
    return header(term, batch, digests=state(batch), worker=worker)


def first(storage: DictStorage, *records: Record) -> Link:
    """Write the first segment of a run."""
    return write(storage, header(1, 0, digests=state(0)), *records)


# -------------------------------------------------------------------- one segment


def test_a_torn_tail_is_read_when_it_is_complete(storage: DictStorage) -> None:
    """Whichever part of it was there before."""
    records: list[Record] = [begin(), answer(0), boundary(1), answer(1)]
    lines = [encode_record(record) for record in records]
    whole = b"".join(lines)
    for cut in range(len(whole) + 1):
        storage.files[NAME] = whole[:cut]
        reader = SegmentReader(storage, NAME)
        before = list(reader)
        assert before == records[: len(before)]
        assert reader.offset == len(b"".join(lines[: len(before)])) <= cut
        storage.files[NAME] = whole
        assert before + list(reader) == records
        assert (reader.offset, reader.problem) == (len(whole), None)


def test_a_failed_attempt_may_be_replaced_while_it_is_waited_for(storage: DictStorage) -> None:
    """A torn tail is read again from its beginning."""
    lines = [encode_record(record) for record in (begin(), answer(0), answer(1))]
    storage.files[NAME] = lines[0] + lines[1][:-5]
    reader = SegmentReader(storage, NAME)
    assert list(reader) == [begin()]
    storage.files[NAME] = lines[0] + lines[2]
    assert list(reader) == [answer(1)]


def test_a_record_is_found_wherever_a_chunk_ends(storage: DictStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every size of a chunk, from each record on, and with each end."""
    records: list[Record] = [begin(), answer(0), Left(), boundary(1), answer(1)]
    end = first(storage, *records[1:]).end
    sizes = [len(encode_record(record)) for record in records]
    for chunk in (*range(1, 60), end - 1, end, end + 1):
        monkeypatch.setattr(journal, "_CHUNK", chunk)
        assert list(SegmentReader(storage, NAME)) == records
        for count in range(len(records) + 1):
            edge = sum(sizes[:count])
            assert list(SegmentReader(storage, NAME, start=edge)) == records[count:]
            assert list(SegmentReader(storage, NAME, end=edge)) == records[:count]


@pytest.mark.parametrize("off", [-1, 1])
def test_an_end_in_the_middle_of_a_record_is_not_reached(storage: DictStorage, off: int) -> None:
    """What the next segment continues is not what is here."""
    link = first(storage, answer(0))
    storage.files[NAME] += encode_record(answer(1))
    reader = SegmentReader(storage, NAME, end=link.end + off)
    assert list(reader) == [begin(), answer(0)][: 1 + (off > 0)]
    assert reader.is_short
    assert reader.problem is None


def test_an_end_behind_the_bytes_is_reached_when_they_are_there(storage: DictStorage) -> None:
    """Bytes that were durable once are missing, or another machine does not see them yet."""
    link = first(storage, answer(0), answer(1))
    whole = storage.files[NAME]
    storage.files[NAME] = whole[: -len(encode_record(answer(1)))]
    reader = SegmentReader(storage, NAME, end=link.end)
    assert list(reader) == [begin(), answer(0)]
    assert reader.is_short
    storage.files[NAME] = whole
    assert list(reader) == [answer(1)]
    assert not reader.is_short


@pytest.mark.parametrize("position", range(3))
def test_nothing_behind_a_bad_record_is_read(storage: DictStorage, position: int) -> None:
    """Now or later."""
    lines = [encode_record(record) for record in (begin(), answer(0), answer(1), answer(2))]
    lines[position + 1] = b"0" + lines[position + 1]
    storage.files[NAME] = b"".join(lines)
    reader = SegmentReader(storage, NAME)
    assert list(reader) == [begin(), answer(0), answer(1)][: position + 1]
    assert reader.problem == "the checksum does not match"
    assert reader.offset == sum(map(len, lines[: position + 1]))
    assert list(reader) == []


def test_a_record_that_does_not_end_is_bounded(storage: DictStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader takes no more memory for a line than the longest record has."""
    monkeypatch.setattr(journal, "_CHUNK", 100)
    monkeypatch.setattr(journal, "MAX_RECORD", 1000)
    taken: list[int] = []

    class Counted(DictStorage):
        def read_from(self, name: str, offset: int, limit: int) -> bytes:
            taken.append(limit)
            return super().read_from(name, offset, limit)

    storage = Counted()
    first(storage, answer(0))
    storage.files[NAME] += b"x" * 10**6
    reader = SegmentReader(storage, NAME)
    assert list(reader) == [begin(), answer(0)]
    assert reader.problem is not None
    assert sum(taken) < 1500


def test_a_segment_that_shrinks_or_disappears_is_no_crash(
    storage: DictStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read stays true. A missing file is an error of the storage."""
    monkeypatch.setattr(journal, "_CHUNK", 50)
    first(storage, *map(answer, range(20)))
    reader = SegmentReader(storage, NAME)
    records = reader.records()
    assert [next(records), next(records)] == [begin(), answer(0)]
    storage.files[NAME] = storage.files[NAME][:100]
    list(records)
    assert list(reader) == []
    del storage.files[NAME]
    with pytest.raises(StoreError):
        list(reader)


def test_a_segment_that_is_replaced_is_a_problem(storage: DictStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other bytes from the middle of a record on."""
    monkeypatch.setattr(journal, "_CHUNK", 50)
    first(storage, *map(answer, range(20)))
    reader = SegmentReader(storage, NAME)
    records = reader.records()
    next(records)
    storage.files[NAME] = b"\n" + storage.files[NAME]
    assert len(list(records)) <= 1
    assert reader.problem is not None


def test_an_answer_of_50_mb_and_100_000_answers(storage: DictStorage) -> None:
    """Each is read."""
    large = Answer(key="k", number=0, value=b'"' + b"x" * 50 * 2**20 + b'"')
    line = encode_record(answer(7))
    first(storage, large)
    storage.files[NAME] += line * 100_000
    reader = SegmentReader(storage, NAME)
    records = reader.records()
    assert [next(records), next(records)] == [begin(), large]
    assert sum(record == answer(7) for record in records) == 100_000
    assert reader.problem is None


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\n", b"foreign\n", encode_record(begin())[:-1], encode_record(answer(0)), b"\xff" * 100_000),
        *(encode_record(begin(2)), encode_record(begin(1, 1)), b"\n" + encode_record(begin())),
    ],
)
def test_a_segment_without_its_header_has_none(storage: DictStorage, data: bytes) -> None:
    """Nor does one that was renamed."""
    storage.files[NAME] = data
    assert SegmentReader(storage, NAME).header() is None


def test_segments_are_found_among_files() -> None:
    """Newest first, each once."""
    names = [name(2, 0), name(1, 7), name(10, 1)]
    assert segments_among([*names, "run.json", *names, ".partial-" + names[0] + "-ab"]) == [
        *(names[2], names[0], names[1]),
    ]


# -------------------------------------------------------------------- the log of a checkpoint


def chain(storage: DictStorage) -> None:
    """Three terms: 1 rolls at 2 and 4, 2 takes over after 4 and rolls at 6, 3 takes over after 7."""
    link = first(storage, answer(0), boundary(1), answer(1), boundary(2))
    link = write(storage, header(1, 2, after=link, digests=state(2)), answer(2), boundary(3), answer(3), boundary(4))
    link = write(storage, header(1, 4, after=link, digests=state(4)), answer(4))
    # The paused leader's late answer is behind the bytes that term 2 continues.
    storage.files[link.name] += encode_record(answer(99))
    link = write(storage, header(2, 4, after=link, worker="v"), answer(5), boundary(5), answer(6), boundary(6))
    link = write(storage, header(2, 6, after=link, digests=state(6), worker="v"), answer(7), boundary(7), answer(8))
    write(storage, header(3, 7, after=link, worker="u"), answer(9))


WHOLE: list[object] = [0, at(1), 1, at(2), 2, at(3), 3, at(4), 4, 5, at(5), 6, at(6), 7, at(7), 8, 9]


@pytest.mark.parametrize("batch", range(8))
def test_a_log_goes_over_terms_and_segments(storage: DictStorage, batch: int) -> None:
    """From each boundary on, whether it is in the header of a segment or in its middle."""
    chain(storage)
    start = WHOLE.index(at(batch)) + 1 if batch else 0
    assert replayed(found(storage, batch)) == WHOLE[start:]


def test_late_appends_of_a_paused_leader_are_not_read(storage: DictStorage) -> None:
    """From the moment at which a newer term has continued its segment. Before that, they are."""
    link = first(storage, answer(0))
    storage.files[NAME] += encode_record(answer(1))
    assert replayed(found(storage, 0)) == [0, 1]
    write(storage, header(2, 0, after=link))
    assert replayed(found(storage, 0)) == [0]
    storage.files[NAME] += encode_record(answer(2))
    assert replayed(found(storage, 0)) == [0]


def test_late_segments_of_a_paused_leader_hide_nothing(storage: DictStorage) -> None:
    """Its names are lower, whatever their positions."""
    link = first(storage, answer(0), boundary(1))
    write(storage, header(2, 1, after=link), answer(10))
    for batch in range(1, 9):
        link = write(storage, header(1, batch, after=link, digests=state(batch)), answer(batch), boundary(batch + 1))
    assert replayed(found(storage, 0)) == [0, at(1), 10]
    assert replayed(found(storage, 1)) == [10]
    # A state that only the paused leader has come to is continued by its own log.
    assert replayed(found(storage, 8)) == [8, at(9)]


def test_a_log_of_another_state_is_refused(storage: DictStorage, caplog: pytest.LogCaptureFixture) -> None:
    """An older log of the right state is taken."""
    first(storage, answer(0), boundary(1, "right"), answer(1))
    write(storage, header(2, 0, digests=state(0)), answer(10), boundary(1, "wrong"), answer(11))
    write(storage, header(3, 1, digests=state("wrong")), answer(12))
    assert replayed(found(storage, 1, "right")) == [1]
    assert replayed(found(storage, 1, "wrong")) == [12]
    assert len([message for message in caplog.messages if "another state" in message]) == 2
    assert found(storage, 1, "third") is None
    assert found(storage, 2) is None


def test_a_takeover_at_the_position_of_the_segment_that_it_continues(storage: DictStorage) -> None:
    """It is found from the boundary that both have in their names, through any number of takeovers."""
    link = first(storage, answer(0), boundary(1))
    link = write(storage, header(1, 1, after=link, digests=state(1)), answer(1))
    for term in range(2, 6):
        link = write(storage, header(term, 1, after=link, worker=f"w{term}"), answer(term))
    assert replayed(found(storage, 1)) == [1, 2, 3, 4, 5]
    assert replayed(found(storage, 0)) == [0, at(1), 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda storage: storage.files.pop(name(1, 2)),
        lambda storage: storage.files.update({name(1, 2): b""}),
        lambda storage: storage.files.update({name(1, 2): b"foreign\n" + storage.files[name(1, 2)]}),
        lambda storage: storage.files.update({name(1, 2): storage.files[name(1, 0)]}),
        lambda storage: write(storage, header(1, 2, digests=state(2), run_id="other"), answer(98)),
    ],
    ids=["missing", "empty", "damaged", "renamed", "of another run"],
)
def test_a_log_begins_behind_a_segment_that_cannot_be_used(
    storage: DictStorage, spoil: Callable[[DictStorage], object]
) -> None:
    """A later checkpoint has its log. An earlier one has the log up to there."""
    chain(storage)
    spoil(storage)
    assert replayed(found(storage, 3)) is None
    assert replayed(found(storage, 4)) == WHOLE[WHOLE.index(at(4)) + 1 :]
    assert replayed(found(storage, 0)) == [0, at(1), 1, at(2)]


def test_an_unknown_format_is_skipped_with_a_warning(storage: DictStorage, caplog: pytest.LogCaptureFixture) -> None:
    """Its name is in it."""
    first(storage, answer(0))
    storage.files[name(2, 0)] = b'6bb5e9ba {"format":2}\n'
    assert replayed(found(storage, 0)) == [0]
    assert name(2, 0) in caplog.text


@pytest.mark.parametrize(
    ("term", "batch"), [(2, 1), (2, 2), (3, 0)], ids=["to itself", "forwards in its term", "forwards"]
)
def test_a_link_that_leads_forwards_ends_the_chain(storage: DictStorage, term: int, batch: int) -> None:
    """There is no endless loop, and the segment itself can be used."""
    first(storage, answer(0), boundary(1), answer(1))
    write(storage, header(2, 1, after=Link(name=name(term, batch), end=10), digests=state(1)), answer(2))
    write(storage, header(2, 2, after=Link(name=name(3, 0), end=10)), answer(3))
    write(storage, header(3, 0, after=Link(name=name(2, 2), end=10)), answer(4))
    assert replayed(found(storage, 1)) == [2]
    assert replayed(found(storage, 0)) == [0, at(1), 1]


def test_a_link_to_no_bytes_is_cut_off(storage: DictStorage, caplog: pytest.LogCaptureFixture) -> None:
    """What the header continues is not there, so there is a gap before it."""
    first(storage, answer(0))
    write(storage, header(2, 0, after=Link(name=NAME, end=10**15)), answer(1))
    assert replayed(found(storage, 0)) == [0]
    assert "journal cut off" in caplog.text


@pytest.mark.parametrize("is_first_there", [True, False])
def test_a_boundary_is_found_in_the_header_and_in_the_segment_before(
    storage: DictStorage, is_first_there: bool
) -> None:
    """A takeover links to a segment that ends with the boundary."""
    link = first(storage, answer(0), boundary(1))
    write(storage, header(1, 1, after=link, digests=state(1)), answer(1))
    if not is_first_there:
        del storage.files[NAME]
    assert replayed(found(storage, 1)) == [1]
    write(storage, header(2, 1, after=link), answer(2))
    assert replayed(found(storage, 1)) == ([2] if is_first_there else [1])


def test_a_storage_that_fails_is_an_error_and_not_an_empty_log(storage: DictStorage) -> None:
    """So that a start can try again."""
    first(storage, answer(0))

    class Failing(DictStorage):
        def read_from(self, name: str, offset: int, limit: int) -> bytes:
            raise error("the server is away", retryable=True)

    failing = Failing()
    failing.files = storage.files
    with pytest.raises(StoreError):
        found(failing, 0)


def test_a_segment_that_is_pruned_during_the_search_is_none(storage: DictStorage) -> None:
    """It was listed before."""
    first(storage, answer(0))

    class Late(DictStorage):
        def names(self) -> list[str]:
            return [*super().names(), name(2, 5)]

    late = Late()
    late.files = storage.files
    assert replayed(found(late, 0)) == [0]


# -------------------------------------------------------------------- stages


def stage_of(storage: DictStorage) -> tuple[list[int], int, int]:
    reader = found(storage, 0)
    assert reader is not None
    stage = reader.next_stage()
    assert stage.end is None
    return [int(each.value) for each in stage.answers], stage.failures, stage.deaths


def start(storage: DictStorage, link: Link, term: int, *records: Record) -> Link:
    """Write the segment of a worker that has started, and replays the stage."""
    return write(storage, header(term, 0, after=link, worker=f"w{term}"), *records)


def test_deaths_are_the_last_starts_that_recorded_nothing(storage: DictStorage) -> None:
    """An answer, an exception or an end in order begins the count anew."""
    link = first(storage, answer(0))
    assert stage_of(storage) == ([0], 0, 0)
    link = start(storage, link, 2)
    assert stage_of(storage) == ([0], 0, 1)
    link = start(storage, link, 3)
    assert stage_of(storage) == ([0], 0, 2)
    link = start(storage, link, 4, answer(1))
    assert stage_of(storage) == ([0, 1], 0, 0)
    link = start(storage, start(storage, link, 5), 6)
    assert stage_of(storage) == ([0, 1], 0, 2)
    link = start(storage, link, 7, Left())
    assert stage_of(storage) == ([0, 1], 0, 0)
    link = start(storage, start(storage, link, 8), 9, Failed(error="ValueError"))
    assert stage_of(storage) == ([0, 1], 1, 0)
    link = start(storage, link, 10, Failed(error="ValueError"), Left())
    assert stage_of(storage) == ([0, 1], 2, 0)
    start(storage, start(storage, link, 11, Void()), 12, answer(2))
    assert stage_of(storage) == ([2], 0, 0)


def test_requests_that_failed_right_before_an_exception_are_sent_again(storage: DictStorage) -> None:
    """They are its likely cause, as in an outage of the provider. No answer is, so none becomes void."""
    refused = [Unanswered(key="k", number=number, error="E", status=503) for number in range(3)]
    link = first(storage, refused[0], answer(0), *refused[1:], Failed(error="E"))
    link = start(storage, link, 2, refused[2], Failed(error="E"))
    assert stage_of(storage) == ([0], 0, 0)
    found_log = found(storage, 0)
    assert found_log is not None
    assert found_log.next_stage().outcomes == (refused[0], answer(0))
    # A start that is killed after its requests have failed goes on where it was.
    start(storage, link, 3, refused[1])
    found_log = found(storage, 0)
    assert found_log is not None
    assert found_log.next_stage().outcomes == (refused[0], answer(0), refused[1])


def test_answers_that_training_had_not_seen_hide_no_request_that_failed(storage: DictStorage) -> None:
    """Of parallel requests, one fails and ends the fit while the answer of another one is written."""
    refused = Unanswered(key="k", number=0, error="E")
    one, two, three = (replace(answer(number), since_failure=count) for number, count in ((1, 2), (2, 4), (3, 1)))
    link = first(storage, answer(0), refused, refused, one, refused, two, Failed(error="E", unseen=3))
    assert stage_of(storage) == ([0, 1, 2], 0, 0)
    link = start(storage, link, 2, refused, three, Failed(error="E", unseen=1))
    assert stage_of(storage) == ([0, 1, 2, 3], 0, 0)
    found_log = found(storage, 0)
    assert found_log is not None
    assert all(isinstance(outcome, Answer) for outcome in found_log.next_stage().outcomes)
    # What training has not seen is not the cause, so this one counts.
    start(storage, link, 3, refused, Failed(error="E", unseen=1))
    assert stage_of(storage) == ([0, 1, 2, 3], 1, 0)


def test_a_failure_that_training_had_acted_on_is_kept_beside_one_that_it_had_not(storage: DictStorage) -> None:
    """The answer that came last shows both. The request of a fallback, say, was sent after the first failure."""
    acted_on, new = (Unanswered(key=key, number=0, error="E") for key in "ab")
    fallback = replace(answer(1), since_failure=1)
    link = first(storage, answer(0), acted_on, new, fallback, Failed(error="E", unseen=1))
    found_log = found(storage, 0)
    assert found_log is not None
    stage = found_log.next_stage()
    assert (stage.outcomes, stage.failures) == ((answer(0), acted_on, fallback), 0)
    # The next fit ends by another exception, before it has come to any of them but the first.
    start(storage, link, 2, Failed(error="ValueError", unseen=2))
    found_log = found(storage, 0)
    assert found_log is not None
    stage = found_log.next_stage()
    assert (stage.outcomes, stage.failures) == ((answer(0), acted_on, fallback), 1)


def test_a_mark_that_counts_more_than_there_is_takes_nothing_else(storage: DictStorage) -> None:
    first(storage, answer(0), Void(), answer(1), Failed(error="E", unseen=9))
    assert stage_of(storage) == ([1], 1, 0)


def test_a_void_takes_what_came_before_it(storage: DictStorage) -> None:
    """Answers, failures and deaths of this stage, and not those of others."""
    link = first(storage, answer(0), boundary(1), answer(1), Failed(error="E"), Void(), answer(2), Failed(error="E"))
    write(storage, header(2, 1, after=link))
    reader = found(storage, 0)
    assert reader is not None
    one, two = reader.next_stage(), reader.next_stage()
    assert ([each.value for each in one.answers], one.end) == ([b"0"], boundary(1))
    assert ([each.value for each in two.answers], two.failures, two.deaths) == ([b"2"], 1, 1)


def test_counts_begin_anew_at_a_boundary(storage: DictStorage) -> None:
    """A stage that was passed was not the cause of an end."""
    link = first(storage, answer(0), Failed(error="E"))
    link = write(storage, header(2, 0, after=link), boundary(1), answer(1))
    reader = found(storage, 0)
    assert reader is not None
    assert (reader.next_stage().failures, reader.next_stage().failures) == (0, 0)
    write(storage, header(3, 1, after=link, digests=state(1)))
    reader = found(storage, 0)
    assert reader is not None
    assert (reader.next_stage().deaths, reader.next_stage().deaths) == (0, 0)


def test_a_stage_may_span_three_segments(storage: DictStorage) -> None:
    """And its end is that of the last one, for the next segment to continue."""
    link = first(storage, answer(0))
    link = start(storage, link, 2, answer(1))
    link = start(storage, link, 3, answer(2), boundary(1), answer(3))
    reader = found(storage, 0)
    assert reader is not None
    assert [each.value for each in reader.next_stage().answers] == [b"0", b"1", b"2"]
    assert [each.value for each in reader.next_stage().answers] == [b"3"]
    assert reader.end == link
    again = reader.next_stage()
    assert (again.answers, again.end) == ((), None)


@pytest.mark.parametrize("kind", ["flipped", "shorter"])
def test_a_bad_record_in_a_middle_segment_cuts_all_behind_it(
    storage: DictStorage, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """With one warning, and the next segment continues the log there."""
    chain(storage)
    data = storage.files[name(2, 4)]
    at_6 = data.index(encode_record(answer(6)))
    storage.files[name(2, 4)] = data[:at_6] if kind == "shorter" else data[: at_6 + 1] + b"~" + data[at_6 + 2 :]
    with caplog.at_level(logging.WARNING):
        reader = found(storage, 0)
        assert replayed(reader) == WHOLE[: WHOLE.index(6)]
        assert reader is not None
        reader.next_stage()
    assert len([message for message in caplog.messages if "journal cut off" in message]) == 1
    assert reader.end == Link(name=name(2, 4), end=at_6)
    write(storage, header(4, 5, after=reader.end), answer(50))
    assert replayed(found(storage, 0)) == [*WHOLE[: WHOLE.index(6)], 50]


def test_a_reader_of_a_log_that_grows_waits_for_bytes_that_another_machine_does_not_see_yet(
    storage: DictStorage, caplog: pytest.LogCaptureFixture
) -> None:
    """It leaves nothing out, and goes on over the next segments."""
    link = first(storage, answer(0), answer(1))
    whole = storage.files[NAME]
    write(storage, header(2, 0, after=link), answer(2))
    storage.files[NAME] = whole[: -len(encode_record(answer(1)))]
    reader = found(storage, 0)
    assert reader is not None
    for _ in range(3):
        assert list(reader.more()) in ([answer(0)], [])
    storage.files[NAME] = whole
    assert list(reader.more()) == [answer(1), header(2, 0, after=link), answer(2)]
    storage.files[name(2, 0)] += encode_record(answer(3))
    assert list(reader.more()) == [answer(3)]
    assert len(caplog.messages) == 1


def test_a_boundary_that_is_repeated_ends_no_stage(storage: DictStorage) -> None:
    """It is the one that the log begins at."""
    first(storage, boundary(0), answer(0), boundary(1), boundary(1), answer(1))
    assert replayed(found(storage, 0)) == [0, at(1), 1]


def test_a_log_of_another_run_is_not_read(storage: DictStorage) -> None:
    """Even if all else is equal."""
    write(storage, header(1, 0, digests=state(0), run_id="other"), answer(0))
    assert found(storage, 0) is None
    assert journal.find_log(storage, run_id="other", position=at(0), digests=state(0)) is not None
