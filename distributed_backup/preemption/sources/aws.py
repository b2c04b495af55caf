"""Amazon EC2: the interruption notice and the rebalance recommendation of a Spot Instance.

- `spot/instance-action` exists from two minutes before the instance is stopped or terminated, or from the moment it
  hibernates. It has the approximate time. Until then it is a 404. If EC2 does not do as announced, a time in the past
  remains. 300 s later it counts as a warning: a job restarted on this machine would otherwise exit again and again.
  https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
- `events/recommendations/rebalance` exists while the risk of an interruption is high: a warning.
  https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/rebalance-recommendations.html

Both are polled every five seconds, as EC2 recommends, over IMDSv2, where each request needs a session token. The token
crosses one network hop unless the instance allows more. A container without the host's network needs two.
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html
"""

from __future__ import annotations

import os
import re
from typing import Final

from distributed_backup.preemption.sources.base import Alert, NoticeSource
from distributed_backup.preemption.sources.metadata import ADDRESS, Answer, MetadataService, iso_time, seconds_left

_ENDPOINT: Final = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
_TOKEN: Final = "X-aws-ec2-metadata-token"  # noqa: S105 - the header's name
# A valid header value. A captive portal would answer with a page.
_TOKEN_TEXT: Final = re.compile(r"[!-~]{1,1024}")
# Seconds: EC2's maximum. A token that has expired is refused with 401, and replaced.
_TOKEN_LIFE: Final = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}

_ACTIONS: Final = ("terminate", "stop", "hibernate")
# Seconds after its announced time at which an interruption counts as cancelled.
_OVERDUE: Final = 300.0


class AwsSource(NoticeSource):
    """Interruptions of this Spot Instance.

    `$AWS_EC2_METADATA_SERVICE_ENDPOINT` sets another URL, as in Amazon's SDKs.
    """

    name = "aws"
    period = 5.0

    def __init__(self) -> None:
        self._service = MetadataService(os.environ.get(_ENDPOINT) or ADDRESS, origin=f"${_ENDPOINT}")
        self._token: str | None = None

    def poll(self) -> Alert | None:
        """Return a terminal alert with its time at an interruption, a warning at a recommendation."""
        interruption = self._item("spot/instance-action")
        if interruption is not None:
            return _interruption(interruption)
        if self._item("events/recommendations/rebalance") is not None:
            return Alert(reason="aws:rebalance", terminal=False)
        return None

    def _item(self, item: str) -> Answer | None:
        """Return an item of the metadata, None if it does not exist."""
        answer = self._ask(item)
        if answer.status == 401:
            self._token = None
            answer = self._ask(item)
        return None if answer.status == 404 else answer.raise_for_status()

    def _ask(self, item: str) -> Answer:
        if self._token is None:
            self._token = self._new_token()
        return self._service.ask(f"/latest/meta-data/{item}", headers={_TOKEN: self._token})

    def _new_token(self) -> str:
        answer = self._service.ask("/latest/api/token", method="PUT", headers=_TOKEN_LIFE).raise_for_status()
        if not _TOKEN_TEXT.fullmatch(answer.text.strip()):
            raise answer.parse_error()
        return answer.text.strip()


def _interruption(answer: Answer) -> Alert:
    document = answer.json()
    action = document.get("action") if isinstance(document, dict) else None
    if action not in _ACTIONS:
        raise answer.parse_error()
    # By the server's clock, because ours may be wrong. An interruption without a valid time is still terminal.
    end, now = iso_time(document.get("time")), answer.server_time
    overdue = end is not None and now is not None and (now - end).total_seconds() > _OVERDUE
    return Alert(reason=f"aws:{action}", remaining=seconds_left(end, now), terminal=not overdue)
