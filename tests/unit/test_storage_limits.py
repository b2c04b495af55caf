"""The time that a transfer to or from a bucket may take: recorded where the client would be asked, so no server is."""

from __future__ import annotations

from typing import Any

import pytest

from distributed_backup.storage.object_store import ObjectStorage

MEGABYTE = 1_000_000


class Recorded:
    """A bucket whose client only notes the limits that it is given.

    Attributes:
        limits: In seconds, of each upload or download.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, listed: dict[str, int]) -> None:
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        self.storage = ObjectStorage("s3://bucket/run", limit=5.0)
        self.storage._conditional = True
        self.limits: list[float] = []
        fs = self.storage._client.get().fs
        monkeypatch.setattr(fs, "pipe_file", self._note)
        monkeypatch.setattr(fs, "cat_file", self._note)
        monkeypatch.setattr(fs, "rm_file", lambda *_, **__: None)
        found = [{"name": f"bucket/run/{name}", "size": size, "type": "file"} for name, size in listed.items()]
        monkeypatch.setattr(type(self.storage._client.get()), "_entries", lambda *_: found)

    def _note(self, *_: Any, timeout: float, **__: Any) -> bytes:
        self.limits.append(timeout)
        return b""


def test_an_upload_may_take_a_tenth_of_a_second_for_each_megabyte(monkeypatch: pytest.MonkeyPatch) -> None:
    """In addition to the request's limit, as the README says, for both a new file and a replaced one."""
    bucket = Recorded(monkeypatch, listed={})
    bucket.storage.put("a", [bytes(MEGABYTE)] * 20)
    bucket.storage.create("b", bytes(10 * MEGABYTE))
    bucket.storage.put("c", [b""])
    assert bucket.limits == pytest.approx([7.0, 6.0, 5.0], abs=0.01)


def test_a_download_may_take_as_long_as_its_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size is known from a listing or from its upload. The size of a removed file is unknown."""
    bucket = Recorded(monkeypatch, listed={"listed": 30 * MEGABYTE})
    bucket.storage.read("listed")
    assert bucket.storage.names() == ["listed"]
    bucket.storage.put("put", [bytes(20 * MEGABYTE)])
    bucket.storage.create("created", bytes(10 * MEGABYTE))
    bucket.limits.clear()
    for name in ("listed", "put", "created", "other"):
        bucket.storage.read(name)
    bucket.storage.remove("put")
    bucket.storage.read("put")
    assert bucket.limits == pytest.approx([8.0, 7.0, 6.0, 5.0, 5.0], abs=0.01)
