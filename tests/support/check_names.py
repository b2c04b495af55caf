"""The names of the checks that `distributed-backup check` prints, in their order."""

from __future__ import annotations

from typing import Final

_FILES: Final = ("write and read", "exclusive create", "append", "delete", "durable write")

OF_ONE_PROCESS: Final = [*_FILES, "durable append", "large write", "clock"]
OF_BUCKETS: Final = [*_FILES, "large write", "clock"]
OF_PAIRS: Final = ["append is seen", "exclusive create, two processes", "replace, seen by a reader", "names are seen"]
OF_DIRECTORIES: Final = [
    *("file system", "directory", "space", *OF_ONE_PROCESS, "access", "file names"),
    *(*OF_PAIRS, "file lock", "lock of a killed process"),
]
OF_SERVERS: Final = [
    *("server", "memory", "persistence", "election", "lease expires", "round trip", "hints"),
    "list of runs",
    *(f"{name}, as backup_dir" for name in OF_ONE_PROCESS if name != "clock"),
]
