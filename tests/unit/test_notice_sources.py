"""Test each source of notices against a local server that follows the cloud's documentation."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from distributed_backup.errors import BackupError, ConfigError
from distributed_backup.preemption.sources import Alert, NoticeSource, NoticeSources, metadata, notice_sources
from distributed_backup.preemption.sources.aws import AwsSource
from distributed_backup.preemption.sources.azure import AzureSource
from distributed_backup.preemption.sources.file import FileSource
from distributed_backup.preemption.sources.gce import GceSource
from distributed_backup.training.environment import EnvironmentSettings
from tests.support.metadata_servers import Aws, Azure, Cloud, Gce, Reply


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set a proxy that no source may use: a metadata service answers for the machine that connects."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")


@pytest.fixture
def gce(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gce]:
    cloud = Gce()
    with cloud.served():
        monkeypatch.setenv("GCE_METADATA_HOST", cloud.url.removeprefix("http://"))
        yield cloud


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    cloud = Aws()
    with cloud.served():
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"{cloud.url}/")
        yield cloud


@pytest.fixture
def azure() -> Iterator[Azure]:
    cloud = Azure()
    with cloud.served():
        yield cloud


# ---------------------------------------------------------------- a file


def test_a_file_that_is_touched_is_a_notice(tmp_path: Path) -> None:
    """A touch of the file is a terminal alert without a time."""
    path = tmp_path / "notice"
    source = FileSource(path)
    source.begin()
    assert source.poll() is None
    path.touch()
    assert source.poll() == Alert(reason=f"file:{path}")


def test_a_file_of_an_earlier_time_is_none_until_it_is_touched_again(tmp_path: Path) -> None:
    """A file that an earlier pod left behind is ignored until its modification time changes."""
    path = tmp_path / "notice"
    path.touch()
    source = FileSource(path)
    source.begin()
    assert source.poll() is None
    # Also if the new time is the older one.
    os.utime(path, (1.0, 1.0))
    assert source.poll() is not None
    source.begin()
    assert source.poll() is None


def test_a_file_that_is_removed_is_no_notice(tmp_path: Path) -> None:
    """The removal of the file is not a notice, and its creation afterwards is one."""
    path = tmp_path / "notice"
    path.touch()
    os.utime(path, (1.0, 1.0))
    source = FileSource(path)
    source.begin()
    path.unlink()
    assert source.poll() is None
    path.touch()
    assert source.poll() is not None


def test_a_file_whose_directory_comes_later_is_a_notice(tmp_path: Path) -> None:
    """Neither the file nor its directory need exist when the fit begins."""
    source = FileSource(tmp_path / "later" / "notice")
    source.begin()
    assert source.poll() is None
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "notice").touch()
    assert source.poll() is not None


def test_a_file_that_can_not_be_looked_at_is_an_error_of_the_poll(tmp_path: Path) -> None:
    """`begin` ignores a file that can't be read, and `poll` raises the error."""
    (tmp_path / "file").touch()
    source = FileSource(tmp_path / "file" / "notice")
    source.begin()
    with pytest.raises(NotADirectoryError):
        source.poll()


def test_a_file_that_can_be_looked_at_later_is_no_notice_until_it_is_touched_then(tmp_path: Path) -> None:
    """The state at the first successful poll is not a notice. A later touch is one."""
    directory, source = tmp_path / "mount", FileSource(tmp_path / "mount" / "notice")
    directory.touch()
    source.begin()
    directory.unlink()
    directory.mkdir()
    (directory / "notice").touch()
    assert source.poll() is None
    assert source.poll() is None
    os.utime(directory / "notice", (1.0, 1.0))
    assert source.poll() is not None


def test_another_file_of_the_same_time_is_a_notice(tmp_path: Path) -> None:
    """A file of the same time but another inode is a notice, as after an atomic rename."""
    path, other = tmp_path / "notice", tmp_path / "other"
    for each in (path, other):
        each.touch()
        os.utime(each, (1.0, 1.0))
    source = FileSource(path)
    source.begin()
    other.rename(path)
    assert source.poll() is not None


# ---------------------------------------------------------------- Google


def test_gce_says_that_the_machine_is_being_preempted(gce: Gce) -> None:
    """A preemption is a terminal alert without a time."""
    source = GceSource()
    assert source.poll() is None
    gce.values["preempted"] = "TRUE\n"
    gce.values["maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
    assert source.poll() == Alert(reason="gce:preempted")


@pytest.mark.parametrize("event", ["MIGRATE_ON_HOST_MAINTENANCE", "TERMINATE_ON_HOST_MAINTENANCE"])
def test_maintenance_on_gce_is_a_warning_while_it_lasts(gce: Gce, event: str) -> None:
    """Maintenance is a warning at each poll until it is over."""
    source = GceSource()
    gce.values["maintenance-event"] = event
    assert source.poll() == Alert(reason=f"gce:{event}", terminal=False)
    gce.values["maintenance-event"] = "NONE"
    assert source.poll() is None


def test_who_does_not_answer_as_google_is_not_believed(gce: Gce) -> None:
    """An answer without Google's header is an error."""
    gce.fault = Reply(text="TRUE")
    with pytest.raises(BackupError, match="instance/preempted was not answered by Google's metadata server"):
        GceSource().poll()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Reply(503, headers={"Metadata-Flavor": "Google"}), "instance/preempted answered 503"),
        (Reply(text="<html>", headers={"Metadata-Flavor": "Google"}), "answered what can't be understood: '<html>'"),
        (Reply(text="", headers={"Metadata-Flavor": "Google"}), "answered what can't be understood: ''"),
    ],
)
def test_an_ill_gce_is_an_error_and_the_next_poll_finds_it_well(gce: Gce, fault: Reply, message: str) -> None:
    """An error status is an error of that poll only."""
    source = GceSource()
    gce.fault = fault
    with pytest.raises(BackupError, match=message):
        source.poll()
    gce.fault = None
    assert source.poll() is None


@pytest.mark.parametrize("status", [403, 404, 500])
def test_gce_without_maintenance_events_tells_of_preemptions(gce: Gce, status: int) -> None:
    """Without the key `maintenance-event`, as on GKE, preemptions are still reported."""
    del gce.values["maintenance-event"]
    gce.unknown = status
    source = GceSource()
    assert source.poll() is None
    gce.values["preempted"] = "TRUE"
    assert source.poll() == Alert(reason="gce:preempted")


def test_gce_without_the_key_is_an_error(gce: Gce) -> None:
    """Without the key `preempted` each poll is an error."""
    del gce.values["preempted"]
    with pytest.raises(BackupError, match="answered 404"):
        GceSource().poll()


# ---------------------------------------------------------------- Amazon


def test_aws_says_when_the_instance_ends(aws: Aws) -> None:
    """The remaining seconds are counted by the server's clock, which is ten years behind ours."""
    source = AwsSource()
    assert source.poll() is None
    aws.interrupt("terminate", "2016-09-19T18:31:37Z")
    assert source.poll() == Alert(reason="aws:terminate", remaining=110.0)


@pytest.mark.parametrize("action", ["stop", "hibernate"])
def test_to_be_stopped_or_hibernated_is_an_end_too(aws: Aws, action: str) -> None:
    """Stop and hibernate are terminal alerts."""
    aws.interrupt(action)
    assert AwsSource().poll() == Alert(reason=f"aws:{action}", remaining=110.0)


@pytest.mark.parametrize("time", ["2016-09-19T18:29:47Z", "2016-09-19T18:24:47Z", "soon", ""])
def test_an_end_whose_time_is_over_or_makes_no_sense_comes_in_the_grace_period(aws: Aws, time: str) -> None:
    """A time that is past or invalid is a terminal alert without a time."""
    aws.interrupt("terminate", time)
    assert AwsSource().poll() == Alert(reason="aws:terminate")


@pytest.mark.parametrize("time", ["2016-09-19T18:24:46Z", "2016-09-19T10:00:00Z"])
def test_an_end_that_should_have_come_long_ago_is_a_warning(aws: Aws, time: str) -> None:
    """An interruption that is over 300 s late is a warning, so a restarted job does not exit again."""
    aws.interrupt("stop", time)
    assert AwsSource().poll() == Alert(reason="aws:stop", terminal=False)


@pytest.mark.parametrize("headers", [{}, {"Date": "today"}])
def test_without_the_servers_clock_the_grace_period_counts(azure: Azure, headers: dict[str, str]) -> None:
    """Without a valid header `Date` the alert has no time."""
    azure.headers = headers
    azure.schedule("Preempt", before="Mon, 19 Sep 2016 18:30:17 GMT")
    assert AzureSource(azure.url).poll() == Alert(reason="azure:Preempt")


def test_a_rebalance_recommendation_is_a_warning_and_an_interruption_more(aws: Aws) -> None:
    """A recommendation is a warning, and an interruption replaces it."""
    source = AwsSource()
    aws.items["events/recommendations/rebalance"] = '{"noticeTime": "2016-09-19T18:29:00Z"}'
    assert source.poll() == Alert(reason="aws:rebalance", terminal=False)
    aws.interrupt()
    assert source.poll() == Alert(reason="aws:terminate", remaining=110.0)


def test_a_token_is_kept_until_it_is_refused(aws: Aws) -> None:
    """A refused token is replaced within the same poll."""
    source = AwsSource()
    source.poll()
    source.poll()
    assert [asked for asked in aws.asked if asked.startswith("PUT")] == ["PUT /latest/api/token"]
    aws.expire()
    aws.interrupt()
    assert source.poll() is not None
    assert len([asked for asked in aws.asked if asked.startswith("PUT")]) == 2


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("{", r"instance-action answered what can't be understood: '\{'"),
        ("[]", "can't be understood"),
        ('{"action": "dance"}', "can't be understood"),
        ('{"action": ["stop"]}', "can't be understood"),
    ],
)
def test_what_is_no_interruption_is_not_taken_for_one(aws: Aws, item: str, message: str) -> None:
    """An item of another form is an error, not the absence of an interruption."""
    aws.items["spot/instance-action"] = item
    with pytest.raises(BackupError, match=message):
        AwsSource().poll()


@pytest.mark.parametrize("fault", [Reply(403), Reply(500), Reply(302, headers={"Location": "/login"})])
def test_an_ill_aws_is_an_error_and_the_next_poll_finds_it_well(aws: Aws, fault: Reply) -> None:
    """Each error status is an error of that poll, and a redirect is not followed."""
    source = AwsSource()
    aws.fault = fault
    with pytest.raises(BackupError, match=f"/latest/api/token answered {fault.status}"):
        source.poll()
    aws.fault = None
    assert source.poll() is None
    aws.fault = fault
    with pytest.raises(BackupError, match=f"/spot/instance-action answered {fault.status}"):
        source.poll()


def test_a_page_is_no_token(aws: Aws) -> None:
    """A token with characters that no header may have is refused."""
    source = AwsSource()
    aws.fault = Reply(text="<html>\r\nlog in\r\n</html>")
    with pytest.raises(BackupError, match="can't be understood"):
        source.poll()
    aws.fault = None
    assert source.poll() is None


# ---------------------------------------------------------------- Azure


@pytest.mark.parametrize("kind", ["Preempt", "Terminate", "Reboot", "Redeploy"])
def test_azure_says_when_the_machine_ends(azure: Azure, kind: str) -> None:
    """Events that delete or restart the machine are terminal, with the seconds by the server's clock."""
    source = AzureSource(azure.url)
    assert source.poll() is None
    azure.schedule(kind, "other_1", "WORKER_7", before="Mon, 19 Sep 2016 18:30:17 GMT")
    assert source.poll() == Alert(reason=f"azure:{kind}", remaining=30.0)


@pytest.mark.parametrize("kind", ["Preempt", "Terminate"])
def test_a_deletion_that_has_begun_is_an_end(azure: Azure, kind: str) -> None:
    """A started deletion is a terminal alert without a time."""
    azure.schedule(kind, status="Started")
    assert AzureSource(azure.url).poll() == Alert(reason=f"azure:{kind}")


@pytest.mark.parametrize("kind", ["Reboot", "Redeploy"])
def test_a_restart_that_has_begun_is_a_warning(azure: Azure, kind: str) -> None:
    """A started restart is a warning: the machine has most likely just returned from it."""
    azure.schedule(kind, status="Started")
    assert AzureSource(azure.url).poll() == Alert(reason=f"azure:{kind}", terminal=False)


@pytest.mark.parametrize("kind", ["Freeze", "Something"])
def test_a_freeze_and_what_is_unknown_are_warnings(azure: Azure, kind: str) -> None:
    """A freeze and an unknown kind are warnings."""
    azure.schedule(kind, before="Mon, 19 Sep 2016 18:44:47 GMT")
    assert AzureSource(azure.url).poll() == Alert(reason=f"azure:{kind}", remaining=900.0, terminal=False)


def test_events_of_other_machines_are_not_ours(azure: Azure) -> None:
    """Events whose resources don't include this machine are ignored."""
    azure.schedule("Preempt", "worker_70", "worker_")
    assert AzureSource(azure.url).poll() is None


def test_of_several_events_the_most_pressing_counts(azure: Azure) -> None:
    """A terminal event comes before a warning, and an earlier event before a later one."""
    azure.schedule("Freeze", status="Started")
    azure.schedule("Reboot", before="Mon, 19 Sep 2016 18:44:47 GMT")
    azure.schedule("Preempt", before="Mon, 19 Sep 2016 18:30:17 GMT")
    assert AzureSource(azure.url).poll() == Alert(reason="azure:Preempt", remaining=30.0)
    azure.schedule("Terminate", status="Started")
    assert AzureSource(azure.url).poll() == Alert(reason="azure:Terminate")


def test_the_name_of_a_machine_may_be_in_capitals(azure: Azure) -> None:
    """Names of machines are compared without regard to case."""
    azure.schedule("Preempt", "WORKER_7")
    azure.name = "Worker_7"
    assert AzureSource(azure.url).poll() == Alert(reason="azure:Preempt")


def test_azure_is_asked_for_the_machines_name_once_and_before_there_is_an_event(azure: Azure) -> None:
    """The name is read at the first poll, and no event is approved with a POST."""
    source = AzureSource(azure.url)
    source.poll()
    azure.schedule("Preempt")
    source.poll()
    source.poll()
    events = "GET /metadata/scheduledevents?api-version=2020-07-01"
    name = "GET /metadata/instance/compute/name?api-version=2021-02-01&format=text"
    assert azure.asked == [name, events, events, events]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"Events": [1]}', '{"Events": [{}]}', '{"Events": [{"Resources": ["worker_7"]}]}']
)
def test_what_azure_never_says_is_an_error(azure: Azure, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The error is one line that shows the answer."""
    monkeypatch.setattr(
        azure, "reply", lambda method, path, headers: Reply(text=azure.name if "name" in path else text)
    )
    with pytest.raises(BackupError, match=r"scheduledevents\?api-version=2020-07-01 answered what can't be understood"):
        AzureSource(azure.url).poll()


# ---------------------------------------------------------------- any metadata service


def sources_at(url: str, monkeypatch: pytest.MonkeyPatch) -> list[NoticeSource]:
    monkeypatch.setenv("GCE_METADATA_HOST", url.removeprefix("http://"))
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
    return [GceSource(), AwsSource(), AzureSource(url)]


def test_a_machine_without_a_metadata_service_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the URL and the reason."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        for source in sources_at(url, monkeypatch):
            with pytest.raises(BackupError, match=rf"^no answer from {url}/[^\n]*: [^\n]*refused$"):
                source.poll()


def test_a_service_that_does_not_answer_in_time_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hung service is an error of the poll after the time limit."""
    monkeypatch.setattr(metadata, "_TIME_LIMIT", 0.05)
    cloud, begin = Cloud(), time.monotonic()
    with cloud.served():
        cloud.released.clear()
        for source in sources_at(cloud.url, monkeypatch):
            with pytest.raises(BackupError, match=r"no answer from .*: timed out"):
                source.poll()
        assert time.monotonic() - begin < 4.0


def test_an_answer_that_is_cut_off_is_none(aws: Aws) -> None:
    """An answer that ends early is an error, even if its part is valid."""
    aws.cut_off = True
    with pytest.raises(BackupError, match=r"no answer from .*/latest/api/token: IncompleteRead"):
        AwsSource().poll()


def test_an_answer_without_end_is_not_read_to_it(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer answer than the size limit is an error."""
    monkeypatch.setattr(metadata, "_SIZE_LIMIT", 10)
    with pytest.raises(BackupError, match="IncompleteRead"):
        AzureSource(azure.url).poll()


@pytest.mark.parametrize("words", [b"HTTP/1.0 200 OK\r\n\r\n\xff", b"\x00\xff\r\n\r\n", b""])
def test_what_is_no_http_or_no_text_is_no_answer(words: bytes) -> None:
    """An answer that is not HTTP or not text is an error."""

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(words)

    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as threads:
        serving = threads.submit(serve)
        with pytest.raises(BackupError, match="no answer from"):
            AzureSource(f"http://127.0.0.1:{server.getsockname()[1]}").poll()
        serving.result()


@pytest.mark.parametrize("address", ["ftp://host", "http://", "http://host:port", "http://host/path", "https://host"])
def test_an_address_that_is_none_is_refused_when_the_callback_is_made(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """The error names the variable."""
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", address)
    with pytest.raises(ConfigError, match=r"\$AWS_EC2_METADATA_SERVICE_ENDPOINT must name a host"):
        notice_sources("aws")


@pytest.mark.parametrize("source", [GceSource, AwsSource, AzureSource])
def test_the_usual_address_is_that_of_the_clouds(monkeypatch: pytest.MonkeyPatch, source: Any) -> None:
    """The default address is a number, because a resolver may take 30 s for a missing name."""
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "")
    service = source()._service
    assert (service._host, service._port) == ("169.254.169.254", 80)


# ---------------------------------------------------------------- names


def names(found: NoticeSources) -> tuple[bool, list[str]]:
    return found.signal, [source.name for source in found.others]


def test_the_variable_may_be_set_and_left_empty() -> None:
    """An empty variable counts as absent. An unknown name is refused with the variable's name."""
    found = EnvironmentSettings.read({"DISTRIBUTED_BACKUP_NOTICES": " signal, aws "}).notices
    assert found is not None
    assert names(found) == (True, ["aws"])
    assert EnvironmentSettings.read({"DISTRIBUTED_BACKUP_NOTICES": " "}).notices is None
    with pytest.raises(ConfigError, match=r"^\$DISTRIBUTED_BACKUP_NOTICES: notices must be any of .*; got 'gpc'$"):
        EnvironmentSettings.read({"DISTRIBUTED_BACKUP_NOTICES": "signal,gpc"})


class Mine(NoticeSource):
    name = "mine"

    def poll(self) -> Alert | None:
        return None


@pytest.mark.parametrize(
    ("notices", "found"),
    [
        ("signal", (True, [])),
        ("gce", (False, ["gce"])),
        ("signal, aws ,file:/run/notice", (True, ["aws", "file:/run/notice"])),
        (["azure", "signal", "file:///run/a,b"], (True, ["azure", "file:/run/a,b"])),
        (Mine(), (False, ["mine"])),
        (("signal", Mine()), (True, ["mine"])),
        ((), (False, [])),
    ],
)
def test_names_and_sources_in_any_form(notices: Any, found: Any) -> None:
    """Commas separate names in a text, but not in a sequence, where a path may contain one."""
    assert names(notice_sources(notices)) == found
    assert bool(notice_sources(notices)) == (found != (False, []))


@pytest.mark.parametrize(
    "notices",
    ["", "sigterm", "file:", "file:notice", "file://host/notice", "file:/run/", "gce,,aws", 5, [None], [["gce"]]],
)
def test_what_is_no_source_is_refused(notices: Any) -> None:
    """The error lists the valid names and shows the value."""
    with pytest.raises(ConfigError, match=r"notices must be any of 'signal', 'file:/absolute/path', 'gce', .*; got "):
        notice_sources(notices)


@pytest.mark.parametrize("remaining", [0.0, -1.0, math.inf, math.nan])
def test_an_alert_checks_itself(remaining: float) -> None:
    """A remaining time of 0 or less, infinite or NaN is refused."""
    with pytest.raises(ConfigError, match="remaining must be a positive number of seconds or None, got"):
        Alert(reason="test", remaining=remaining)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "a NoticeSource must have a name, Mine has ''"),
        ({"name": 7}, "a NoticeSource must have a name, Mine has 7"),
        ({"period": 0}, "the period of the notice source mine must be a positive number of seconds, got 0"),
        ({"period": math.inf}, "got inf"),
        ({"period": "5"}, "got '5'"),
        ({"period": True}, "got True"),
    ],
)
def test_a_source_of_ones_own_is_looked_at_before_the_fit(changes: dict[str, Any], message: str) -> None:
    """A source without a valid name and period is refused when the callback is made."""
    source = Mine()
    vars(source).update(changes)
    with pytest.raises(ConfigError, match=message):
        notice_sources(source)
