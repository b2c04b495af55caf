"""Check the settings that a user may make, and the system clock."""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distributed_backup.checks import checked_name, checked_seconds, shown
from distributed_backup.clock import SystemClock
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import ConfigError
from distributed_backup.preemption.sources import NoticeSources
from distributed_backup.training.environment import EnvironmentSettings
from distributed_backup.training.settings import (
    DEFAULT_SAVE_FREQ,
    Arguments,
    Settings,
    checked_save_freq,
)
from distributed_backup.worker.options import new_worker_id

# -------------------------------------------------------------------- lease timings


def test_the_default_timings_are_those_of_the_field() -> None:
    """The defaults are those of kubernetes/client-go: 15, 10 and 2 seconds."""
    timings = LeaseTimings()
    assert (timings.duration, timings.renew_deadline, timings.retry_period) == (15.0, 10.0, 2.0)


@pytest.mark.parametrize(
    ("retry_period", "renew_deadline", "duration"),
    [
        (2.0, 1.0, 15.0),
        (2.0, 2.0, 15.0),
        (2.0, 15.0, 15.0),
        (2.0, 16.0, 15.0),
        (0.0, 10.0, 15.0),
        (-1.0, 10.0, 15.0),
        (2.0, 10.0, math.inf),
        (math.nan, 10.0, 15.0),
        (2.0, math.nan, 15.0),
        (2.0, 10.0, math.nan),
        (True, 10.0, 15.0),
        ("2", 10.0, 15.0),
        (2.0, 10.0, None),
    ],
)
def test_timings_out_of_order_are_refused(retry_period: Any, renew_deadline: Any, duration: Any) -> None:
    """The message shows the required order and the given values."""
    with pytest.raises(ConfigError) as caught:
        LeaseTimings(duration=duration, renew_deadline=renew_deadline, retry_period=retry_period)
    assert str(caught.value) == (
        f"want 0 < retry_period < renew_deadline < duration, got {retry_period!r}, {renew_deadline!r}, {duration!r}"
    )


# -------------------------------------------------------------------- single values


@pytest.mark.parametrize("value", ["epoch", False, 1, 2, 10**9])
def test_a_save_frequency_passes_unchanged(value: Any) -> None:
    """A valid value is returned as it is, with `False` distinct from 0."""
    assert checked_save_freq(value) is value


@pytest.mark.parametrize("value", [True, 0, -1, 2.0, 1.5, "batch", "", "Epoch", "1", b"epoch", None, [1], math.nan])
def test_a_wrong_save_frequency_is_refused(value: Any) -> None:
    """The message begins like synalinks' own and shows the value. `True` and 0 are refused too."""
    with pytest.raises(ConfigError) as caught:
        checked_save_freq(value)
    assert str(caught.value).startswith("Invalid value for argument `save_freq`. Received: save_freq=")
    assert repr(value) in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("value", [1, 0.001, 3600.0])
def test_seconds_become_floats(value: float) -> None:
    """An int of seconds is returned as a float."""
    checked = checked_seconds("grace_period", value)
    assert type(checked) is float
    assert checked == value


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, True, "30", None])
def test_what_is_no_time_is_refused(value: Any) -> None:
    """The message names the argument."""
    with pytest.raises(ConfigError, match="grace_period must be a positive number of seconds") as caught:
        checked_seconds("grace_period", value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", ["a", "job-42", "0", "A.b_c-1", "x" * 128])
def test_a_name_passes_unchanged(value: str) -> None:
    """A name has up to 128 letters, digits, '.', '_' and '-'."""
    assert checked_name("run_id", value) == value


@pytest.mark.parametrize(
    "value",
    ["", ".", "..", "../x", "a/b", "a\\b", "a\0", "a\n", "\n", " a", "-a", "_a", ".a", "ä", "x" * 129, 5, None, b"a"],
)
def test_what_is_no_file_name_is_refused(value: Any) -> None:
    """Traversal, hidden files, options and line ends are refused. The message shows the value."""
    with pytest.raises(ConfigError, match="worker_id must be 1 to 128") as caught:
        checked_name("worker_id", value)
    assert repr(value) in str(caught.value)


@given(st.text(max_size=140))
def test_every_accepted_name_is_one_part_of_a_path(value: str) -> None:
    """Any accepted text is one component of a path, of at most 128 bytes."""
    try:
        checked_name("run_id", value)
    except ConfigError:
        return
    assert os.path.basename(value) == value  # noqa: PTH119
    assert value not in {"", ".", ".."}
    assert len(value.encode()) <= 128


# -------------------------------------------------------------------- worker ids


def test_each_incarnation_is_a_new_member() -> None:
    """Two ids of one name differ, and both begin with the name."""
    first, second = new_worker_id("pod-0"), new_worker_id("pod-0")
    assert first != second
    for worker_id in (first, second):
        assert worker_id.startswith("pod-0-")
        assert checked_name("worker_id", worker_id) == worker_id


def test_a_worker_without_a_name_is_called_by_host_and_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default name is host name and process id."""
    monkeypatch.setattr(socket, "gethostname", lambda: "node7.example.org")
    assert new_worker_id(None).startswith(f"node7.example.org-{os.getpid()}-")


@pytest.mark.parametrize("host", ["", ".", "-", "_._", "höst", "a b", "host/name", "x" * 300, "...x", "\0", "主机"])
def test_any_host_name_gives_a_valid_id(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """Characters of a host name that an id can't contain are replaced."""
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    worker_id = new_worker_id(None)
    assert checked_name("worker_id", worker_id) == worker_id
    assert f"-{os.getpid()}-" in worker_id


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True))
@example("x" * 128)
def test_any_valid_name_gives_a_valid_id(name: str) -> None:
    """The longest name is shortened so that the suffix fits."""
    worker_id = new_worker_id(name)
    assert checked_name("worker_id", worker_id) == worker_id
    assert worker_id.startswith(name[:119])


@pytest.mark.parametrize("name", ["", "../x", "a b", "x" * 129])
def test_a_wrong_worker_name_is_refused(name: str) -> None:
    """An invalid name is refused, and no character of it is replaced."""
    with pytest.raises(ConfigError, match="worker_id"):
        new_worker_id(name)


# -------------------------------------------------------------------- the environment


def test_an_empty_environment_sets_nothing() -> None:
    """Absent, empty and blank variables, and variables without our prefix, leave every setting None."""
    nothing = EnvironmentSettings()
    assert EnvironmentSettings.read({}) == nothing
    names = ("COORDINATOR", "RUN_ID", "WORKER_ID", "GRACE_PERIOD", "SAVE_FREQ", "STANDBY")
    assert EnvironmentSettings.read({f"DISTRIBUTED_BACKUP_{name}": "" for name in names}) == nothing
    assert EnvironmentSettings.read({f"DISTRIBUTED_BACKUP_{name}": "  " for name in names}) == nothing
    assert EnvironmentSettings.read(dict.fromkeys(names, "1")) == nothing


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("COORDINATOR", "redis://redis:6379/0", "coordinator", "redis://redis:6379/0"),
        ("RUN_ID", "job-42", "run_id", "job-42"),
        ("WORKER_ID", " pod-0 ", "worker_id", "pod-0"),
        ("GRACE_PERIOD", "30", "grace_period", 30.0),
        ("GRACE_PERIOD", "2.5", "grace_period", 2.5),
        ("SAVE_FREQ", "epoch", "save_freq", "epoch"),
        ("SAVE_FREQ", "Epoch", "save_freq", "epoch"),
        ("SAVE_FREQ", "false", "save_freq", False),
        ("SAVE_FREQ", "False", "save_freq", False),
        ("SAVE_FREQ", "1", "save_freq", 1),
        ("SAVE_FREQ", "25", "save_freq", 25),
        ("STANDBY", "1", "standby", True),
        ("STANDBY", "TRUE", "standby", True),
        ("STANDBY", "yes", "standby", True),
        ("STANDBY", "on", "standby", True),
        ("STANDBY", "0", "standby", False),
        ("STANDBY", "false", "standby", False),
        ("STANDBY", "No", "standby", False),
        ("STANDBY", "off", "standby", False),
    ],
)
def test_a_variable_sets_its_own_setting(name: str, text: str, field: str, value: object) -> None:
    """A variable sets exactly one setting."""
    settings = EnvironmentSettings.read({f"DISTRIBUTED_BACKUP_{name}": text})
    found = getattr(settings, field)
    assert (found, type(found)) == (value, type(value))
    others = set(EnvironmentSettings.__dataclass_fields__) - {field}
    assert {getattr(settings, other) for other in others} == {None}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("RUN_ID", "../x"),
        ("RUN_ID", "x" * 129),
        ("WORKER_ID", "a/b"),
        ("GRACE_PERIOD", "soon"),
        ("GRACE_PERIOD", "0"),
        ("GRACE_PERIOD", "-1"),
        ("GRACE_PERIOD", "inf"),
        ("GRACE_PERIOD", "nan"),
        ("GRACE_PERIOD", "1e400"),
        ("SAVE_FREQ", "0"),
        ("SAVE_FREQ", "-1"),
        ("SAVE_FREQ", "2.0"),
        ("SAVE_FREQ", "true"),
        ("SAVE_FREQ", "batch"),
        ("SAVE_FREQ", "²"),
        ("STANDBY", "maybe"),
        ("STANDBY", "2"),
    ],
)
def test_a_wrong_value_is_refused_naming_its_variable(name: str, text: str) -> None:
    """The message shows the variable's name and its value."""
    with pytest.raises(ConfigError) as caught:
        EnvironmentSettings.read({f"DISTRIBUTED_BACKUP_{name}": text})
    assert f"$DISTRIBUTED_BACKUP_{name} " in str(caught.value)
    assert repr(text) in str(caught.value)


# -------------------------------------------------------------------- arguments, variables and defaults


def arguments(**given: Any) -> Arguments:
    """Return the arguments of a callback that was made with `given`, with the defaults of its signature."""
    defaults: dict[str, Any] = {
        "backup_dir": "/run-42",
        "save_freq": DEFAULT_SAVE_FREQ,
        "double_checkpoint": False,
        "delete_checkpoint": True,
        "save_before_preemption": True,
        "exit_code": 143,
        "signals": (signal.SIGTERM,),
        "state_of": None,
        "journal": True,
        "journal_of": None,
        "on_save_error": "warn",
        "restore_timeout": 300.0,
    }
    optional = dict.fromkeys(
        ("coordinator", "run_id", "worker_id", "standby", "grace_period", "notices", "timings"), None
    )
    return Arguments(**{**optional, **defaults, **given})


def names(notices: NoticeSources) -> str:
    return ",".join(["signal"] * notices.signal + [source.name for source in notices.others])


@pytest.mark.parametrize(
    ("name", "text", "variable", "argument", "default", "found"),
    [
        ("coordinator", "memory:", "memory:", "file:", "file:", lambda settings: settings.coordinator.value),
        ("run_id", "theirs", "theirs", "ours", None, lambda settings: settings.run_id),
        ("worker_id", "theirs", "theirs", "ours", None, lambda settings: settings.session.worker_name),
        ("save_freq", "25", 25, "epoch", "epoch", lambda settings: settings.session.save_freq),
        ("standby", "1", True, False, False, lambda settings: settings.session.worker.standby),
        ("grace_period", "60", 60.0, 15.0, 30.0, lambda settings: settings.session.worker.grace_period),
        ("notices", "gce", "gce", "signal", "signal", lambda settings: names(settings.session.notices)),
    ],
)
def test_an_argument_wins_over_its_variable_and_a_variable_over_the_default(
    name: str, text: str, variable: Any, argument: Any, default: Any, found: Callable[[Settings], Any]
) -> None:
    """An argument that equals the default wins too."""
    environment = {f"DISTRIBUTED_BACKUP_{name.upper()}": text}
    assert found(arguments(**{name: argument}).resolve(environment)) == argument
    assert found(arguments().resolve(environment)) == variable
    assert found(arguments().resolve({})) == default


def test_objects_whose_state_is_saved_are_taken_once() -> None:
    """None is the default and differs from an empty sequence. An iterator may be used up."""
    first, second = [1], [2]
    found = [
        arguments(state_of=value).resolve({}).session.state_of for value in (None, (), [first], iter([first, second]))
    ]
    assert found == [None, (), (first,), (first, second)]


@pytest.mark.parametrize("value", ["text", 5, 0.5, (1,), None, b"", frozenset(), dict], ids=repr)
def test_an_object_that_can_not_be_given_a_state_is_refused(value: Any) -> None:
    """The message shows it, before the fit."""
    with pytest.raises(ConfigError, match="state_of must hold objects with state") as caught:
        arguments(state_of=[[], value]).resolve({})
    assert shown(value) in str(caught.value)


def test_the_grace_period_bounds_a_request_to_the_store_and_shortens_the_lease() -> None:
    """One request takes at most a third of it, and the lease fits into 0.6 of it."""
    settings = arguments(grace_period=3.0).resolve({})
    assert settings.request_timeout == pytest.approx(1.0)
    timings = settings.session.worker.timings
    assert timings.duration + timings.retry_period == pytest.approx(1.8)


def test_double_checkpoint_keeps_two() -> None:
    """The default keeps one."""
    assert arguments().resolve({}).checkpoints_kept == 1
    assert arguments(double_checkpoint=True).resolve({}).checkpoints_kept == 2


def refusal(environment: Any = None, **given: Any) -> str:
    """Return the message of the `ConfigError` that a callback made with `given` raises."""
    with pytest.raises(ConfigError) as caught:
        made(environment, **given)
    return str(caught.value)


def made(environment: Any = None, **given: Any) -> None:
    settings = arguments(**given).resolve(environment or {})
    settings.make_store()
    settings.make_coordinator()


_NEVER = "would never save anything: set save_freq to 'epoch' or to a number of batches, or leave"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backup_dir": ""}, "Empty `backup_dir` argument passed. Give the path of a directory, or a URL: got ''"),
        ({"backup_dir": None}, "Empty `backup_dir` argument passed. Give the path of a directory, or a URL: got None"),
        ({"backup_dir": 5}, "backup_dir: the backup directory must be a path or a URL, got 5"),
        (
            {"backup_dir": "s3://"},
            "backup_dir: s3:// names no place: give a bucket and a prefix, as in s3://bucket/run-42",
        ),
        ({"signals": (signal.SIGKILL,)}, "signals can't include SIGKILL: no process can handle it"),
        ({"signals": [9]}, "signals can't include SIGKILL: no process can handle it"),
        ({"signals": (0,)}, "signals must hold signal numbers, such as signal.SIGTERM, got 0"),
        ({"signals": ["TERM"]}, "signals must hold signal numbers, such as signal.SIGTERM, got 'TERM'"),
        ({"signals": [True]}, "signals must hold signal numbers, such as signal.SIGTERM, got True"),
        (
            {"signals": signal.SIGTERM},
            "signals must be a sequence of signal numbers, such as [signal.SIGTERM], got <Signals.SIGTERM: 15>",
        ),
        ({"signals": "x"}, "signals must be a sequence of signal numbers, such as [signal.SIGTERM], got 'x'"),
        ({"coordinator": 5}, "coordinator must be a redis.Redis, a URL or a Coordinator, got 5 of type int"),
        ({"coordinator": [1]}, "coordinator must be a redis.Redis, a URL or a Coordinator, got a value of type list"),
        (
            {"notices": 5},
            "notices must be any of 'signal', 'file:/absolute/path', 'gce', 'aws', 'azure', or a NoticeSource; got 5",
        ),
        ({"notices": [], "save_freq": False}, f"save_freq=False with notices=() {_NEVER} notices out"),
        ({"state_of": 5}, "state_of must be a sequence of objects, got 5"),
        (
            {"state_of": [5]},
            "state_of must hold objects with state, such as callbacks, containers or random generators, got 5",
        ),
        ({"on_save_error": "ignore"}, "on_save_error must be 'warn' or 'raise', got 'ignore'"),
        ({"on_save_error": []}, "on_save_error must be 'warn' or 'raise', got []"),
        ({"timings": "x"}, "timings must be a LeaseTimings, got 'x'"),
        ({"exit_code": 256}, "exit_code must be a whole number from 0 to 255, got 256"),
        ({"exit_code": True}, "exit_code must be a whole number from 0 to 255, got True"),
        ({"restore_timeout": 0}, "restore_timeout must be a positive number of seconds, got 0"),
        ({"restore_timeout": math.nan}, "restore_timeout must be a positive number of seconds, got nan"),
        ({"restore_timeout": 1e300}, f"restore_timeout must be at most {threading.TIMEOUT_MAX:.0f} s, got 1e+300"),
        (
            {"save_freq": False, "save_before_preemption": False},
            f"save_freq=False with save_before_preemption=False {_NEVER} save_before_preemption out",
        ),
    ],
)
def test_an_invalid_argument_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    """The message shows the value too, and what is wanted."""
    assert refusal(**given) == message


class Unprintable:
    __slots__ = ()

    def __repr__(self) -> str:
        raise RuntimeError("no text")

    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not comparable")

    __hash__ = None  # type: ignore[assignment]


_WRONG: tuple[Any, ...] = (
    Unprintable(),
    object(),
    [Unprintable()],
    [None],
    {"a": 1},
    b"x",
    1.5j,
    -1,
    10**5000,
    math.nan,
    np.array([1, 2]),
    "no\nsuch value",
    "x" * 10_000,
)
# Arguments for which the values of one type above are valid.
_VALID: dict[str, type] = {"backup_dir": str, "save_freq": int}


@pytest.mark.parametrize("name", list(Arguments.__dataclass_fields__))
def test_no_wrong_value_of_any_argument_raises_another_error(name: str) -> None:
    """Each message is one line of limited length that names the argument, whatever the value's own methods raise."""
    for wrong in _WRONG:
        if isinstance(wrong, _VALID.get(name, ())) and wrong != -1:
            continue
        message = refusal(**{name: wrong})
        assert name in message
        assert "\n" not in message
        assert len(message) < 500


@pytest.mark.parametrize("name", ["run_id", "worker_id"])
@pytest.mark.parametrize("value", ["", 0, False, []])
def test_an_id_that_counts_as_false_is_refused_too(name: str, value: Any) -> None:
    """It is not taken for an absent one."""
    assert refusal(**{name: value}).startswith(f"{name} must be 1 to 128 letters")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("COORDINATOR", "nonsense"),
        ("COORDINATOR", "redis://host:port/0"),
        ("COORDINATOR", "file:relative"),
        ("RUN_ID", "a/b"),
        ("WORKER_ID", "a/b"),
        ("GRACE_PERIOD", "0.01"),
        ("GRACE_PERIOD", "1e300"),
        ("SAVE_FREQ", "0"),
        ("STANDBY", "maybe"),
        ("NOTICES", "gpc"),
        ("METRICS_PORT", "0"),
    ],
)
def test_an_invalid_variable_is_refused_by_its_name(name: str, text: str) -> None:
    """The value is also what the text shows, though a later check than that of the variable's form refuses it."""
    message = refusal({f"DISTRIBUTED_BACKUP_{name}": text})
    assert message.startswith(f"$DISTRIBUTED_BACKUP_{name}")
    assert text in message


def test_a_conflict_of_a_variable_names_it() -> None:
    """The schedule comes from the environment here, and the sources from an argument."""
    message = refusal({"DISTRIBUTED_BACKUP_SAVE_FREQ": "false"}, notices=())
    assert message == f"$DISTRIBUTED_BACKUP_SAVE_FREQ=False with notices=() {_NEVER} notices out"


def test_an_argument_is_named_though_its_variable_is_set() -> None:
    """The argument is the value that counts."""
    environment = {"DISTRIBUTED_BACKUP_GRACE_PERIOD": "30", "DISTRIBUTED_BACKUP_COORDINATOR": "memory:"}
    assert refusal(environment, grace_period=0.05).startswith("grace_period must be at least 0.1 s, got 0.05")
    assert refusal(environment, coordinator="nonsense").startswith("coordinator has an unknown form, got 'nonsense'")


# -------------------------------------------------------------------- the clock


def test_the_clock_never_goes_back() -> None:
    """Each reading is at least as late as the one before."""
    clock = SystemClock()
    instants = [clock.now() for _ in range(1000)]
    assert instants == sorted(instants)


def test_the_clock_counts_while_the_machine_is_suspended() -> None:
    """The clock reads CLOCK_BOOTTIME, which is the same in every process."""
    import time

    clock = SystemClock()
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    now = clock.now()
    assert before <= now <= time.clock_gettime(time.CLOCK_BOOTTIME)


@pytest.mark.parametrize("timeout", [-1.0, 0.0])
def test_a_wait_that_is_over_returns_at_once(timeout: float) -> None:
    """A timeout of 0 or less returns immediately, with whether the event is set."""
    event = threading.Event()
    assert SystemClock().wait(event, timeout) is False
    event.set()
    assert SystemClock().wait(event, timeout) is True
    assert SystemClock().wait(event, 1e6) is True
