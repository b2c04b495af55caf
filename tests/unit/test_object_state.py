"""The state of one object: which attributes are saved, what wins after a resume, and what is named in a warning."""

from __future__ import annotations

import datetime
import functools
import logging
import random
import threading
import weakref
from collections import deque
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from distributed_backup.training.attributes import ObjectState, Rule
from distributed_backup.training.in_place import InPlace


class Thing:
    """An object with the attributes that a test gives it."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def method(self) -> None:
        """Do nothing."""


def thing(**attributes: Any) -> Any:
    return Thing(**attributes)


def as_optimizer(name: str) -> Rule:
    return Rule.STATE if name.startswith("_") else Rule.SETTING


def everything(_: str) -> Rule:
    return Rule.STATE


def begun(item: Any, rule: Any = as_optimizer) -> ObjectState:
    state = ObjectState(item, rule)
    state.begin()
    return state


def saved(state: ObjectState) -> Any:
    """Return what a checkpoint would give back."""
    return orjson.loads(orjson.dumps(state.capture()))


def names(state: ObjectState) -> set[str]:
    return set(state.capture()["attributes"])


# -------------------------------------------------------------------- settings


def test_a_setting_is_state_once_training_has_changed_it() -> None:
    """Private attributes are state from the start."""
    item = thing(temperature=1.0, population=10, _level=1)
    state = begun(item)
    assert names(state) == {"_level"}
    item.temperature = 0.5
    assert names(state) == {"_level", "temperature"}


def test_a_setting_that_changed_in_place_is_state() -> None:
    """Its value at the start is kept, and not only its identity."""
    item = thing(rates=[1.0])
    state = begun(item)
    item.rates.append(0.5)
    assert names(state) == {"rates"}


def test_a_setting_is_looked_at_again_when_it_has_another_value() -> None:
    """Also where it was not saved before: a constant, a reference, and a list that held a reference."""
    item = thing(constant=1, reference=len, held=[len])
    state = begun(item)
    assert names(state).isdisjoint({"constant", "reference", "held"})
    item.constant, item.reference = 1.0, "text"
    item.held[0] = "text"
    assert names(state) >= {"constant", "reference", "held"}
    item.constant = 1
    assert "constant" not in names(state)


def test_an_attribute_that_training_adds_is_state() -> None:
    """It has no value at the start."""
    item = thing()
    state = begun(item)
    item.best = (1, 2)
    other = thing()
    begun(other).restore(saved(state), InPlace())
    assert other.best == (1, 2)


def test_what_the_user_changes_between_two_runs_wins_unless_training_had_changed_it() -> None:
    """The new population is used. The annealed temperature goes on, and not from its new first value."""
    item = thing(temperature=1.0, population=10)
    state = begun(item)
    item.temperature = 0.5
    other = thing(temperature=2.0, population=20)
    begun(other).restore(saved(state), InPlace())
    assert (other.temperature, other.population) == (0.5, 20)


def test_an_attribute_that_was_restored_stays_state() -> None:
    """Also where the process starts with the value that training had reached."""
    item = thing(temperature=1.0)
    state = begun(item)
    item.temperature = 0.5
    second = thing(temperature=0.5)
    resumed = begun(second)
    resumed.restore(saved(state), InPlace())
    third = thing(temperature=1.0)
    begun(third).restore(saved(resumed), InPlace())
    assert third.temperature == 0.5


def test_a_setting_that_only_this_process_has_changed_is_set_back() -> None:
    """Applied again at the position, a state must undo what the fast-forward has done."""
    item = thing(seen=(0,))
    body = saved(begun(item))
    other = thing(seen=(0,))
    state = begun(other)
    other.seen = (7,)
    state.restore(body, InPlace())
    assert other.seen == (0,)


def test_a_state_can_be_restored_twice() -> None:
    """What the program does to restored values does not change the state."""
    item = thing(_counts={1: [2]}, _rng=np.random.default_rng(3))
    body = saved(begun(item))
    expected = np.random.default_rng(3).random()
    for _ in range(2):
        item._counts[1].append(3)
        begun(item).restore(body, InPlace())
        assert item._counts == {1: [2]}
        assert item._rng.random() == expected


def test_only_attributes_of_the_rule_are_saved() -> None:
    """Others are not even warned about."""
    item = thing(wait=1, patience=2, odd=object())
    state = ObjectState(item, lambda name: Rule.STATE if name == "wait" else Rule.NOT_STATE)
    assert state.capture() == {"attributes": {"wait": 1}}


# -------------------------------------------------------------------- in place


def test_containers_and_generators_keep_their_identity() -> None:
    """Other objects that refer to them see the restored state."""
    generator, recent = random.Random(1), deque([1], maxlen=2)
    other = thing(_rng=generator, _recent=recent)
    begun(other).restore(saved(begun(thing(_rng=random.Random(5), _recent=deque([2, 3], maxlen=2)))), InPlace())
    assert (other._rng, other._recent) == (generator, recent)
    assert generator.random() == random.Random(5).random()
    assert recent == deque([2, 3])


def test_two_names_of_one_list_come_apart_again() -> None:
    """At the start they are one list. In the saved run they had become two."""
    start: list[int] = []
    other = thing(_best=start, _current=start)
    begun(other).restore(saved(begun(thing(_best=[1], _current=[2]))), InPlace())
    assert (other._best, other._current) == ([1], [2])


def test_an_attribute_that_is_equal_is_not_assigned() -> None:
    """An object may refuse an assignment, as a frozen dataclass does."""

    class Frozen:
        def __init__(self) -> None:
            vars(self)["limit"] = 3

        def __setattr__(self, name: str, value: Any) -> None:
            raise AttributeError(name)

    begun(Frozen(), everything).restore(saved(begun(Frozen(), everything)), InPlace())


# -------------------------------------------------------------------- whole objects


class Stateful:
    """Has a state of its own."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.other = object()

    def get_state(self) -> Any:
        return self.seen, "text"

    def set_state(self, state: Any) -> None:
        self.seen = state[0]


def test_an_object_with_a_state_of_its_own_is_asked_for_it(caplog: pytest.LogCaptureFixture) -> None:
    """It may return any type that can be saved, and gets it back as it was."""
    item, other = Stateful(), Stateful()
    item.seen = {1, 2}
    begun(other, everything).restore(saved(begun(item, everything)), InPlace())
    assert other.seen == {1, 2}
    assert not caplog.records


@pytest.mark.parametrize(
    ("item", "other"),
    [
        ({"a": {1}}, {}),
        ([1, (2,)], [3]),
        (deque([1], maxlen=3), deque(maxlen=3)),
        (np.ones(2), np.zeros(2)),
        (random.Random(1), random.Random(2)),
        (np.random.default_rng(1), np.random.default_rng(2)),
        (np.random.RandomState(1), np.random.RandomState(2)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_container_or_generator_is_state_itself(item: Any, other: Any) -> None:
    """It is named in `state_of` without an object around it."""
    body = saved(begun(item, everything))
    state = begun(other, everything)
    assert state.fits(body)
    state.restore(body, InPlace())
    assert saved(state) == body


def test_a_generator_of_another_kind_does_not_fit() -> None:
    """The saved state has no meaning for it."""
    body = saved(begun(np.random.default_rng(1), everything))
    assert not begun(np.random.Generator(np.random.MT19937(1)), everything).fits(body)
    assert begun(thing(), everything).fits(saved(begun(thing(a=1), everything)))


def test_attributes_in_slots_are_saved() -> None:
    """Private ones as well, and those of a base class."""

    class Base:
        __slots__ = ("__hidden", "one")

        def hide(self, value: Any) -> Any:
            self.__hidden = value
            return self

        def found(self) -> Any:
            return self.__hidden

    class Slotted(Base):
        __slots__ = ("__dict__", "unset")

    item: Any = Slotted().hide((1,))
    other: Any = Slotted().hide(None)
    item.one, item.free = {2}, 3
    begun(other, everything).restore(saved(begun(item, everything)), InPlace())
    assert (other.found(), other.one, other.free, hasattr(other, "unset")) == ((1,), {2}, 3, False)


# -------------------------------------------------------------------- warnings


class Module:
    """Stands for a class of synalinks."""

    __module__ = "synalinks.src.modules.module"


class OwnModule(Module):
    """A user's subclass."""


class JsonDataModel:
    """Stands for data, whose class synalinks defines."""

    __module__ = "synalinks.src.backend.common.json_data_model"


class Kind(Enum):
    ONE = 1


def test_state_that_cannot_be_saved_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    """The warning names attribute and class, and what to do."""
    item = thing(_ids=iter([1]), _deep={"a": [(object(),)]}, _data=JsonDataModel(), schedule=Path("a").open)
    item._level = 1
    state = begun(item)
    for _ in range(3):
        assert names(state) == {"_level"}
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3
    first, second, third = caplog.messages
    assert first.startswith("Thing._ids is not saved, and starts anew after a resume: it holds a value of type list_")
    assert first.endswith("give Thing the methods get_state and set_state, which return and take such values")
    assert second.startswith("Thing._deep is not saved, and starts anew after a resume: it holds a value of type obj")
    assert third.startswith("Thing._data is not saved, ")


def test_a_state_of_its_own_that_cannot_be_saved_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """The fit goes on without it."""
    item = Stateful()
    item.seen = {object()}  # type: ignore[arg-type]
    state = begun(item, everything)
    assert (state.capture(), state.capture()) == ({}, {})
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "the state of Stateful is not saved, and starts anew after a resume"
    ]
    other = Stateful()
    begun(other, everything).restore({"class": "Stateful"}, InPlace())
    assert other.seen == set()


def test_references_and_constants_are_not_state(caplog: pytest.LogCaptureFixture) -> None:
    """Modules, functions, locks and the like need no warning, also in containers. Constants need none either."""
    module, item = Module(), thing()
    vars(item).update(
        _module=module,
        _own=OwnModule(),
        _modules={"a": [module], 2: (OwnModule(),)},
        _function=len,
        _lambda=lambda: 1,
        _method=item.method,
        _partial=functools.partial(len, ""),
        _class=Thing,
        _python_module=random,
        _lock=threading.Lock(),
        _rlock=threading.RLock(),
        _event=threading.Event(),
        _logger=logging.getLogger(),
        _weak=weakref.ref(module),
        _system=random.SystemRandom(),
        _path=Path("a"),
        _enum=Kind.ONE,
        _date=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        _kind=np.dtype("f4"),
    )
    assert names(begun(item)) == set()
    assert not caplog.records


def test_a_count_beside_a_reference_is_state(caplog: pytest.LogCaptureFixture) -> None:
    """It would be lost with the reference."""
    assert names(begun(thing(_programs={"program": Module(), "calls": 3}))) == set()
    assert [message.partition(",")[0] for message in caplog.messages] == ["Thing._programs is not saved"]
