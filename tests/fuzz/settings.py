"""What a user or a manifest sets: URLs, environment variables, and arguments of commands."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Iterable
from functools import cache
from typing import Final
from unittest import mock

from distributed_backup.checkpoints.reader import CheckpointReader
from distributed_backup.checks import checked_name, checked_path, shown
from distributed_backup.cli.locate import open_store
from distributed_backup.cli.status import checkpoint_in
from distributed_backup.cli.terminal import printable
from distributed_backup.coordination import coordinator_from_url, is_server_url
from distributed_backup.errors import ConfigError
from distributed_backup.preemption.sources import notice_sources
from distributed_backup.preemption.sources.aws import AwsSource
from distributed_backup.preemption.sources.gce import GceSource
from distributed_backup.redis_client.address import RedisAddress
from distributed_backup.storage import absolute_place, storage_from_url
from distributed_backup.storage.fsspec_client import check_url
from distributed_backup.training.environment import EnvironmentSettings
from distributed_backup.urls import is_url, scheme_of, without_credentials
from tests.fuzz.engine import Parser
from tests.fuzz.files import NAMES_MEMORY, storage_with

# Other schemes would import clients of fsspec, or open connections.
_SCHEMES: Final = frozenset({"file", "local", "memory", "s3", "gs", "az", "redis", "rediss", "unix"})
_VARIABLES: Final = (
    *("COORDINATOR", "RUN_ID", "WORKER_ID", "GRACE_PERIOD", "SAVE_FREQ", "STANDBY", "NOTICES", "METRICS_PORT"),
)
_PASSWORD: Final = "pa55w0rd"


# The driver looks up its version for each client it makes, in 5 ms.
importlib.metadata.version = cache(importlib.metadata.version)


def _text(data: bytes) -> str:
    """Return bytes as Python returns arguments and variables of the process."""
    return data.decode("utf-8", "surrogateescape")


def _read_redis_url(data: bytes) -> None:
    url = _text(data)
    without_credentials(url)
    shown = ""
    try:
        str(RedisAddress.of_url(url))
    except ConfigError as error:
        shown = str(error)
        raise
    finally:
        # A change may move the password to another place. A whole login must never be shown.
        if f":{_PASSWORD}@" in shown:
            raise AssertionError("the message shows the password")


def _read_coordinator(data: bytes) -> None:
    url = _text(data)
    is_server_url(url)
    coordinator_from_url(url, backup_dir="/mnt/run")


def _read_place(data: bytes) -> None:
    place = absolute_place(_text(data))
    if is_url(place) and scheme_of(place) not in _SCHEMES:
        return
    storage = storage_from_url(place, run_id="job-42")
    printable(storage.path_of("a"))
    if is_url(place) and scheme_of(place) in {"s3", "gs", "az", "memory"}:
        check_url(place)


def _read_environment(data: bytes) -> None:
    """Read variables as lines of VALUE, in the order of `_VARIABLES`."""
    values = [_text(line) for line in data.split(b"\n")]
    settings = {f"DISTRIBUTED_BACKUP_{name}": value for name, value in zip(_VARIABLES, values, strict=False)}
    EnvironmentSettings.read(settings)


def _read_addresses(data: bytes) -> None:
    """Read the addresses of two metadata services."""
    first, _, second = data.replace(b"\0", b"").partition(b"\n")
    names = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": _text(first), "GCE_METADATA_HOST": _text(second)}
    with mock.patch.dict(os.environ, names):
        AwsSource()
        GceSource()


def _read_arguments(data: bytes) -> None:
    """Use text as each of the arguments that a command parses."""
    text = _text(data)
    shown(text)
    assert "\n" not in printable(text[:4096]), "a line is one line"
    checkpoint_in_error: Exception | None = None
    for parse in (
        lambda: checked_name("run_id", text),
        lambda: checked_path("DIR", text),
        lambda: notice_sources(text),
        lambda: checkpoint_in(CheckpointReader(storage_with()), text),
        lambda: open_store("/nonexistent/" + text, run_id=None),
    ):
        try:
            parse()
        except (ValueError, OSError, RuntimeError) as error:
            checkpoint_in_error = error
    if checkpoint_in_error is not None:
        raise checkpoint_in_error


_REDIS_URLS: Final = (
    f"redis://user:{_PASSWORD}@redis:6379/0?socket_timeout=1&ssl_ca_certs=/a",
    f"rediss://:{_PASSWORD}@[::1]:6380/3?ssl_cert_reqs=none&protocol=3&health_check_interval=5",
    f"unix://user:{_PASSWORD}@/run/redis.sock?db=2",
    f"redis+sentinel://:{_PASSWORD}@a:26379,b:26380/service/1?sentinel_password=x",
    f"rediss+cluster://:{_PASSWORD}@a:6379,b:6379?decode_responses=yes",
    "redis://redis?retry_on_timeout=1&max_connections=3&client_name=a&encoding=utf-8&encoding_errors=x&port=1&host=b",
    "redis://redis?socket_keepalive=1&retry_on_error=x&socket_read_size=4&parser_class=x&username=u&path=/x&lib_name=y",
)
_PLACES: Final = (
    *("/mnt/run", "~/run", "~nobody/run", "file:///mnt/run", "local:///a%20b", "s3://bucket/run", "memory://a/b", "."),
    *(
        "gs://bucket/run@x",
        "az://container/x?y",
        f"redis://:{_PASSWORD}@redis/0",
        "s3:/bucket/run",
        "redis+cluster://a",
    ),
)

# The longest that Linux gives to a process as one argument or variable.
_LONGEST: Final = 2**17


def _parser(name: str, seeds: Iterable[bytes | str], call: Callable[[bytes], object]) -> Parser:
    given = tuple(seed.encode() if isinstance(seed, str) else seed for seed in seeds)
    return Parser(name=name, seeds=given, call=call, longest=_LONGEST, memory=NAMES_MEMORY)


PARSERS: Final = (
    _parser("Redis URL", _REDIS_URLS, _read_redis_url),
    _parser(
        "coordinator URL",
        (b"file:", b"file:///mnt/c", b"memory:", *_REDIS_URLS[:3]),
        _read_coordinator,
    ),
    _parser("backup directory", _PLACES, _read_place),
    _parser(
        "environment",
        (
            b"redis://r\njob-42\nw-1\n30\nepoch\ntrue\nsignal,gce,file:/a\n9100",
            b"\n\n\n1e3\n5\noff\naws, azure\n0",
        ),
        _read_environment,
    ),
    _parser(
        "addresses of metadata services",
        (b"http://169.254.169.254\nmetadata:80", b"http://[::1]:99/\n[fe80::1]"),
        _read_addresses,
    ),
    _parser(
        "arguments of commands",
        (b"job-42", b"/mnt/run", b"0000000002-00000001-00000003.ckpt", b"~x/y", b"file:/a", b"\x1b[31mred"),
        _read_arguments,
    ),
)
