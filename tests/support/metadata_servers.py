"""Serve local metadata services that answer as the clouds document. See `preemption.sources` for the rules."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# The server's clock, years behind ours.
NOW = "Mon, 19 Sep 2016 18:29:47 GMT"


@dataclass
class Reply:
    """One answer, without the headers that every answer has."""

    status: int = 200
    text: str = ""
    headers: dict[str, str] = field(default_factory=dict)


class Cloud:
    """A metadata server without content. It records its requests, and subclasses define its answers."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fault: Reply | None = None
        """The answer to every request, if not None."""
        self.cut_off = False
        """Whether each answer ends in its middle."""
        self.released = threading.Event()
        """Answers wait for this event."""
        self.released.set()
        self.headers = {"Date": NOW}
        """Headers of every answer."""
        self.url = ""

    def reply(self, method: str, path: str, headers: Any) -> Reply:
        """Return the answer to a request. The base class has no content."""
        return Reply(404)

    @contextmanager
    def served(self) -> Iterator[None]:
        """Serve until the block ends."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield
        finally:
            self.released.set()
            server.shutdown()
            server.server_close()
            thread.join()


def _handler(cloud: Cloud) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            cloud.asked.append(f"{self.command} {self.path}")
            cloud.released.wait()
            reply = cloud.fault or cloud.reply(self.command, self.path, self.headers)
            body = reply.text.encode()
            self.send_response_only(reply.status)
            for name, value in {**cloud.headers, **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cloud.cut_off else body)

        do_PUT = do_GET  # noqa: N815 - the name is http.server's

        def log_message(self, *args: Any) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # who asked may have gone
                super().handle()

    return Handler


class Gce(Cloud):
    """Google's metadata server."""

    def __init__(self) -> None:
        super().__init__()
        self.values = {"preempted": "FALSE", "maintenance-event": "NONE"}
        self.unknown = 404
        """The status for a missing key."""

    def reply(self, method: str, path: str, headers: Any) -> Reply:
        if headers["Metadata-Flavor"] != "Google":
            return Reply(403)
        value = self.values.get(path.removeprefix("/computeMetadata/v1/instance/"))
        google = {"Metadata-Flavor": "Google", "Server": "Metadata Server for VM"}
        return Reply(self.unknown, headers=google) if value is None else Reply(text=value, headers=google)


class Aws(Cloud):
    """The metadata service of EC2, version 2."""

    def __init__(self) -> None:
        super().__init__()
        self.items: dict[str, str] = {}
        self.tokens = 0

    def expire(self) -> None:
        """Make the last token invalid."""
        self.tokens += 1

    def interrupt(self, action: str = "terminate", time: str = "2016-09-19T18:31:37Z") -> None:
        self.items["spot/instance-action"] = json.dumps({"action": action, "time": time})

    def reply(self, method: str, path: str, headers: Any) -> Reply:
        if (method, path) == ("PUT", "/latest/api/token"):
            if not 1 <= int(headers["X-aws-ec2-metadata-token-ttl-seconds"] or 0) <= 21600:
                return Reply(400)
            self.tokens += 1
            return Reply(text=f"token-{self.tokens}==")
        if headers["X-aws-ec2-metadata-token"] != f"token-{self.tokens}==":
            return Reply(401)
        item = self.items.get(path.removeprefix("/latest/meta-data/"))
        return Reply(404, "<?xml?><html>Not Found</html>") if item is None else Reply(text=item)


class Azure(Cloud):
    """Azure's metadata service."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "worker_7"
        self.events: list[dict[str, Any]] = []

    def schedule(self, kind: str, *resources: str, status: str = "Scheduled", before: str = "") -> None:
        self.events.append(
            {
                "EventId": f"602d9444-{len(self.events)}",
                "EventType": kind,
                "ResourceType": "VirtualMachine",
                "Resources": list(resources or (self.name,)),
                "EventStatus": status,
                "NotBefore": before,
                "Description": "Host server is undergoing maintenance.",
                "EventSource": "Platform",
                "DurationInSeconds": -1,
            }
        )

    def reply(self, method: str, path: str, headers: Any) -> Reply:
        if headers["Metadata"] != "true" or "api-version=" not in path:
            return Reply(400)
        if path.startswith("/metadata/instance/compute/name?") and path.endswith("format=text"):
            return Reply(text=self.name)
        if path == "/metadata/scheduledevents?api-version=2020-07-01":
            return Reply(text=json.dumps({"DocumentIncarnation": 1, "Events": self.events}))
        return Reply(404)
