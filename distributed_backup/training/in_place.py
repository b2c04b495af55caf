"""Give an object a packed value, in place where other objects may refer to it.

Containers, arrays and random generators keep their identity, also generators inside dicts and lists. The limit: a
container inside a container is replaced.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from typing import Any

import numpy as np

from distributed_backup.training.packing import FORMS, GENERATORS, pack, text_of, unpack


class InPlace:
    """Restores values in place. Use one instance for all values that are restored together.

    Two names of one object stay names of one object if their saved values are equal.
    """

    def __init__(self) -> None:
        self._restored: dict[int, tuple[Any, bytes]] = {}

    def restored(self, old: Any, packed: Any) -> Any:
        """Return the value of `packed`: `old` itself with this value, if `old` can take it."""
        new = unpack(packed)
        if not can_hold(old, new):
            # The list or dict may be another one, with the same generators in it.
            return self._with_old_generators(old, new)
        text = text_of(packed)
        if self._restored.setdefault(id(old), (old, text))[1] != text:
            return new
        if type(old) in GENERATORS:
            _set_generator(old, new)
        elif isinstance(old, np.ndarray):
            old[...] = new
        else:
            _fill(old, self._with_old_generators(old, new))
        return old

    def _with_old_generators(self, old: Any, new: Any) -> Any:
        """Return `new`, with the random generators at the same places of `old` in place of equal ones."""
        if isinstance(old, dict) and isinstance(new, dict):
            for key in new.keys() & old.keys():
                new[key] = self._old_generator(old[key], new[key])
        elif isinstance(old, list) and isinstance(new, list):
            new[:] = [self._old_generator(*pair) for pair in zip(old, new, strict=False)] + new[len(old) :]
        return new

    def _old_generator(self, old: Any, new: Any) -> Any:
        if type(new) in GENERATORS and can_hold(old, new):
            return self.restored(old, pack(new))
        return self._with_old_generators(old, new)


def can_hold(old: Any, new: Any) -> bool:
    """Whether `old` can be given the value of `new` in place."""
    if type(old) in GENERATORS:
        return type(old) is type(new) and _bit_generator_name(old) == _bit_generator_name(new)
    if isinstance(old, np.ndarray):
        same = type(new) is np.ndarray and old.shape == new.shape and old.dtype == new.dtype
        return same and bool(old.flags.writeable)
    if type(old) is deque and type(new) is deque:
        return old.maxlen == new.maxlen
    if isinstance(old, dict | list | set | bytearray | deque):
        return type(old) is type(new) or (type(old) not in FORMS and isinstance(old, type(new)))
    return False


def _fill(old: Any, new: Any) -> None:
    if isinstance(old, list | bytearray):
        old[:] = new
        return
    old.clear()
    if isinstance(old, deque):
        old.extend(new)
        return
    if isinstance(old, defaultdict):
        old.default_factory = getattr(new, "default_factory", old.default_factory)
    old.update(new)


def _set_generator(old: Any, new: Any) -> None:
    if isinstance(old, random.Random):
        old.setstate(new.getstate())
    elif isinstance(old, np.random.RandomState):
        old.set_state(new.get_state(legacy=False))
    elif isinstance(old, np.random.Generator):
        old.bit_generator.state = new.bit_generator.state
    else:
        old.state = new.state


def _bit_generator_name(generator: Any) -> str | None:
    if isinstance(generator, np.random.RandomState):
        return str(generator.get_state(legacy=False)["bit_generator"])
    bits = generator.bit_generator if isinstance(generator, np.random.Generator) else generator
    return type(bits).__name__
