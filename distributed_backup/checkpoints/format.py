"""Snapshots and checkpoints: values, their bytes and their names.

A checkpoint is a header in one line, the body it describes, and a newline. The header's digest covers the rest of the
header and the body, so any changed bit is found. A digest proves that the bytes are the ones that were written. It is
no signature: it does not prove which worker wrote them. Nothing here does I/O.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import orjson

from distributed_backup.checks import checked_name, is_whole, shown
from distributed_backup.errors import ConfigError, CorruptCheckpointError
from distributed_backup.position import Position
from distributed_backup.storage.base import Chunks

FORMAT: Final = 2
# Version 0.3 wrote the first one, whose bodies are JSON.
_READABLE: Final = (1, FORMAT)
SUFFIX: Final = ".ckpt"
_FINAL: Final = ".final"
MAX_TERM: Final = 10**10 - 1
_NAME: Final = re.compile(r"([0-9]{10})-([0-9]{8})-([0-9]{8})(?:\.final)?\.ckpt")

type Body = bytes | Chunks
"""The bytes of a body, or its parts in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Training state at a batch boundary, already bytes.

    Args:
        position: The boundary.
        body: What `state_body.encode_state` returns.
        data: Fingerprint of the data pipeline, None if it has none.
        final: Whether training has ended here. Then the body also holds the state that `fit` returned with.
    """

    position: Position
    body: Body
    data: str | None = None
    final: bool = False

    @property
    def chunks(self) -> Chunks:
        """The body in parts."""
        return [self.body] if isinstance(self.body, bytes) else self.body


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointHeader:
    """The first line of a checkpoint.

    Args:
        run_id: The run it belongs to.
        term: The term it was committed under. Checkpoints are ordered by term first, then by position.
        epoch: Epochs completed.
        batch: Batches completed in the current epoch.
        worker_id: The worker that wrote it.
        created_at: ISO 8601, UTC, by the writer's wall clock. For people: no code compares it.
        data: Fingerprint of the data pipeline, None if it has none.
        length: Bytes of the body.
        digest: SHA-256 over the other fields and the body, in hex.
        format: Version of this layout.
        final: Whether training has ended here. The line has this field only if it is true.

    Raises:
        ConfigError: A field has a wrong value.
    """

    run_id: str
    term: int
    epoch: int
    batch: int
    worker_id: str
    created_at: str
    data: str | None
    length: int
    digest: str
    format: int = FORMAT
    final: bool = False

    def __post_init__(self) -> None:
        checked_name("run_id", self.run_id)
        checked_name("worker_id", self.worker_id)
        checkpoint_name(self.term, self.position)
        if not isinstance(self.final, bool):
            raise ConfigError(f"want true or false for final, got {shown(self.final)}")
        if not is_whole(self.length) or self.length < 0:
            raise ConfigError(f"want a length >= 0, got {shown(self.length)}")
        if not isinstance(self.created_at, str) or not isinstance(self.digest, str):
            raise ConfigError(f"want text for created_at and digest, got {shown([self.created_at, self.digest])}")
        if not isinstance(self.data, str | None):
            raise ConfigError(f"want text or nothing for data, got {shown(self.data)}")

    @property
    def position(self) -> Position:
        """The position of the checkpoint."""
        return Position(self.epoch, self.batch)

    @property
    def name(self) -> str:
        """The name of the checkpoint's file."""
        return checkpoint_name(self.term, self.position, final=self.final)

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the line."""
        # `asdict` copies each value, which takes 10 times as long.
        fields = {field: getattr(self, field) for field in self.__slots__}
        if not self.final:
            del fields["final"]  # as version 0.3 wrote it
        return fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A committed snapshot: header and body, verified."""

    header: CheckpointHeader
    body: bytes

    @property
    def position(self) -> Position:
        """The position of the checkpoint."""
        return self.header.position

    @property
    def name(self) -> str:
        """The name of the checkpoint's file."""
        return self.header.name


def checkpoint_name(term: int, position: Position, *, final: bool = False) -> str:
    """Return the file name of a checkpoint. Names sort as (term, position, final) does.

    Raises:
        ConfigError: `term` is no whole number from 1 to `MAX_TERM`.

    Example:
        >>> checkpoint_name(7, Position(2, 3))
        '0000000007-00000002-00000003.ckpt'
        >>> checkpoint_name(7, Position(3), final=True)
        '0000000007-00000003-00000000.final.ckpt'
    """
    if not is_whole(term) or not 0 < term <= MAX_TERM:
        raise ConfigError(f"want a whole number 0 < term <= {MAX_TERM}, got {shown(term)}")
    return f"{term:010d}-{position.epoch:08d}-{position.batch:08d}{_FINAL if final else ''}{SUFFIX}"


def parse_name(name: str) -> tuple[int, Position] | None:
    """Return term and position in the name of a checkpoint, None for any other name."""
    match = _NAME.fullmatch(name)
    if match is None or not int(match[1]):
        return None
    return int(match[1]), Position(int(match[2]), int(match[3]))


def is_final(name: str) -> bool:
    """Return whether this is the name of a final state."""
    return parse_name(name) is not None and name.endswith(_FINAL + SUFFIX)


def term_of(name: str) -> int:
    """Return the term in the name of a checkpoint, 0 for any other name."""
    parsed = parse_name(name)
    return 0 if parsed is None else parsed[0]


def checkpoints_among(names: Iterable[str]) -> list[str]:
    """Return those of `names` that are names of checkpoints, newest first."""
    return sorted(set(filter(parse_name, names)), reverse=True)


def encode(
    snapshot: Snapshot, *, run_id: str, term: int, worker_id: str, created_at: str
) -> tuple[CheckpointHeader, bytes]:
    """Return the header of the checkpoint that holds `snapshot`, and its line. The body and a newline follow it."""
    chunks = snapshot.chunks
    fields: dict[str, Any] = {
        "run_id": run_id,
        "term": term,
        "epoch": snapshot.position.epoch,
        "batch": snapshot.position.batch,
        "worker_id": worker_id,
        "created_at": created_at,
        "data": snapshot.data,
        "length": sum(map(len, chunks)),
        "format": FORMAT,
        **({"final": True} if snapshot.final else {}),
    }
    digest = _digest(fields, chunks)
    return CheckpointHeader(**fields, digest=digest), _line({**fields, "digest": digest}) + b"\n"


def decode(raw: bytes, *, path: str) -> Checkpoint:
    """Verify all bytes of a file and return the checkpoint in them.

    The last part of `path` must be the name that the header gives.

    Raises:
        CorruptCheckpointError: Empty, cut off, changed, renamed, or of a format that this version does not read.
    """
    start = (raw.find(b"\n") + 1) or len(raw)
    header = _decode_header(raw[:start].removesuffix(b"\n"), path=path)
    if len(raw) - start != header.length + 1 or not raw.endswith(b"\n"):
        raise CorruptCheckpointError(
            path=path, reason=f"cut off or too long: {len(raw) - start} bytes of body, want {header.length + 1}"
        )
    # The only copy: one of 20 MB takes milliseconds.
    body = raw[start:-1]
    fields = header.fields
    del fields["digest"]
    if _digest(fields, [body]) != header.digest:
        raise CorruptCheckpointError(path=path, reason="the digest does not match")
    if header.name != path.rpartition("/")[2]:
        raise CorruptCheckpointError(path=path, reason=f"it was committed as {header.name}")
    return Checkpoint(header=header, body=body)


def _decode_header(line: bytes, *, path: str) -> CheckpointHeader:
    if not line:
        raise CorruptCheckpointError(path=path, reason="it is empty")
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise CorruptCheckpointError(path=path, reason="the header is not JSON") from None
    if not isinstance(fields, dict):
        raise CorruptCheckpointError(path=path, reason="the header is not an object")
    found = fields.get("format")
    if not is_whole(found) or found not in _READABLE:
        known = " and ".join(map(str, _READABLE))
        raise CorruptCheckpointError(path=path, reason=f"format {shown(found)} is unknown, this version reads {known}")
    try:
        header = CheckpointHeader(**fields)
    except (TypeError, ValueError) as error:
        raise CorruptCheckpointError(path=path, reason=f"the header is not sound ({error})") from None
    if _line(fields) != line:
        raise CorruptCheckpointError(path=path, reason="the header is not as it was written")
    return header


def _line(fields: dict[str, Any]) -> bytes:
    return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)


def _digest(fields: dict[str, Any], body: Chunks) -> str:
    # SHA-256, because processors have instructions for it: twice as fast as BLAKE2b. A save waits for this.
    state = hashlib.sha256(_line(fields) + b"\n")
    for chunk in body:
        state.update(chunk)
    return state.hexdigest()
