"""Google Compute Engine: the metadata keys `preempted` and `maintenance-event`.

- `preempted` turns from FALSE to TRUE when a Spot VM is being preempted. It does not say how much time is left: 30 s,
  and 120 s more where the VM was made with a notice duration. So the grace period counts.
  https://cloud.google.com/compute/docs/instances/create-use-spot
- `maintenance-event` is MIGRATE_ON_HOST_MAINTENANCE a minute before a live migration, which the process survives, or
  TERMINATE_ON_HOST_MAINTENANCE before the VM is stopped: a minute, with GPUs an hour, and it does not say which. Both
  are warnings, for to leave at once might waste an hour; the stop itself comes as a SIGTERM. The minute is given only
  to those who have asked before. https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice and
  https://cloud.google.com/compute/docs/gpus/gpu-host-maintenance

Both are asked for each second. A request that hangs until the value changes (`wait_for_change`) would hear of it at
once, but could not be taken back when the fit is over.
"""

from __future__ import annotations

import os
import re
from typing import Final

from distributed_backup.errors import BackupError
from distributed_backup.preemption.sources.base import Alert, NoticeSource
from distributed_backup.preemption.sources.metadata import ADDRESS, Answer, MetadataService

_HOST: Final = "GCE_METADATA_HOST"
_FLAVOR: Final = {"Metadata-Flavor": "Google"}
_VALUE: Final = re.compile(r"[A-Z][A-Z_]{0,99}")


class GceSource(NoticeSource):
    """Preemptions and maintenance of this VM; `$GCE_METADATA_HOST` names another host, as in Google's clients."""

    name = "gce"

    def __init__(self) -> None:
        host = os.environ.get(_HOST)
        self._service = MetadataService(f"http://{host}" if host else ADDRESS, origin=f"${_HOST}")

    def poll(self) -> Alert | None:
        """A preemption is a sure end, maintenance a warning."""
        if _value(self._ask("preempted").raise_for_status()) == "TRUE":
            return Alert(reason="gce:preempted")
        answer = self._ask("maintenance-event")
        # A server that stands in for Google's, such as GKE's, may not show it; the key above is what counts.
        event = "NONE" if answer.status != 200 else _value(answer)
        return None if event == "NONE" else Alert(reason=f"gce:{event}", terminal=False)

    def _ask(self, key: str) -> Answer:
        answer = self._service.ask(f"/computeMetadata/v1/instance/{key}", headers=_FLAVOR)
        _check_flavor(answer)
        return answer


def _value(answer: Answer) -> str:
    value = answer.text.strip()
    if not _VALUE.fullmatch(value):
        raise answer.parse_error()
    return value


def _check_flavor(answer: Answer) -> None:
    """Another server may sit at the address, or a captive portal answer for it."""
    if answer.headers.get("metadata-flavor") != "Google":
        raise BackupError(f"{answer.url} was not answered by Google's metadata server")
