"""Azure: scheduled events of this virtual machine.

- Preempt (announced at least 30 s before) and Terminate (5 to 15 min) delete the machine. Reboot and Redeploy (10 min
  or more, days if hardware is about to fail) end its processes. All are terminal. Their time is the earliest start.
- An event that has started has no time. After a Reboot or a Redeploy a machine may see it as started for some minutes,
  so a started one is a warning. A restarted job would otherwise exit again and again.
- Freeze pauses the machine for seconds: a warning. Unknown kinds are warnings too.
- Azure announces events to all machines of a set, with the names of the machines concerned.

This module approves no event, because the event would then start sooner on all machines concerned. Azure may take 120 s
to answer the first request. Polled every second, as Azure recommends.
https://learn.microsoft.com/en-us/azure/virtual-machines/linux/scheduled-events
"""

from __future__ import annotations

from typing import Any, Final

from distributed_backup.preemption.sources.base import Alert, NoticeSource
from distributed_backup.preemption.sources.metadata import ADDRESS, Answer, MetadataService, http_time, seconds_left

_HEADERS: Final = {"Metadata": "true"}
_EVENTS: Final = "/metadata/scheduledevents?api-version=2020-07-01"
_NAME: Final = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"


class AzureSource(NoticeSource):
    """Scheduled events of this VM. A machine outside of a virtual network has another `address` of the service."""

    name = "azure"

    def __init__(self, address: str = ADDRESS) -> None:
        self._service = MetadataService(address, origin="address")
        self._machine: str | None = None

    def poll(self) -> Alert | None:
        """Return the most urgent event that concerns this machine."""
        if self._machine is None:  # read at the first poll, because 30 s before the end may be too late
            self._machine = self._service.ask(_NAME, headers=_HEADERS).raise_for_status().text.strip().casefold()
        answer = self._service.ask(_EVENTS, headers=_HEADERS).raise_for_status()
        document = answer.json()
        try:
            alerts = [_alert(event, answer) for event in document["Events"] if self._machine in _machines(event)]
        except (AttributeError, KeyError, TypeError):
            raise answer.parse_error() from None
        return min(alerts, key=_urgency, default=None)


def _machines(event: dict[str, Any]) -> set[str]:
    return {str(name).casefold() for name in event["Resources"]}


def _alert(event: dict[str, Any], answer: Answer) -> Alert:
    kind, has_started = str(event["EventType"]), event.get("EventStatus") == "Started"
    terminal = kind in {"Preempt", "Terminate"} or (kind in {"Reboot", "Redeploy"} and not has_started)
    remaining = seconds_left(http_time(event.get("NotBefore")), answer.server_time)
    return Alert(reason=f"azure:{kind[:40]}", remaining=remaining, terminal=terminal)


def _urgency(alert: Alert) -> tuple[bool, float]:
    return not alert.terminal, alert.remaining or 0.0
