r"""Records and segments of the journal: values, their lines and the names of files.

A segment is a file that is only appended to. Each record is one line: the CRC-32 of the rest in 8 hex digits, a space,
a JSON object, a newline. So a torn tail and a changed bit are found, and a line can be read by people. A checksum
proves nothing about who wrote the line. Nothing here does I/O.

    1c291ca3 {"format":1,"run_id":"run-42","term":7,"epoch":2,"batch":3,"worker_id":"w","after":null,"digests":{…}}
    …        {"answer":"KEY","number":0,"value":{…}}      a response, and which of the equal requests it belongs to
    …        {"answer":"KEY","number":0,"since_failure":2,…}  a response, before training has acted on a failure
    …        {"boundary":[2,4],"digests":{…}}             the fit has come to this position, in this state
    …        {"unanswered":"KEY","number":0,"error":"…","status":429}  the request failed
    …        {"unrecorded":"KEY","number":0}          the request was answered, and its response can't be written
    …        {"failed":"ValueError","unseen":0}           an exception has left the fit
    …        {"left":true}                                the writer has left in order
    …        {"void":true}                                the answers since the last boundary do not count

No prompt and no credential is written. A key is a digest of its request.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson

from distributed_backup.checks import checked_name, is_whole, shown
from distributed_backup.errors import ConfigError
from distributed_backup.position import Position

FORMAT: Final = 1
# Larger answers are not recorded. A reader never needs more memory for one line.
MAX_RECORD: Final = 256 * 2**20
_NAME: Final = re.compile(r"([0-9]{10})-([0-9]{8})-([0-9]{8})\.journal")
# All of a record but the value of an answer is in so many bytes of its line.
MAX_HEAD: Final = 2**16
# A checksum and a space come before the JSON of a line.
_BODY: Final = 9
_ANSWER: Final = b'{"answer":'
_VALUE: Final = b',"value":'

type Digests = Mapping[str, str]
"""Digests of one state, by group of variables."""


class BadRecordError(ValueError):
    """A line holds no record. It never leaves the room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The segment that another one continues, and how many of its bytes count.

    Raises:
        ConfigError: `name` is not the name of a segment, or `end` is no whole number from 0 on.
    """

    name: str
    end: int

    def __post_init__(self) -> None:
        if parse_segment_name(self.name) is None or not is_whole(self.end) or self.end < 0:
            raise ConfigError(f"want the name of a segment and a number of bytes, got {shown([self.name, self.end])}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEnd:
    """The end of a log that was followed, None if there was none, and the position of the newest checkpoint."""

    link: Link | None
    newest: Position


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first record of a segment.

    `position` is the last boundary before the segment's first record. `digests` are those of the state there, None if
    the segment begins later, in the middle of a batch. `after` is None if the segment continues no other.

    Raises:
        ConfigError: A field has a wrong value.
    """

    run_id: str
    term: int
    worker_id: str
    position: Position
    after: Link | None
    digests: Digests | None

    def __post_init__(self) -> None:
        checked_name("run_id", self.run_id)
        checked_name("worker_id", self.worker_id)
        segment_name(self.term, self.position)

    @property
    def name(self) -> str:
        """The name of the segment."""
        return segment_name(self.term, self.position)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The response to the request with this key, as JSON in one line. `number` counts equal requests in the stage.

    `since_failure` counts the outcomes before it, back to the first failure that training had not acted on. That one
    and those behind it may have ended the fit. Training has gone on after earlier ones. 0: after all of them.
    """

    key: str
    number: int
    value: bytes
    since_failure: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """A boundary that the fit has come to, and the digests of its state there."""

    position: Position
    digests: Digests


@dataclass(frozen=True, slots=True, kw_only=True)
class Unanswered:
    """The request with this key and number failed. `error` is the class of its exception, `status` that of HTTP if any.

    The text of the exception is not written: it may quote the request or a credential.
    """

    key: str
    number: int
    error: str
    status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unrecorded:
    """The request with this key and number was answered, and its response can't be written.

    A follower that waits for it can't go on. A replay asks again.
    """

    key: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """An exception of this class has left the fit. Requests that have failed right before are sent again.

    `unseen` counts the last outcomes before it that training had not seen, so they are not its cause.
    """

    error: str
    unseen: int = 0

    def causes(self, outcomes: list[Outcome]) -> range:
        """Return the places among the outcomes of the stage where the failures may be that have ended the fit.

        An unseen answer shows that training has gone on after failures, see `Answer.since_failure`.
        """
        begin = end = max(0, len(outcomes) - self.unseen)
        while begin > 0 and isinstance(outcomes[begin - 1], Unanswered):
            begin -= 1
        for place in range(end, len(outcomes)):
            if isinstance(outcome := outcomes[place], Answer):
                begin = max(begin, place - outcome.since_failure)
        return range(begin, max(begin, end))


@dataclass(frozen=True, slots=True)
class Left:
    """The writer has left the run in order, so the answers are not the cause of its end."""


@dataclass(frozen=True, slots=True)
class Void:
    """The answers since the last boundary do not count: see `training.answers`."""


type Outcome = Answer | Unanswered
"""How a request has ended, as training has seen it."""

type Record = Header | Outcome | Unrecorded | Boundary | Failed | Left | Void


def segment_name(term: int, position: Position) -> str:
    """Return the file name of a segment. Names sort as (term, position) does.

    Raises:
        ConfigError: `term` is no whole number from 1 on with at most 10 digits.

    Example:
        >>> segment_name(7, Position(2, 3))
        '0000000007-00000002-00000003.journal'
    """
    if not is_whole(term) or not 0 < term < 10**10:
        raise ConfigError(f"want a whole number 0 < term < 10^10, got {term!r}")
    return f"{term:010d}-{position.epoch:08d}-{position.batch:08d}.journal"


def parse_segment_name(name: str) -> tuple[int, Position] | None:
    """Return term and position in the name of a segment. None for any other name."""
    match = _NAME.fullmatch(name)
    if match is None or not int(match[1]):
        return None
    return int(match[1]), Position(int(match[2]), int(match[3]))


def encode_record(record: Record) -> bytes:
    """Return the line of a record."""
    body = orjson.dumps(_fields(record))
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _fields(record: Record) -> dict[str, Any]:  # noqa: PLR0911 - one for each kind
    match record:
        case Answer(key=key, number=number, value=value, since_failure=count):
            behind = {"since_failure": count} if count else {}
            return {"answer": key, "number": number, **behind, "value": orjson.Fragment(value)}
        case Boundary(position=position, digests=digests):
            return {"boundary": position.as_tuple, "digests": dict(digests)}
        case Unanswered(key=key, number=number, error=error, status=status):
            return {"unanswered": key, "number": number, "error": error, "status": status}
        case Unrecorded(key=key, number=number):
            return {"unrecorded": key, "number": number}
        case Failed(error=error, unseen=unseen):
            return {"failed": error, "unseen": unseen}
        case Left():
            return {"left": True}
        case Void():
            return {"void": True}
        case Header(after=after, digests=digests, position=position):
            return {
                "format": FORMAT,
                "run_id": record.run_id,
                "term": record.term,
                "epoch": position.epoch,
                "batch": position.batch,
                "worker_id": record.worker_id,
                "after": None if after is None else [after.name, after.end],
                "digests": None if digests is None else dict(digests),
            }


def apply(record: Record, outcomes: list[Outcome]) -> None:
    """Change the outcomes of a stage as a record of it does. See `Failed` and `Void`."""
    match record:
        case Answer() | Unanswered():
            outcomes.append(record)
        case Failed():
            begin = record.causes(outcomes).start
            answers = [outcome for outcome in outcomes[begin:] if isinstance(outcome, Answer)]
            # Training had acted on the failures that stay.
            outcomes[begin:] = [replace(answer, since_failure=0) for answer in answers]
        case Void():
            outcomes.clear()


def is_answer(line: bytes) -> bool:
    """Whether the line of a record is that of an answer."""
    return line.startswith(_ANSWER, _BODY)


def decode_record(line: bytes) -> Record:
    """Return the record in a line without its newline. The value of an answer is not checked.

    Raises:
        BadRecordError: The line is not one that `encode_record` has made.
    """
    body = line[_BODY:]
    if len(line) > MAX_HEAD and not is_answer(line):
        raise BadRecordError(f"the record has {len(line)} bytes and is not an answer")
    if line[:_BODY] != b"%08x " % zlib.crc32(body):
        raise BadRecordError("the checksum does not match")
    try:
        return _answer(body) if is_answer(line) else _record(orjson.loads(body))
    except (LookupError, TypeError, ValueError) as error:
        raise BadRecordError(f"the record is not sound ({error!s:.200})") from None


def _answer(body: bytes) -> Answer:
    # The value is not parsed here: most answers are only counted or passed over.
    end = body.index(_VALUE, 0, MAX_HEAD - _BODY)
    fields = orjson.loads(body[:end] + b"}")
    if not isinstance(fields["answer"], str):
        raise BadRecordError("want a key as text")
    return Answer(
        key=fields["answer"],
        number=_count(fields["number"]),
        value=body[end + len(_VALUE) : -1],
        since_failure=_count(fields.get("since_failure", 0)),
    )


def _record(fields: Any) -> Record:  # noqa: PLR0911 - one for each kind
    match fields:
        case {"boundary": [epoch, batch], "digests": digests}:
            return Boundary(position=Position(epoch, batch), digests=_digests(digests))
        case {"unanswered": str(key), "number": number, "error": str(error), "status": status}:
            return Unanswered(key=key, number=_count(number), error=error, status=_status(status))
        case {"unrecorded": str(key), "number": number}:
            return Unrecorded(key=key, number=_count(number))
        case {"failed": str(error)}:
            return Failed(error=error, unseen=_count(fields.get("unseen", 0)))
        case {"left": True}:
            return Left()
        case {"void": True}:
            return Void()
        case {"format": found} if found != FORMAT:
            raise BadRecordError(f"format {shown(found)} is unknown, this version reads {FORMAT}")
        case {"format": _, "after": after, "digests": digests}:
            return Header(
                run_id=fields["run_id"],
                term=fields["term"],
                worker_id=fields["worker_id"],
                position=Position(fields["epoch"], fields["batch"]),
                after=None if after is None else Link(name=after[0], end=after[1]),
                digests=None if digests is None else _digests(digests),
            )
    raise BadRecordError("its kind is unknown")


def _count(value: Any) -> int:
    if not is_whole(value) or value < 0:
        raise BadRecordError("want a whole number from 0 on")
    return int(value)


def _status(value: Any) -> int | None:
    return None if value is None else _count(value)


def _digests(value: Any) -> Digests:
    if not isinstance(value, dict) or not all(isinstance(digest, str) for digest in value.values()):
        raise BadRecordError("want digests as text")
    return value
