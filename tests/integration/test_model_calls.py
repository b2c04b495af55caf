"""Test that each request of a fit goes through the recorder once, and that a replay sends none and is equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Child

SCENARIOS = "tests.integration.model_calls_scenarios"
SEAM = "tests.integration.seam_scenarios"


def result(tmp_path: Path, name: str, *arguments: Any, of: str = SCENARIOS) -> Any:
    with Child(f"{of}:{name}", *arguments, log=tmp_path / "log") as child:
        return child.result()


@pytest.mark.parametrize(
    ("name", "sent"),
    [("language model", 4), ("stream", 2), ("embedding model", 2), ("decision model", 2), ("oauth", 3)],
)
def test_a_replay_of_each_kind_of_model_is_equal_and_sends_nothing(tmp_path: Path, name: str, sent: int) -> None:
    """Results and counters are those of a run without the seam, and each request is recorded once."""
    found = result(tmp_path, "calls_of_a_model", name)
    assert found["bare"]["sent"] == found["recorded"]["sent"] == found["requests"] == sent
    assert found["replayed"]["sent"] == found["left"] == 0
    for run in ("recorded", "replayed"):
        assert found[run]["results"] == found["bare"]["results"]
        assert found[run]["counters"] == found["bare"]["counters"]
    assert all(found["bare"]["results"])
    assert b"SECRET" not in found["bytes"]


@pytest.mark.parametrize("kind", ["few-shot", "omega", "agent", "judge"])
def test_a_replay_of_a_fit_is_equal_and_sends_nothing(tmp_path: Path, kind: str) -> None:
    """Variables, generators, counters and history are equal, though no two answers of the model are."""
    found = result(tmp_path, "fits", kind)
    assert found["wrong"] == []
    sent, again = found["sent"]
    assert sent >= 12
    assert found["requests"] == (sent, 0)
    assert again == found["left"] == found["keyless"] == 0


# ---------------------------------------------------------------- each request once


def test_an_override_that_calls_the_inherited_method_is_recorded_once(tmp_path: Path) -> None:
    """So is a mixin's, and a stream that sends its request when it is read. Plain dicts and iterators are answers."""
    found = result(tmp_path, "once", of=SEAM)
    assert found == {"LanguageModel": [1, 2], "Deferring": [1, 2], "Mixed": [1], "PlainStream": [1, 2]}


def test_each_attempt_and_each_fallback_is_a_request(tmp_path: Path) -> None:
    """Two attempts fail, and the fallback answers."""
    found = result(tmp_path, "failures", of=SEAM)
    assert found["content"].startswith("answer")
    assert found["sent"] == found["asked"] == 3
    assert found["recorded"] == 1


@pytest.mark.parametrize(("status", "attempts"), [(429, 3), (400, 1), (None, 1)])
def test_a_decision_model_retries_a_recorded_failure_as_it_did_the_original(
    tmp_path: Path, status: int | None, attempts: int
) -> None:
    """It decides by the HTTP status. It does not pause, because nothing is sent."""
    assert result(tmp_path, "recorded_failures", status, of=SEAM) == (attempts, 0.0)


# ---------------------------------------------------------------- whose request it is


def test_concurrent_fits_record_their_own_requests_only(tmp_path: Path) -> None:
    """Other code, and a fit that has ended, are not recorded. At the end all is as before."""
    found = result(tmp_path, "concurrent", of=SEAM)
    assert found == {"one": 3, "two": 4, "shared": 0, "sent": 3 + 4 + 3, "as_before": True}


def test_a_fit_may_be_removed_anywhere_and_installed_again(tmp_path: Path) -> None:
    """The innermost fit that is installed and open records. `remove` works in other tasks and threads."""
    found = result(tmp_path, "nested", of=SEAM)
    assert found["counts"] == [(0, 1), (1, 1), (2, 1), (2, 1), (2, 1), (3, 1)]
    assert found["as_before"]


def test_requests_of_another_event_loop_are_not_recorded_with_one_warning(tmp_path: Path) -> None:
    """They are sent. Code outside the fit causes no warning."""
    found = result(tmp_path, "other_loop", of=SEAM)
    assert found["sent"] == 3
    assert found["asked"] == 0
    assert [message.partition(",")[0] for message in found["logged"]] == [
        "a request to a model was sent from another event loop than that of fit"
    ]


def test_a_fit_that_has_ended_is_not_kept_in_memory(tmp_path: Path) -> None:
    """The task that ran it may run for days, and a recorder holds answers."""
    assert result(tmp_path, "freed", of=SEAM)


# ---------------------------------------------------------------- wrappers of others


def test_a_wrapper_of_another_library_stays_and_each_request_is_recorded_once(tmp_path: Path) -> None:
    """The seam passes calls through below it, is put above it for the next fit, and leaves nothing in the end."""
    found = result(tmp_path, "wrapped_above", of=SEAM)
    assert found == {"counts": (1, 2, 4), "kept": [True, True], "as_before": True}


def test_a_fake_that_replaces_the_method_is_recorded_and_stays(tmp_path: Path) -> None:
    """The second fit wraps the fake, though the first one had wrapped the original."""
    found = result(tmp_path, "replaced_above", of=SEAM)
    assert found == {"content": "fake", "asked": 1, "kept": True, "fake_calls": 1, "as_before": True}


# ---------------------------------------------------------------- a user's own client


def test_a_method_that_the_user_names_is_recorded_and_replayed(tmp_path: Path) -> None:
    """Of one object, or of all objects of a class. A rotated credential does not matter."""
    found = result(tmp_path, "own_client", of=SEAM)
    assert found["object"] == {"equal": True, "recorded": 3, "keys": 2, "calls": (3, 0)}
    assert found["class"] == {"equal": True, "recorded": 4, "keys": 2, "calls": (3, 0)}
    assert found["as_before"]
    assert len(found["refused"]) == 5
    assert all("is no async method of it that can be replaced" in message for message in found["refused"])


def test_a_fit_does_not_record_what_only_another_fit_has_named(tmp_path: Path) -> None:
    """Both share the wrapper."""
    assert result(tmp_path, "unnamed_client", of=SEAM) == 0
