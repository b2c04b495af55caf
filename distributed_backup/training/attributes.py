"""Capture and restore the state of one object.

An object with `get_state` and `set_state` is asked for its state. A container or random generator is state itself. Of
any other object, some attributes are state.

A setting that training changes is state too, such as a temperature that is lowered: it is saved as soon as its value
differs from that at the start of the fit. So a setting that the user changes between two runs has the user's value,
unless training had changed it. An attribute that was once restored is always saved.

References are not state: modules, language models, functions, locks. State that can't be packed is named once in a
warning.
"""

from __future__ import annotations

import datetime
import enum
import functools
import inspect
import json
import logging
import random
import re
import types
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from typing import Any, Final

import numpy as np

from distributed_backup.training.in_place import InPlace, can_hold
from distributed_backup.training.packing import GENERATORS, UnsupportedValueError, pack, text_of, unpack

logger = logging.getLogger(__name__)

VALUES: Final = (dict, list, set, deque, bytearray, np.ndarray, *GENERATORS)
# What is in these may change, so that it is state, or is none any more.
_CONTAINERS: Final = (*VALUES, tuple, frozenset)
_UNKNOWN: Final = object()
# These can't change. An attribute that holds one and is not assigned again is a setting.
_CONSTANTS: Final = (
    PurePath,
    enum.Enum,
    Decimal,
    Fraction,
    uuid.UUID,
    range,
    re.Pattern,
    np.dtype,
    inspect.Signature,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    datetime.tzinfo,
)
_REFERENCES: Final = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    functools.partial,
    np.ufunc,
    random.SystemRandom,
    weakref.ref,
)
_MODULES_OF_REFERENCES: Final = frozenset(
    {"synalinks", "distributed_backup", "_thread", "threading", "logging", "asyncio", "_asyncio"}
)
# Data, though synalinks defines their classes.
_DATA_MODELS: Final = frozenset({"DataModel", "JsonDataModel"})


class Rule(enum.Enum):
    """When an attribute is saved: always, once its value differs from that at the start, or never."""

    STATE = enum.auto()
    SETTING = enum.auto()
    NOT_STATE = enum.auto()


class ObjectState:
    """The state of one object. `rule` gives the rule for each attribute by its name."""

    def __init__(self, item: Any, rule: Callable[[str], Rule]) -> None:
        self._item = item
        self._rule = rule
        self._settings: dict[str, bytes] = {}
        self._restored: set[str] = set()
        self._warned: set[str] = set()
        # Attributes that are not saved, with values that can't change in place. Most are, so `capture` skips them.
        self._unsaved: dict[str, Any] = {}

    def begin(self) -> None:
        """Note the settings at the start of the fit. Call it before a state is restored."""
        self._unsaved.clear()
        for name, value in _attributes(self._item):
            if self._rule(name) is Rule.SETTING:
                with suppress(UnsupportedValueError):
                    self._settings[name] = text_of(pack(value))

    def capture(self) -> dict[str, Any]:
        """Return the state, packed. `restore` takes it."""
        if isinstance(self._item, VALUES):
            return self._packed({"value": self._item})
        if _has_own_state(self._item):
            return self._packed({"own": self._item.get_state()})
        unsaved = self._unsaved
        found = [(name, value) for name, value in _attributes(self._item) if unsaved.get(name, _UNKNOWN) is not value]
        packed = self._packed({name: value for name, value in found if self._rule(name) is not Rule.NOT_STATE})
        saved = {name: value for name, value in packed.items() if self._is_saved(name, value)}
        for name, value in found:
            if name not in saved and not isinstance(value, _CONTAINERS):
                unsaved[name] = value
        return {"attributes": saved}

    def fits(self, saved: dict[str, Any]) -> bool:
        """Whether `restore` can set the state. A container or generator can't take the state of another kind."""
        return "value" not in saved or can_hold(self._item, unpack(saved["value"]))

    def restore(self, saved: dict[str, Any], in_place: InPlace) -> None:
        """Set the state that `capture` returned, here or in another process."""
        self._unsaved.clear()
        if "value" in saved:
            in_place.restored(self._item, saved["value"])
        elif "own" in saved and _has_own_state(self._item):
            self._item.set_state(unpack(saved["own"]))
        else:
            self._restore_attributes(saved.get("attributes", {}), in_place)

    def _restore_attributes(self, attributes: dict[str, Any], in_place: InPlace) -> None:
        self._restored.update(attributes)
        # A setting that is not in the state had its first value, also where it has changed since `begin`.
        settings = {name: json.loads(text) for name, text in self._settings.items() if self._text(name) != text}
        for name, packed in {**settings, **attributes}.items():
            if self._text(name) != text_of(packed):
                old = getattr(self._item, name, None)
                new = in_place.restored(old, packed)
                if new is not old:
                    setattr(self._item, name, new)

    def _text(self, name: str) -> bytes | None:
        """Return the packed value of an attribute as JSON. None if there is none, or it can't be packed."""
        try:
            return text_of(pack(getattr(self._item, name)))
        except (AttributeError, UnsupportedValueError):
            return None

    def _is_saved(self, name: str, packed: Any) -> bool:
        if self._rule(name) is Rule.STATE or name in self._restored:
            return True
        return self._settings.get(name) != text_of(packed)

    # ---------------------------------------------------------------- what can't be saved

    def _packed(self, values: dict[str, Any]) -> dict[str, Any]:
        packed = {}
        for name, value in values.items():
            try:
                packed[name] = pack(value)
            except UnsupportedValueError as error:
                if name not in self._warned and _is_state(value):
                    self._warned.add(name)
                    self._warn(name, error.value)
        return packed

    def _warn(self, name: str, value: Any) -> None:
        kind, owner = type(value).__name__, type(self._item).__name__
        what = {"value": owner, "own": f"the state of {owner}"}.get(name, f"{owner}.{name}")
        logger.warning(
            "%s is not saved, and starts anew after a resume: it holds a value of type %s, which can't be saved. Use "
            "types of JSON, collections or numpy, or give %s the methods get_state and set_state, which return and "
            "take such values",
            what,
            kind,
            owner,
        )


def can_hold_state(item: Any) -> bool:
    """Whether an object is a container or generator, or has a state of its own or attributes."""
    has_slots = any(vars(kind).get("__slots__") for kind in type(item).__mro__)
    return isinstance(item, VALUES) or _has_own_state(item) or hasattr(item, "__dict__") or has_slots


def _has_own_state(item: Any) -> bool:
    return callable(getattr(item, "get_state", None)) and callable(getattr(item, "set_state", None))


def _attributes(item: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that an instance has of its own, in `__dict__` or in slots."""
    kind: type = type(item)
    for name in _slots(kind):
        if hasattr(item, name):
            yield name, getattr(item, name)
    yield from getattr(item, "__dict__", {}).items()


@functools.lru_cache(maxsize=256)
def _slots(kind: type) -> tuple[str, ...]:
    """Return the names of the attributes in slots, with their mangling."""
    found = []
    for owner in kind.__mro__:
        slots = vars(owner).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            is_private = name.startswith("__") and not name.endswith("__")
            if name not in {"__dict__", "__weakref__"}:
                found.append(f"_{owner.__name__.lstrip('_')}{name}" if is_private else name)
    return tuple(found)


def _is_state(value: Any) -> bool:
    """Whether a value that can't be packed is state, and no constant or reference. A container is what it holds."""
    return any(not _is_reference(item) and not isinstance(item, _CONSTANTS) for item in _leaves(value))


def _leaves(value: Any) -> Iterator[Any]:
    """Yield what is in nested containers, or else `value` itself."""
    left, seen = [value], set()
    while left:
        item = left.pop()
        if isinstance(item, dict | list | tuple | set | frozenset | deque):
            if id(item) not in seen:
                seen.add(id(item))
                left.extend(item.values() if isinstance(item, dict) else item)
        else:
            yield item


def _is_reference(value: Any) -> bool:
    kinds = [kind for kind in type(value).__mro__ if kind.__module__.partition(".")[0] in _MODULES_OF_REFERENCES]
    if any(kind.__name__ in _DATA_MODELS for kind in kinds):
        return False
    return bool(kinds) or isinstance(value, _REFERENCES)
