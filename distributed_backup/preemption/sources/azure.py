"""Azure: scheduled events of this virtual machine.

- Preempt (at least 30 s before) and Terminate (5 to 15 min) delete the machine; Reboot and Redeploy (10 min or more,
  days where hardware is about to fail) end its processes. All are sure ends, and carry the time before which they don't
  begin.
- One that has started has no time. A machine that is back from a Reboot or a Redeploy may see it as started for minutes
  yet, so that then it is a warning only; else a restarted job would leave again and again.
- Freeze pauses the machine for seconds, and any kind that is not known here is taken for as little: a warning.
- Events are told to all machines of a set, and name those that they concern.

No event is approved: that would have it begin sooner, on all the machines it names. The first question of all may be
answered after two minutes only; so whoever begins to ask may have no answer at first. Asked for each second, as Azure
recommends. https://learn.microsoft.com/en-us/azure/virtual-machines/linux/scheduled-events
"""

from __future__ import annotations

from typing import Any, Final

from distributed_backup.preemption.sources.base import Alert, NoticeSource
from distributed_backup.preemption.sources.metadata import ADDRESS, Answer, MetadataService, http_time, seconds_left

_HEADERS: Final = {"Metadata": "true"}
_EVENTS: Final = "/metadata/scheduledevents?api-version=2020-07-01"
_NAME: Final = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"


class AzureSource(NoticeSource):
    """Scheduled events of this VM.

    Args:
        address: URL of the service; a machine outside of a virtual network has another than the usual one.
    """

    name = "azure"

    def __init__(self, address: str = ADDRESS) -> None:
        self._service = MetadataService(address, origin="address")
        self._machine: str | None = None

    def poll(self) -> Alert | None:
        """The most pressing of the events that concern this machine."""
        if self._machine is None:  # now, for when an event is there may be too late to find out
            self._machine = self._service.ask(_NAME, headers=_HEADERS).raise_for_status().text.strip().casefold()
        answer = self._service.ask(_EVENTS, headers=_HEADERS).raise_for_status()
        document = answer.json()
        try:
            alerts = [_alert(event, answer) for event in document["Events"] if self._machine in _machines(event)]
        except (AttributeError, KeyError, TypeError):
            raise answer.parse_error() from None
        return min(alerts, key=_pressing, default=None)


def _machines(event: dict[str, Any]) -> set[str]:
    return {str(name).casefold() for name in event["Resources"]}


def _alert(event: dict[str, Any], answer: Answer) -> Alert:
    kind, has_started = str(event["EventType"]), event.get("EventStatus") == "Started"
    terminal = kind in {"Preempt", "Terminate"} or (kind in {"Reboot", "Redeploy"} and not has_started)
    remaining = seconds_left(http_time(event.get("NotBefore")), answer.server_time)
    return Alert(reason=f"azure:{kind[:40]}", remaining=remaining, terminal=terminal)


def _pressing(alert: Alert) -> tuple[bool, float]:
    return not alert.terminal, alert.remaining or 0.0
