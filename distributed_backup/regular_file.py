"""Open files of a run by their names, which other programs may have taken for something else.

Opening a pipe would wait for its other end, and a device has no end. So only regular files are read and written.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

# Of a socket, of a link that leads in a circle or must not be followed, and of a directory that is written to.
_IRREGULAR: Final = frozenset({errno.ENXIO, errno.ELOOP, errno.EISDIR})


class IrregularFileError(OSError):
    """The name is that of a directory, a pipe, a socket, a device, or a link that leads to no file."""


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Yield a descriptor of an existing regular file. It never waits for another process.

    Raises:
        IrregularFileError: It is something else.
        OSError: It can't be opened.
    """
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _IRREGULAR:
            raise IrregularFileError(error.errno, error.strerror) from error
        if isinstance(error, FileNotFoundError | NotADirectoryError) and path.is_symlink():
            raise IrregularFileError("it is a link that leads to no file") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise IrregularFileError("it is no regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def read_file(path: Path) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        IrregularFileError: It is something else.
        OSError: It can't be read.
    """
    with opened(path) as descriptor, open(descriptor, "rb", buffering=0, closefd=False) as file:
        return file.readall()
