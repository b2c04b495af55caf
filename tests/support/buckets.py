"""Object stores for tests: moto's S3 and an emulator of GCS, each on a port of its own, and what can go wrong there.

S3 goes through a layer that notes each request and can refuse it, hold it, or lose its reply. The emulator of GCS lacks
the one condition that we rest on (ifGenerationMatch=0), which is added here as Google documents it. For
Azure, of which there is no emulator here, uploads are taken and noted.
"""

from __future__ import annotations

import functools
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock

from tests.support.servers import PATIENCE, free_port

logging.getLogger("werkzeug").setLevel(logging.ERROR)

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
Fault = Callable[[Wsgi, dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@functools.cache
def _read_definitions_once() -> None:
    """Have all S3 clients of this process share the definitions of the service. Each would read 2 MB of JSON."""
    from botocore.loaders import JSONFileLoader  # type: ignore[import-untyped]

    read = functools.cache(functools.partial(JSONFileLoader.load_file, JSONFileLoader()))
    JSONFileLoader.load_file = lambda self, file_path: read(file_path)


class S3Server:
    """S3 with one bucket, called "bucket".

    Attributes:
        requests: The method and path of each request since the last `forget`.
    """

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        _read_definitions_once()
        self._app: Wsgi = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._faults: list[tuple[str, Fault]] = []
        self._lock = threading.Lock()
        self._condition = threading.Lock()
        self.requests: list[tuple[str, str]] = []
        self.injected = 0
        self._thread.start()

    @property
    def environment(self) -> Mapping[str, str]:
        """What a client's process needs."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self, name: str) -> None:
        from urllib.request import Request, urlopen

        with urlopen(Request(f"{self.environment['AWS_ENDPOINT_URL']}/{name}", method="PUT"), timeout=PATIENCE):
            pass

    def forget(self) -> None:
        """Forget the requests so far."""
        self.requests.clear()

    def count(self, method: str, part: str = "") -> int:
        """How many requests of a method there were, to paths that hold `part`."""
        return sum(method == seen and part in path for seen, path in self.requests)

    def next(self, method: str, fault: Fault, times: int = 1) -> None:
        """Have the next requests of a method meet a fault."""
        with self._lock:
            self._faults += [(method, fault)] * times

    def mend(self) -> None:
        """Forget the faults that were not met."""
        with self._lock:
            self._faults.clear()

    def _serve(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        with self._lock:
            self.requests.append((method, environ["PATH_INFO"]))
            at = next((index for index, (wanted, _) in enumerate(self._faults) if wanted == method), None)
            fault = None if at is None else self._faults.pop(at)[1]
            self.injected += fault is not None
        if fault is not None:
            return fault(self._app, environ, start)
        # moto looks for the object and then writes it. S3 does both in one step.
        with self._condition if "HTTP_IF_NONE_MATCH" in environ else nullcontext():
            return self._app(environ, start)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(PATIENCE)


def unavailable(_: Wsgi, __: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    """503, as S3 answers when it is asked too often."""
    start("503 Slow Down", [("Content-Type", "application/xml")])
    return [b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"]


def refused(_: Wsgi, __: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    """Reply 412 as S3-compatible stores do, without the name of the condition that failed."""
    start("412 Precondition Failed", [("Content-Type", "application/xml")])
    text = "At least one of the pre-conditions you specified did not hold"
    return [f"<Error><Code>PreconditionFailed</Code><Message>{text}</Message></Error>".encode()]


def refused_in_a_word(_: Wsgi, __: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    """412, and no more than that."""
    start("412 Precondition Failed", [("Content-Length", "0")])
    return []


def conflicting(_: Wsgi, __: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    """409, as S3 answers one of two that write the same under a condition."""
    start("409 Conflict", [("Content-Type", "application/xml")])
    text = "The conditional request cannot succeed due to a conflicting operation against this resource."
    return [f"<Error><Code>ConditionalRequestConflict</Code><Message>{text}</Message></Error>".encode()]


def denied(_: Wsgi, __: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    """403, as S3 answers to a wrong key."""
    start("403 Forbidden", [("Content-Type", "application/xml")])
    text = "The AWS Access Key Id you provided does not exist in our records."
    return [f"<Error><Code>InvalidAccessKeyId</Code><Message>{text}</Message></Error>".encode()]


def reply_lost(app: Wsgi, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    """The request is carried out, and the connection dies before the answer."""
    for _ in app(environ, lambda *_: None):
        pass
    _hang_up(environ)
    return []


def held_until(release: threading.Event) -> Fault:
    """The request hangs until `release` is set, and is then dropped."""

    def hold(_: Wsgi, environ: dict[str, Any], __: Callable[..., Any]) -> Iterable[bytes]:
        release.wait(PATIENCE)
        _hang_up(environ)
        return []

    return hold


def _hang_up(environ: dict[str, Any]) -> None:
    with suppress(OSError):
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)


class GcsServer:
    """Google Cloud Storage with one bucket, called "bucket"."""

    def __init__(self, *, conditional: bool = True) -> None:
        from gcp_storage_emulator.handlers import objects
        from gcp_storage_emulator.server import create_server

        self._port = free_port()
        self._server = create_server("127.0.0.1", self._port, in_memory=True, default_bucket="bucket")
        # Another server of this process may have put its own there.
        plain = getattr(objects._multipart_upload, "__wrapped__", objects._multipart_upload)
        upload = _conditional(plain) if conditional else plain
        self._patch = mock.patch.object(objects, "_multipart_upload", upload)
        self._patch.start()
        # The interpreter waits for other threads before it calls what closes a server that tests share.
        self._server._api.daemon = True
        self._server.start()

    @property
    def environment(self) -> Mapping[str, str]:
        """What a client's process needs."""
        return {
            "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{self._port}",
            "FSSPEC_GCS_TOKEN": "anon",
        }

    def close(self) -> None:
        self._server.stop()
        self._patch.stop()


class AzureUploads:
    """Takes what is uploaded to Azure's Blob Storage, and answers nothing else.

    Attributes:
        requests: Of each, what is asked of the file ("" is to make it as a whole), its condition and its length.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str | None, int]] = []
        taken = self.requests

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                length = int(self.headers["Content-Length"])
                self.rfile.read(length)
                taken.append((self.path.partition("?")[2], self.headers["If-None-Match"], length))
                self.send_response(HTTPStatus.CREATED)
                for name, value in (
                    ("Content-Length", "0"),
                    ("ETag", '"1"'),
                    ("Last-Modified", formatdate(usegmt=True)),
                ):
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def environment(self) -> Mapping[str, str]:
        """What a client's process needs."""
        endpoint = f"http://127.0.0.1:{self._server.server_port}/account"
        login = "DefaultEndpointsProtocol=http;AccountName=account;AccountKey=a2V5"
        return {"AZURE_STORAGE_CONNECTION_STRING": f"{login};BlobEndpoint={endpoint};"}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(PATIENCE)


def _conditional(upload: Callable[..., Any]) -> Callable[..., Any]:
    one_at_a_time = threading.Lock()

    @functools.wraps(upload)
    def upload_if(request: Any, response: Any, storage: Any) -> Any:
        from gcp_storage_emulator.exceptions import NotFound

        with one_at_a_time:
            if request.query.get("ifGenerationMatch") == ["0"]:
                with suppress(NotFound):
                    storage.get_file_obj(request.params["bucket_name"], request.data["meta"]["name"])
                    response.status = HTTPStatus.PRECONDITION_FAILED
                    return None
            return upload(request, response, storage)

    return upload_if
