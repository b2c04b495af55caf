"""Test which settings of a fit count, and how two descriptions are compared. Without synalinks."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from distributed_backup.training.description import Part, _first_settings, _settings, differences


class LanguageModel:
    """Looks like synalinks' own, which is known by the name of its class."""

    def __init__(self, model: str = "ollama/mistral", fallback: Any = None, **default_kwargs: Any) -> None:
        self.model, self.fallback, self.default_kwargs = model, fallback, default_kwargs
        self.api_base = default_kwargs.get("api_base")


class Module:
    """A module with any attributes."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


def reward(y_true: Any, y_pred: Any) -> float:
    return 1.0


def named(own: list[Part], saved: list[Part]) -> list[str]:
    """What differs between two fits, of which the second was read from a checkpoint."""
    read: list[Any] = json.loads(json.dumps(saved))
    return differences({"versions": [1], "parts": own}, {"versions": [1], "parts": read})


# ---------------------------------------------------------------- which settings count


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"instructions": "be kind"}, {"instructions": "be brief"}),
        ({"instructions": "be kind"}, {}),
        ({"examples": [({"q": "1"}, {"a": "2"})]}, {"examples": [({"q": "1"}, {"a": "3"})]}),
        ({"_schema": {"properties": {"answer": {}}}}, {"_schema": {"properties": {"reply": {}}}}),
        ({"temperature": 0}, {"temperature": None}),
        ({"temperature": np.float32(0.5)}, {"temperature": np.float32(0.25)}),
        ({"k": np.int64(3)}, {"k": np.int64(4)}),
        ({"autonomous": True}, {"autonomous": False}),
        ({"in_mask": {"a", "b"}}, {"in_mask": {"a"}}),
        ({"fn": reward}, {"fn": len}),
        ({"language_model": LanguageModel()}, {"language_model": LanguageModel("ollama/other")}),
        ({"lm": LanguageModel()}, {"lm": LanguageModel("ollama/other")}),
        ({"lm": LanguageModel(temperature=0.5)}, {"lm": LanguageModel(temperature=1.0)}),
        ({"lm": LanguageModel(fallback=LanguageModel())}, {"lm": LanguageModel(fallback=LanguageModel("other"))}),
    ],
)
def test_another_setting_has_another_digest(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Instructions, examples, schemas, sampling, functions and models count, private attributes too."""
    assert _settings(Module(**one)) != _settings(Module(**other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"instructions": None}, {"instructions": ""}),
        ({"return_inputs": False}, {}),
        ({"labels": {0, 8}}, {"labels": {8, 0}}),  # these collide, so the order of insertion shows
        ({"schema": {"title": "Answer_1", "type": "object"}}, {"schema": {"type": "object", "title": "Answer"}}),
        ({"name": "generator_1"}, {"name": "generator_7"}),
        ({"prompt": "of generator_chain_of_thought_3."}, {"prompt": "of generator_chain_of_thought_12."}),
        ({"prompt": "in /tmp/run-1x/a.txt!"}, {"prompt": "in /tmp/run-2y/a.txt!"}),
        ({"prompt": f"by {object()}"}, {"prompt": "by <object object at 0x7f0123456780>"}),
        ({"prompt": f"by {id(object())}"}, {"prompt": "by 139643210987654"}),
        ({"prompt": "on 2026-11-28 20:41:15"}, {"prompt": "on 2026-12-01 08:00:00"}),
        ({"prompt": "8d777f38-5d3d-4fec-815d-20f7496026dc"}, {"prompt": "9d777f38-0d3d-4fec-815d-20f7496026dc"}),
        ({"prompt": Path("/a/b")}, {"prompt": Path("/c/d")}),
        ({"question": object()}, {"question": object()}),
        ({"fn": partial(reward, 1)}, {"fn": partial(reward, 1)}),
        ({"state": "trained"}, {"state": "trained further"}),
        ({"workdir": "/a", "timeout": 3, "rank": 0}, {"workdir": "/b", "timeout": 4, "rank": 1}),
    ],
)
def test_what_differs_between_two_processes_of_one_program_does_not_count(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    """A warning without a difference would teach people to ignore it."""
    assert _settings(Module(**one)) == _settings(Module(**other))


def test_no_credential_has_a_digest() -> None:
    """A digest of a short password would be as good as the password."""
    secret: dict[str, Any] = {
        "api_key": "sk-1",
        "api_base": "https://me:pw@host",
        "extra_headers": {"Authorization": "Bearer 1"},
    }
    assert _settings(LanguageModel(**secret)) == _settings(LanguageModel())
    mine = {"password": "pw", "token": "1", "uri": "postgres://me:pw@host", "knowledge_base": Module(uri="u")}
    assert _settings(Module(**mine, lm=LanguageModel(**secret))) == _settings(Module(lm=LanguageModel()))


def cyclic() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


class FailingError(Exception):
    """An error that no library raises."""


class Failing:
    """A sample whose JSON fails."""

    def get_json(self) -> Any:
        raise FailingError


@pytest.mark.parametrize(
    "value",
    [cyclic(), Failing(), "\ud800", {(1, 2): 1}, float("nan"), 10**30, b"1", ...],
    ids=["cyclic", "failing", "surrogate", "tuple as a key", "nan", "big", "bytes", "ellipsis"],
)
def test_any_value_of_the_user_may_be_a_setting(value: Any) -> None:
    """An error here would end the training."""
    module = Module(instructions=value, k=3)
    assert _settings(module) == _settings(module)
    assert "k" in _settings(module)


def test_a_setting_that_training_changes_does_not_count_in_the_next_fit_of_the_process() -> None:
    """The same holds in another process: its program begins with what the user gave."""
    optimizer = Module(sampling_temperature=1.0)
    first = _first_settings(optimizer)
    optimizer.sampling_temperature = 0.5  # type: ignore[attr-defined]
    assert _first_settings(optimizer) == first
    assert _first_settings(Module(sampling_temperature=0.5)) != first


class FailingHash(Module):
    """A reward whose hash is broken, which synalinks never uses."""

    def __hash__(self) -> int:
        raise FailingError


@pytest.mark.parametrize("item", ["accuracy", SimpleNamespace(fn=reward), FailingHash(k=1)])
def test_a_part_without_a_weak_reference_or_a_hash_is_described(item: Any) -> None:
    """A metric may be given by its name."""
    assert _first_settings(item)["class"]


def test_another_function_as_a_reward_has_another_digest() -> None:
    """`compile` takes a function of the user's own as a reward or metric, without a wrapper."""
    assert _settings(reward) != _settings(cyclic)
    assert _settings(reward) == _settings(reward)


def test_a_hundred_thousand_examples_count_with_some_thousand() -> None:
    """The start of a fit must not wait for them."""
    read = []

    class Example:
        def get_json(self) -> dict[str, str]:
            read.append(self)
            return {}

    _settings(Module(examples=[Example() for _ in range(100_000)]))
    assert 1000 <= len(read) <= 1100


# ---------------------------------------------------------------- two descriptions


def test_the_parts_and_settings_that_differ_are_named() -> None:
    """Each part with its own name, as it is in this process."""
    own: list[Part] = [("module first_2", {"k": "1"}), ("optimizer", {"selection": "1", "sampling": "1"})]
    saved: list[Part] = [("module first_1", {"k": "2"}), ("optimizer", {"selection": "1", "algorithm": "1"})]
    assert named(own, saved) == ["module first_2 (k)", "optimizer (sampling, algorithm)"]


def test_new_and_missing_parts_are_named() -> None:
    """Another reward function, for example."""
    kept: Part = ("module first", {"k": "1"})
    own: list[Part] = [kept, ("reward strict", {"fn": "1"})]
    assert named(own, [("reward lenient", {"fn": "2"}), kept]) == ["reward strict (new)", "reward lenient (missing)"]


@pytest.mark.parametrize(
    "saved",
    [
        [("module generator_8", {"k": "2"}), ("module generator_7", {"k": "1"}), ("module last", {"k": "3"})],
        [("module last", {"k": "3"}), ("module generator", {"k": "1"}), ("module generator_1", {"k": "2"})],
        [("module a", {"k": "1"}), ("module b", {"k": "2"}), ("module c", {"k": "3"})],
    ],
    ids=["another counter", "another order", "other names"],
)
def test_the_same_parts_under_other_names_or_in_another_order_do_not_differ(saved: list[Part]) -> None:
    """The names of a program that was made after others have other counters."""
    own: list[Part] = [("module generator_1", {"k": "1"}), ("module generator_2", {"k": "2"})]
    assert named([*own, ("module last", {"k": "3"})], saved) == []


def test_two_named_modules_whose_settings_changed_places_differ() -> None:
    """Their names say which is which."""
    own: list[Part] = [("module a", {"instructions": "1"}), ("module b", {"instructions": "2"})]
    saved: list[Part] = [("module a", {"instructions": "2"}), ("module b", {"instructions": "1"})]
    assert named(own, saved) == ["module a (instructions)", "module b (instructions)"]


def test_another_version_is_not_compared() -> None:
    """Its defaults may be others, and its digests too."""
    assert differences({"versions": [2], "parts": [("a", {})]}, {"versions": [1], "parts": []}) == []
    assert differences({"versions": [2], "parts": [("a", {})]}, {}) == []
