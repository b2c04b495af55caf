"""Google Compute Engine: the metadata keys `preempted` and `maintenance-event`.

- `preempted` changes from FALSE to TRUE when a Spot VM is being preempted. 30 s remain, and 120 s more if the VM was
  made with a notice duration. The key does not show which, so the grace period counts.
  https://cloud.google.com/compute/docs/instances/create-use-spot
- `maintenance-event` is MIGRATE_ON_HOST_MAINTENANCE 60 s before a live migration, which the process survives. It is
  TERMINATE_ON_HOST_MAINTENANCE before the VM is stopped: 60 s, or an hour with GPUs. The key does not show which, so
  both are warnings. The stop itself sends a SIGTERM. A VM gets the 60 s only if it has read the key before.
  https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice and
  https://cloud.google.com/compute/docs/gpus/gpu-host-maintenance

Both are polled every second. A request with `wait_for_change` would return sooner, but it could not be cancelled at the
end of a fit.
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
    """Preemptions and maintenance of this VM. `$GCE_METADATA_HOST` sets another host, as in Google's clients."""

    name = "gce"

    def __init__(self) -> None:
        host = os.environ.get(_HOST)
        self._service = MetadataService(f"http://{host}" if host else ADDRESS, origin=f"${_HOST}")

    def poll(self) -> Alert | None:
        """Return a terminal alert at a preemption, a warning at maintenance."""
        if _value(self._ask("preempted").raise_for_status()) == "TRUE":
            return Alert(reason="gce:preempted")
        answer = self._ask("maintenance-event")
        # GKE's metadata server may not have this key. The key above is the one that must work.
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
    """Check that Google's server has answered, not another server at the address or a captive portal."""
    if answer.headers.get("metadata-flavor") != "Google":
        raise BackupError(f"{answer.url} was not answered by Google's metadata server")
