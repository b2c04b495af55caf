"""What is made of the failures of stores: one line of why, and whether it may pass by itself.

No server is asked: the errors are those that the clients raise, made by their own code where there is some.
"""

from __future__ import annotations

import errno
import json
from typing import Any

import pytest
from redis import exceptions as redis_errors

from distributed_backup.errors import ConfigError, StoreError
from distributed_backup.redis_client.address import RedisAddress
from distributed_backup.redis_client.client import RedisClient
from distributed_backup.storage.object_store import ObjectStorage
from distributed_backup.storage.redis import RedisStorage

PLACE = "memory://run"
DENIED = "x@y does not have storage.objects.list access to the bucket"


def failure(error: Exception) -> StoreError:
    """What a storage raises when its client does."""
    with pytest.raises(StoreError) as caught, ObjectStorage(PLACE, limit=5.0)._translated("write", f"{PLACE}/a"):
        raise error
    assert "\n" not in str(caught.value)
    return caught.value


def reason(error: Exception) -> str:
    return str(failure(error)).removeprefix(f"can't write {PLACE}/a: ")


def amazon(code: str, status: int, **details: str) -> Exception:
    """What s3fs raises for an answer of S3."""
    from botocore.exceptions import ClientError  # type: ignore[import-untyped]
    from s3fs.errors import translate_boto_error  # type: ignore[import-untyped]

    response: Any = {
        "Error": {"Code": code, "Message": f"It is {code}.", **details},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    error: Exception = translate_boto_error(ClientError(response, "PutObject"))
    return error


def google(status: int, message: str | None) -> Exception:
    """The errors that gcsfs raises for responses of Google. One without a message comes from a proxy."""
    content = json.dumps({"error": {"code": status, "message": message}}) if message is not None else ""
    return google_page(status, content)


def google_page(status: int, content: str) -> Exception:
    """What gcsfs raises for any answer."""
    from gcsfs.retry import validate_response

    try:
        validate_response(status, content, "https://storage.googleapis.com/storage/v1/b/bucket/o")
    except Exception as error:  # noqa: BLE001 - each status has a class of its own
        return error
    raise AssertionError("nothing was raised")


def azure(kind: str, status: int | None = None) -> Exception:
    """What the client for Azure raises."""
    from azure.core import exceptions

    error: Exception = getattr(exceptions, kind)("The server is busy.\nRequestId:1")
    if status is not None:
        error.status_code = status  # type: ignore[attr-defined]
    return error


def botocore(kind: str, **details: Any) -> Exception:
    from botocore import exceptions  # type: ignore[import-untyped]

    error: Exception = getattr(exceptions, kind)(**details)
    return error


# -------------------------------------------------------------------- whether it may pass


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        OSError(errno.EIO, "Input/output error"),
        EOFError("the server has hung up"),
        amazon("SlowDown", 503),
        amazon("503", 503),
        amazon("InternalError", 500),
        amazon("RequestTimeout", 400),
        amazon("TooManyRequests", 429),
        amazon("XMinioServerNotInitialized", 503),
        amazon("ConditionalRequestConflict", 409),
        amazon("NotHeardOf", 404),
        botocore("EndpointConnectionError", endpoint_url="http://nowhere", error="refused"),
        botocore("ConnectionClosedError", endpoint_url="http://nowhere"),
        botocore("HTTPClientError", error="broken"),
        google(503, None),
        google(500, "Backend Error"),
        google(429, "The rate limit for object mutation operations was exceeded"),
        google(502, None),
        azure("ServiceRequestError"),
        azure("ServiceResponseError"),
        azure("HttpResponseError", 503),
        azure("HttpResponseError", 429),
    ],
    ids=repr,
)
def test_what_passes_by_itself_may_be_waited_for(error: Exception) -> None:
    """A store that is busy, or can't be reached just now."""
    assert failure(error).retryable


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("bucket"),
        FileExistsError("a"),
        PermissionError("Access Denied"),
        ValueError("Invalid endpoint: nowhere"),
        OSError(errno.EROFS, "Read-only file system"),
        amazon("NoSuchBucket", 404),
        amazon("AccessDenied", 403),
        amazon("InvalidAccessKeyId", 403),
        amazon("ExpiredToken", 400),
        amazon("InvalidRequest", 400),
        amazon("NotHeardOf", 400),
        amazon("NotHeardOf", 401),
        amazon("NotImplemented", 501),
        amazon("PermanentRedirect", 301),
        amazon("EntityTooLarge", 400),
        amazon("PreconditionFailed", 412, Condition="If-None-Match"),
        botocore("NoCredentialsError"),
        botocore("PartialCredentialsError", provider="env", cred_var="AWS_SECRET_ACCESS_KEY"),
        botocore("ProfileNotFound", profile="nobody"),
        google(401, "Invalid Credentials"),
        google(403, DENIED),
        google(400, "The bucket name is invalid"),
        google(400, "Required"),
        google(404, "The specified bucket does not exist"),
        azure("ClientAuthenticationError"),
        azure("ClientAuthenticationError", 403),
        azure("HttpResponseError", 400),
    ],
    ids=repr,
)
def test_what_somebody_must_mend_is_not_waited_for(error: Exception) -> None:
    """A bucket that is not there, a wrong key, a request that is refused whenever it is made."""
    assert not failure(error).retryable


def redis_failure(error: Exception, *, reached: bool = True) -> StoreError:
    """What a storage raises when a driver for Redis does, of a server that has done something before or has not."""
    client, storage = (
        RedisClient(RedisAddress.of_url("redis://r"), 5.0),
        RedisStorage("redis://r", run_id="x", limit=5.0),
    )
    client._reached = reached
    with pytest.raises(StoreError) as caught, storage._translated("write", "redis://r/x/a"), client._translated():
        raise error
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("reached", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        redis_errors.BusyLoadingError("Redis is loading the dataset in memory"),
        redis_errors.ConnectionError("Connection refused"),
        redis_errors.TimeoutError("Timeout reading from socket"),
        redis_errors.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        redis_errors.ReadOnlyError("You can't write against a read only replica."),
        redis_errors.ResponseError("MASTERDOWN Link with MASTER is down"),
        redis_errors.ClusterDownError("CLUSTERDOWN The cluster is down"),
    ],
    ids=repr,
)
def test_a_server_that_is_away_or_loads_or_is_full_may_be_waited_for(error: Exception, reached: bool) -> None:
    assert redis_failure(error, reached=reached).retryable


@pytest.mark.parametrize("reached", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        redis_errors.AuthenticationError("invalid username-password pair or user is disabled."),
        redis_errors.NoPermissionError("this user has no permissions to run the 'hset' command"),
        redis_errors.ResponseError("ACL failure in script: this user can't run 'hset'"),
        redis_errors.ResponseError("The user executing the script can't run this command or subcommand"),
        redis_errors.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
        FileNotFoundError("a is not there"),
        FileExistsError("a is there"),
        ValueError("80.0 MB are more than the 64 MB that are kept in Redis"),
        ConfigError("the server is version 5.0.0"),
    ],
    ids=repr,
)
def test_a_server_that_refuses_is_not_waited_for(error: Exception, reached: bool) -> None:
    """A wrong password or key, what its user may not do, what is not ours to write or too large."""
    if isinstance(error, OSError | ValueError):
        storage = RedisStorage("redis://r", run_id="x", limit=5.0)
        with pytest.raises(StoreError) as caught, storage._translated("write", "redis://r/x/a"):
            raise error
        assert not caught.value.retryable
    else:
        assert not redis_failure(error, reached=reached).retryable


# -------------------------------------------------------------------- why


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (google(403, DENIED), DENIED),
        (google(403, None), "Forbidden"),
        (
            google(400, "Invalid bucket name: 'a b' is invalid.\nSee the manual"),
            "Invalid bucket name: 'a b' is invalid",
        ),
        (google(503, None), "status 503"),
        (google(503, "Backend Error"), "Backend Error, 503"),
        (google(502, None), "ProxyError"),
        (amazon("SlowDown", 503), "It is SlowDown"),
        (azure("HttpResponseError", 503), "The server is busy"),
        (TimeoutError(), "not done within 5 s"),
        (FileNotFoundError("bucket/run"), "there is no such file or bucket"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (ValueError(), "ValueError"),
    ],
    ids=repr,
)
def test_the_reason_is_one_line_that_says_what_is_wrong(error: Exception, said: str) -> None:
    """What Google says stands below a URL that is of no use to anybody."""
    assert reason(error) == said


def test_a_page_of_a_proxy_is_not_shown() -> None:
    """Its first line says nothing."""
    assert reason(google_page(503, "<!DOCTYPE html>\n<html>")) == "status 503"
